//! Server-sent events: what is told, when, and to whom.

use futures_util::StreamExt as _;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::given::{Node, PATIENCE, Site};

/// An open stream and what it has said.
pub(crate) struct Stream {
    response: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<axum::body::Bytes>> + Send>>,
    text: String,
}

impl Stream {
    pub(crate) async fn open(site: &Site, query: &str) -> Self {
        let url = site.url(&format!("/api/v1/stream{query}"));
        let response: Response = site.client().get(url).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response: Box::pin(response.bytes_stream()), text: String::new() }
    }

    /// The next message's type and data.
    pub(crate) async fn next(&mut self) -> (String, Value) {
        let whole = async {
            loop {
                while let Some(end) = self.text.find("\n\n") {
                    let message: String = self.text.drain(..end + 2).collect();
                    let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
                    if let Some(data) = field("data: ") {
                        let kind = field("event: ").unwrap_or_default().to_owned();
                        return (kind, serde_json::from_str(data).unwrap());
                    }
                }
                let chunk = self.response.next().await.expect("the stream is open").unwrap();
                self.text.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, whole).await.expect("a message comes")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_told_after_it_is_stored() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let mut stream = Stream::open(&site, "?kind=event").await;
    node.tells("door_opened", "left").await;
    let (kind, event) = stream.next().await;
    assert_eq!(
        (kind.as_str(), &event["kind"], &event["node"]),
        ("event", &json!("door_opened"), &json!("edge-1"))
    );
    let stored = site.get("/api/v1/nodes/edge-1/events").await;
    assert_eq!(stored["items"], json!([event]), "told is what is stored");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_and_changes_are_filtered_by_node_and_kind() {
    let site = Site::start().await;
    let mut nodes = [Node::born(&site, "a-1").await, Node::born(&site, "b-2").await];
    let mut samples = Stream::open(&site, "?kind=samples&node=b-2").await;
    let mut latest = Stream::open(&site, "?kind=latest").await;
    let mut changes = Stream::open(&site, "?kind=node&node=a-1").await;
    let t = fleet_manager::clock::wall_ms();
    nodes[0].measures(&[(t, "", "x", 1.0)]).await;
    nodes[1].measures(&[(t, "", "x", 2.0), (t + 1, "", "x", 3.0), (t, "probe", "y", 4.0)]).await;
    let (kind, told) = samples.next().await;
    assert_eq!((kind.as_str(), &told["node"]), ("samples", &json!("b-2")));
    assert_eq!(
        told["samples"][1],
        json!({"time_ms": t + 1, "device": "", "metric": "x", "value": 3.0, "unit": "Cel", "late": false})
    );
    let mut newest = std::collections::BTreeMap::new();
    while newest.len() < 2 {
        let (_, value) = latest.next().await;
        newest.insert(value["node"].as_str().unwrap().to_owned(), value);
    }
    assert_eq!(
        (&newest["a-1"]["values"], &newest["b-2"]["values"]),
        (&json!({"x": 1.0}), &json!({"x": 3.0}))
    );
    assert_eq!(newest["b-2"]["devices"], json!({"probe": {"y": 4.0}}));
    let body = Some(r#"{"site": "berlin"}"#);
    for id in ["b-2", "a-1"] {
        site.ask(reqwest::Method::PATCH, &format!("/api/v1/nodes/{id}"), body).await;
    }
    loop {
        let (kind, value) = changes.next().await;
        assert_eq!((kind.as_str(), &value["id"]), ("node", &json!("a-1")));
        if value["site"] == "berlin" {
            break;
        }
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_kinds_are_refused_and_a_stop_ends_streams() {
    let site = Site::start().await;
    let (status, _) = site.ask(reqwest::Method::GET, "/api/v1/stream?kind=nodes", None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let mut stream = Stream::open(&site, "").await;
    site.stop().await;
    let ended = async { while let Some(Ok(_)) = stream.response.next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the stream ends with the hub");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_does_not_read_is_cut_and_told() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let mut stream = Stream::open(&site, "?kind=samples,event").await;
    // More than the sockets hold, then more than the feed remembers.
    let t = fleet_manager::clock::wall_ms();
    let batch: Vec<_> = (0..8_000).map(|i| (t + i, "", "temperature", 0.5)).collect();
    for _ in 0..20 {
        node.measures(&batch).await;
    }
    for _ in 0..9_000 {
        node.tells("tick", "").await;
    }
    node.told("last", "").await;
    let ends = async {
        loop {
            let (kind, value) = stream.next().await;
            if kind == "cut" {
                return value["missed"].as_u64();
            }
        }
    };
    assert!(ends.await.is_some_and(|missed| missed > 0));
    assert!(
        stream.response.next().await.is_none_or(|chunk| chunk.is_ok_and(|chunk| chunk.is_empty())),
        "it ended"
    );
    site.stop().await;
}
