//! Remote read, asked as Prometheus asks: what is stored comes back, nodes that are not meant are not read, and every
//! refusal says why.

use std::time::Duration;

use fleet_manager::{clock, core::identity::Role};
use prost::Message;
use reqwest::StatusCode;

use crate::given::{Node, Site, operator};

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    queries: Vec<Query>,
    #[prost(int32, repeated, tag = "2")]
    accepted: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Query {
    #[prost(int64, tag = "1")]
    start: i64,
    #[prost(int64, tag = "2")]
    end: i64,
    #[prost(message, repeated, tag = "3")]
    matchers: Vec<Matcher>,
    #[prost(message, optional, tag = "4")]
    hints: Option<Hints>,
}

#[derive(Clone, PartialEq, Message)]
struct Matcher {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Hints {
    #[prost(int64, tag = "1")]
    step: i64,
    #[prost(string, tag = "2")]
    func: String,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, repeated, tag = "1")]
    results: Vec<Found>,
}

#[derive(Clone, PartialEq, Message)]
struct Found {
    #[prost(message, repeated, tag = "1")]
    series: Vec<Series>,
}

#[derive(Clone, PartialEq, Message)]
struct Series {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    time: i64,
}

impl Query {
    fn of((start, end): (i64, i64), matchers: &[(&str, i32, &str)]) -> Self {
        let matcher = |(name, kind, value): &(&str, i32, &str)| Matcher {
            kind: *kind,
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        };
        let named = [("__name__", 0, "fleet_sample")];
        let matchers = named.iter().chain(matchers).map(matcher).collect();
        Self { start, end, matchers, hints: None }
    }

    fn hinted(mut self, step: i64, func: &str) -> Self {
        self.hints = Some(Hints { step, func: func.to_owned() });
        self
    }
}

/// `{label="value",…}` and the samples, by series.
type Shown = Vec<(String, Vec<(i64, f64)>)>;

async fn post(site: &Site, path: &str, token: Option<&str>, body: Vec<u8>) -> reqwest::Response {
    let mut request = reqwest::Client::new().post(site.url(path)).body(body);
    request = request.header("content-type", "application/x-protobuf").header("content-encoding", "snappy");
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    request.send().await.unwrap()
}

fn packed(queries: Vec<Query>, accepted: Vec<i32>) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(&Request { queries, accepted }.encode_to_vec()).unwrap()
}

async fn read(site: &Site, path: &str, query: Query) -> Shown {
    let response = post(site, path, Some(&site.admin), packed(vec![query], vec![1, 0])).await;
    let status = response.status();
    let body = response.bytes().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let plain = snap::raw::Decoder::new().decompress_vec(&body).unwrap();
    let response = Response::decode(&plain[..]).unwrap();
    assert_eq!(response.results.len(), 1);
    let mut shown: Shown = (response.results[0].series.iter())
        .map(|series| {
            let labels: Vec<_> =
                series.labels.iter().map(|label| format!("{}={:?}", label.name, label.value)).collect();
            let samples = series.samples.iter().map(|sample| (sample.time, sample.value)).collect();
            (labels.join(","), samples)
        })
        .collect();
    shown.sort_by(|a, b| a.0.cmp(&b.0));
    shown
}

