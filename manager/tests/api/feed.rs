//! The feed over HTTP: gapless and without repeats across restarts of the hub, in pieces, and told when it cannot be.

use std::{path::Path, sync::Arc};

use fleet_manager::{clock, store::disk::Folder};
use futures_util::StreamExt as _;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::given::{Node, PATIENCE, Site};

/// A hub on a folder that outlives it.
async fn hub_on(folder: &Path) -> Site {
    Site::on(Arc::new(Folder::new(folder)), tempfile::tempdir().unwrap()).await
}

/// An open feed.
struct Feed {
    lines: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<axum::body::Bytes>> + Send>>,
    text: String,
}

impl Feed {
    async fn open(site: &Site, query: &str) -> Self {
        let response: Response =
            site.client().get(site.url(&format!("/api/v1/feed{query}"))).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        Self { lines: Box::pin(response.bytes_stream()), text: String::new() }
    }

    /// The next line; none when the feed ended.
    async fn next(&mut self) -> Option<Value> {
        let whole = async {
            loop {
                if let Some(end) = self.text.find('\n') {
                    let line: String = self.text.drain(..=end).collect();
                    return Some(serde_json::from_str(&line).unwrap());
                }
                let chunk = self.lines.next().await?.ok()?;
                self.text.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, whole).await.expect("a line comes in time")
    }

    async fn all(mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        while let Some(line) = self.next().await {
            lines.push(line);
        }
        lines
    }
}

async fn all(site: &Site, after: &str) -> Vec<Value> {
    Feed::open(site, &format!("?after={after}&follow=false")).await.all().await
}

/// Everything that lines tell, as (node, metric or kind, value).
fn told(lines: &[Value]) -> Vec<(String, String, f64)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut told = Vec::new();
    for line in lines {
        match line["type"].as_str().unwrap() {
            "samples" => {
                let samples = line["samples"].as_array().unwrap();
                assert!(samples.len() <= 1_000);
                let sample =
                    |s: &Value| (text(&line["node"]), text(&s["metric"]), s["value"].as_f64().unwrap());
                told.extend(samples.iter().map(sample));
            }
            "event" => told.push((text(&line["node"]), text(&line["kind"]), 0.0)),
            "mark" => {}
            other => panic!("{other}"),
        }
    }
    told
}

fn cursor(lines: &[Value]) -> String {
    lines.last().unwrap()["cursor"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_goes_on_over_restarts_and_within_batches() {
    let folder = tempfile::tempdir().unwrap();
    let site = hub_on(folder.path()).await;
    let mut node = Node::born(&site, "edge-1").await;
    let t = clock::wall_ms();
    let large: Vec<_> = (0..2_500).map(|i| (t + i, "", "large", i as f64)).collect();
    node.told("door_opened", "left").await;
    node.measures(&large).await;
    node.measures(&[(t, "probe", "small", 1.5)]).await;
    let whole = all(&site, "start").await;
    // Some events are the hub's own.
    let of_node = |lines: &[Value]| {
        let mut told = told(lines);
        told.retain(|(_, what, _)| {
            what == "door_opened" || what == "large" || what == "small" || what == "later"
        });
        told
    };
    let expected: Vec<_> = std::iter::once(("edge-1".to_owned(), "door_opened".to_owned(), 0.0))
        .chain((0..2_500).map(|i| ("edge-1".to_owned(), "large".to_owned(), f64::from(i))))
        .chain([("edge-1".to_owned(), "small".to_owned(), 1.5)])
        .collect();
    assert_eq!(of_node(&whole), expected);
    let one = whole.iter().find(|line| line["samples"][0]["metric"] == "small").unwrap();
    assert_eq!(
        one["samples"],
        json!([{"time_ms": t, "device": "probe", "metric": "small", "value": 1.5, "unit": "Cel", "late": false}])
    );
    assert_eq!(
        all(&site, &cursor(&whole)).await.iter().map(|line| &line["type"]).collect::<Vec<_>>(),
        ["mark"]
    );
    // Line by line, with a restart after each second of them.
    let (mut pieces, mut at, mut site) = (Vec::new(), "start".to_owned(), site);
    drop(node);
    for n in 0.. {
        let piece = Feed::open(&site, &format!("?after={at}&follow=false&limit=1")).await.all().await;
        at = cursor(&piece);
        if piece[0]["type"] == "mark" {
            break;
        }
        pieces.extend(piece);
        if n % 2 == 0 {
            site.stop().await;
            site = hub_on(folder.path()).await;
        }
    }
    assert_eq!(told(&pieces), told(&whole));
    let mut node = Node::born(&site, "edge-2").await;
    node.measures(&[(t, "", "later", 2.5)]).await;
    let rest = all(&site, &at).await;
    assert_eq!(of_node(&rest), [("edge-2".to_owned(), "later".to_owned(), 2.5)]);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_told_what_it_wants_as_it_is_committed() {
    let site = Site::start().await;
    let mut nodes = [Node::born(&site, "a-1").await, Node::born(&site, "b-2").await];
    nodes[0].told("before", "").await;
    let body = Some(r#"{"site": "berlin"}"#);
    site.ask(Method::PATCH, "/api/v1/nodes/b-2", body).await;
    let mut by_node = Feed::open(&site, "?node=a-1").await;
    let mut by_site = Feed::open(&site, "?selector=site%3Dberlin").await;
    for feed in [&mut by_node, &mut by_site] {
        assert_eq!(feed.next().await.unwrap()["type"], "mark", "it says where it begins");
    }
    for round in 0..3 {
        for node in &mut nodes {
            node.measures(&[(clock::wall_ms(), "", "x", f64::from(round))]).await;
            node.told("tick", "").await;
        }
        for (feed, id) in [(&mut by_node, "a-1"), (&mut by_site, "b-2")] {
            let mut lines = [feed.next().await.unwrap(), feed.next().await.unwrap()];
            lines.sort_by_key(|line| line["type"].to_string());
            assert_eq!((&lines[0]["type"], &lines[0]["node"]), (&json!("event"), &json!(id)));
            assert_eq!(lines[1]["samples"][0]["value"], f64::from(round));
            let stored = site.get(&format!("/api/v1/nodes/{id}/events?limit=1")).await;
            for (key, value) in stored["items"][0].as_object().unwrap() {
                assert_eq!(&lines[0][key], value, "an event is as it is in the list");
            }
        }
    }
    site.stop().await;
    assert_eq!(by_node.next().await, None, "it ends with the hub");
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_that_lead_nowhere_are_refused_and_feeds_are_counted() {
    let other = Site::start().await;
    let foreign = cursor(&all(&other, "start").await);
    other.stop().await;
    let site = Site::start().await;
    let ask = async |query: &str| site.ask(Method::GET, &format!("/api/v1/feed?{query}"), None).await;
    let (status, problem) = ask(&format!("after={foreign}")).await;
    assert_eq!(status, StatusCode::GONE);
    assert!(problem["detail"].as_str().unwrap().contains("after=start"), "{problem}");
    for (query, at) in [("after=tomorrow", "?after"), ("limit=0", "?limit"), ("from=1", "?from")] {
        let (status, problem) = ask(query).await;
        assert_eq!(
            (status, &problem["errors"][0]["pointer"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!(at))
        );
    }
    assert_eq!(ask("node=nobody").await.0, StatusCode::NOT_FOUND);
    let mut open = Vec::new();
    for _ in 0..32 {
        let mut feed = Feed::open(&site, "").await;
        feed.next().await.unwrap();
        open.push(feed);
    }
    assert_eq!(ask("").await.0, StatusCode::SERVICE_UNAVAILABLE);
    drop(open);
    let freed = async {
        while ask("follow=false").await.0 != StatusCode::OK {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("readers who leave make room");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_reads_slowly_is_waited_for_and_misses_nothing() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let mut feed = Feed::open(&site, "?after=start&node=edge-1").await;
    // More than the sockets and the broadcast to other streams hold.
    let t = clock::wall_ms();
    for batch in 0..30 {
        let samples: Vec<_> = (0..8_000).map(|i| (t + i, "", "x", f64::from(batch))).collect();
        node.measures(&samples).await;
    }
    let mut seen = vec![0; 30];
    while seen.iter().sum::<usize>() < 30 * 8_000 {
        let line = feed.next().await.unwrap();
        for sample in line["samples"].as_array().into_iter().flatten() {
            let batch = sample["value"].as_f64().unwrap() as usize;
            assert!(seen[batch + 1..].iter().all(|count| *count == 0), "in order");
            seen[batch] += 1;
        }
    }
    assert_eq!(seen, vec![8_000; 30]);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_node_s_feed_goes_on_while_others_speak() {
    let site = Site::start().await;
    let _quiet = Node::born(&site, "edge-1").await;
    let mut other = Node::born(&site, "edge-2").await;
    let mut feed = Feed::open(&site, "?node=edge-1").await;
    let first = feed.next().await.unwrap();
    let talk = async {
        loop {
            other.measures(&[(clock::wall_ms(), "", "load", 1.0)]).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let line = tokio::select! {
        line = feed.next() => line.unwrap(),
        () = talk => unreachable!("it talks for ever"),
    };
    assert_eq!(line["type"], "mark");
    assert_ne!(line["cursor"], first["cursor"]);
    assert!(
        all(&site, line["cursor"].as_str().unwrap()).await.len() < 20,
        "what others said before is behind it"
    );
    site.stop().await;
}