const READ: &str = "/api/v1/prom/read";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_comes_back_with_its_labels_of_now() {
    let site = Site::start().await;
    let now = site.hub.clock().now().wall_ms;
    let mut node = Node::born(&site, "edge-1").await;
    let mut other = Node::born(&site, "edge-2").await;
    let start = now - 3_600_000;
    let minutes = |n: i64| start + n * 60_000;
    let wave: Vec<_> = (0..60).map(|n| (minutes(n), "dht22", "temperature", n as f64)).collect();
    node.measures(&wave).await;
    node.measures(&[(minutes(5), "", "cpu_percent", 3.0)]).await;
    other.measures(&[(minutes(5), "dht22", "temperature", 7.0)]).await;
    let patch = r#"{"site": "north"}"#;
    let client = site.client().patch(site.url("/api/v1/nodes/edge-1"));
    let patched = client.header("content-type", "application/merge-patch+json").body(patch).send().await;
    assert_eq!(patched.unwrap().status(), StatusCode::OK);

    let temperature = "__name__=\"fleet_sample\",device=\"dht22\",metric=\"temperature\"";
    let labels_1 = format!("{temperature},node=\"edge-1\",site=\"north\",unit=\"Cel\"");
    let labels_2 = format!("{temperature},node=\"edge-2\",unit=\"Cel\"");
    let points: Vec<_> = wave.iter().map(|(time, _, _, value)| (*time, *value)).collect();
    // Both ends belong to the range.
    let some = read(&site, READ, Query::of((minutes(3), minutes(7)), &[("metric", 0, "temperature")])).await;
    assert_eq!(
        some,
        [(labels_1.clone(), points[3..=7].to_vec()), (labels_2.clone(), vec![(minutes(5), 7.0)])]
    );
    let all = read(&site, READ, Query::of((start, now), &[("site", 2, "n.*"), ("unit", 0, "Cel")])).await;
    let cpu = "__name__=\"fleet_sample\",metric=\"cpu_percent\",node=\"edge-1\",site=\"north\",unit=\"Cel\"";
    assert_eq!(all, [(labels_1.clone(), points.clone()), (cpu.to_owned(), vec![(minutes(5), 3.0)])]);
    let none = read(&site, READ, Query::of((start, now), &[("site", 0, "south")])).await;
    assert_eq!(none, []);
    // The label that Prometheus puts on everything: chooses nothing away where it was named, and comes back.
    let asked = Query::of((start, now), &[("node", 0, "edge-2"), ("replica", 0, "a")]);
    assert_eq!(read(&site, READ, asked.clone()).await, []);
    let external = read(&site, &format!("{READ}?external=replica"), asked).await;
    assert_eq!(external[0].0, labels_2.replace(",unit", ",replica=\"a\",unit"));
    // Listing needs no samples.
    let names =
        read(&site, READ, Query::of((start, now), &[("node", 0, "edge-2")]).hinted(0, "series")).await;
    assert_eq!(names, [(labels_2, vec![])]);
    // Over days a step keeps its last sample, at its own time.
    let week = Query::of((now - 7 * 86_400_000, now), &[("device", 0, "dht22"), ("node", 0, "edge-1")]);
    let thinned = read(&site, READ, week.hinted(300_000, "")).await;
    let mut last = std::collections::BTreeMap::new();
    for (time, value) in &points {
        last.insert(time.div_euclid(300_000), (*time, *value));
    }
    assert_eq!(thinned, [(labels_1, last.into_values().collect())]);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_to_do() {
    let site = Site::start().await;
    let viewer = operator(&site.hub, "prometheus", Role::Viewer, None).await;
    let query = |matcher| Query::of((0, 1), &[matcher]);
    let huge = b"\x80\x80\x80\x80\x08".to_vec();
    let backwards = packed(vec![Query::of((2, 1), &[])], vec![]);
    let many = packed(vec![query(("node", 0, "a")); 17], vec![]);
    for (path, token, body, status, said) in [
        (READ, Some(&viewer), packed(vec![query(("node", 0, "a"))], vec![]), 200, ""),
        (READ, None, packed(vec![], vec![]), 401, "token"),
        (READ, Some(&viewer), packed(vec![query(("node", 2, "("))], vec![]), 400, "RE2"),
        (READ, Some(&viewer), packed(vec![query(("node", 0, "a"))], vec![1]), 400, "SAMPLES"),
        (READ, Some(&viewer), b"no snappy".to_vec(), 400, "snappy"),
        (READ, Some(&viewer), huge, 400, "unfolds"),
        (READ, Some(&viewer), backwards, 400, "start"),
        (READ, Some(&viewer), many, 400, "17 queries"),
        ("/api/v1/prom/read?external=node", Some(&viewer), packed(vec![], vec![]), 422, "external"),
    ] {
        let response = post(&site, path, token.map(String::as_str), body).await;
        let (found, text) = (response.status(), response.text().await.unwrap_or_default());
        assert!(found == status && text.contains(said), "{said}: {found} {text}");
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_nodes_day_is_read_without_the_other_ten_thousand() {
    const NODES: usize = 10_000;
    let site = Site::start().await;
    let csv: String = (0..NODES).map(|n| format!("n{n},north\n")).collect();
    let import = site.client().post(site.url("/api/v1/nodes/import")).header("content-type", "text/csv");
    let imported = import.body(format!("id,site\n{csv}")).send().await.unwrap();
    assert!(imported.status().is_success(), "{}", imported.text().await.unwrap());
    let now = site.hub.clock().now().wall_ms;
    // A sample each in the store, so that it has all of them.
    let others: Vec<u32> = site.hub.with_fleet(|fleet| fleet.ids.keys().copied().collect());
    crate::given::sample_each(&site.hub, &others, now - 60_000);
    let mut node = Node::born(&site, "edge-1").await;
    let start = now - 86_400_000;
    // A day of ten series, every 30 seconds.
    let metrics: Vec<String> = (0..10).map(|n| format!("m{n}")).collect();
    let day: Vec<_> = (0..2_880)
        .flat_map(|n| {
            metrics.iter().map(move |metric| (start + n * 30_000, "dht22", metric.as_str(), n as f64))
        })
        .collect();
    for batch in day.chunks(9_600) {
        node.measures(batch).await;
    }
    let began = clock::mono();
    let found = read(&site, READ, Query::of((start, now), &[("node", 0, "edge-1")])).await;
    let took = clock::mono() - began;
    assert_eq!((found.len(), found.iter().map(|(_, points)| points.len()).sum::<usize>()), (10, day.len()));
    println!("a day of one node among {NODES}: {took:?}");
    assert!(
        took < Duration::from_secs(10),
        "{took:?}: a second is promised, on a machine that does nothing else"
    );
    let metrics = site.client().get(site.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let line = "fleet_history_nodes_read_total 1";
    assert!(metrics.lines().any(|found| found == line), "only the node that was asked for was looked at");
    // What is scraped of so many nodes: a tenth of a second and ten megabytes are promised.
    let began = clock::mono();
    let metrics = site.client().get(site.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let took = clock::mono() - began;
    println!("/metrics of {NODES} nodes: {took:?}, {} bytes", metrics.len());
    assert!(
        metrics.matches("\nfleet_node_info{").count() == NODES && metrics.contains("fleet_nodes_unlisted 1")
    );
    assert!(metrics.len() < 10_000_000 && took < Duration::from_secs(5), "{took:?}, {} bytes", metrics.len());
    // A metric of every node: all series in one answer.
    let fleet = read(&site, READ, Query::of((now - 3_600_000, now), &[("metric", 0, "probe")])).await;
    assert_eq!(fleet.len(), NODES);
    site.stop().await;
}
