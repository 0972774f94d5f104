//! The CSV import, its report and its `Idempotency-Key`.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::given::Site;

const FILE: &str =
    "id,name,site,lat,lon,rack\nedge-1,Kiln,berlin,52.5,13.4,1\nEDGE,,,,,\nedge-2,,berlin,,,2\n";

async fn post(site: &Site, query: &str, key: Option<&str>, body: &str) -> (StatusCode, Value) {
    let url = site.url(&format!("/api/v1/nodes/import{query}"));
    let mut request = site.client().post(url).header("content-type", "text/csv").body(body.to_owned());
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

fn results(report: &Value) -> Vec<&str> {
    report["lines"].as_array().unwrap().iter().map(|line| line["result"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn good_lines_are_applied_and_bad_ones_reported() {
    let site = Site::start().await;
    let (status, dry) = post(&site, "?dry_run=true", None, FILE).await;
    assert_eq!((status, results(&dry)), (StatusCode::OK, vec!["created", "failed", "created"]));
    assert_eq!(site.get("/api/v1/nodes").await["items"], json!([]), "a dry run changes nothing");
    let (_, report) = post(&site, "", None, FILE).await;
    assert_eq!((&report["applied"], &report["failed"]), (&json!(2), &json!(1)));
    assert_eq!((&report["lines"][1]["line"], &report["lines"][1]["id"]), (&json!(3), &json!("EDGE")));
    let node = site.get("/api/v1/nodes/edge-1").await;
    assert_eq!(
        (&node["state"], &node["site"], &node["labels"]),
        (&json!("new"), &json!("berlin"), &json!({"rack": "1"}))
    );
    assert_eq!(node["last_seen_ms"], Value::Null, "it was never heard");
    let (_, again) = post(&site, "", None, "id,site\nedge-1,berlin\nedge-2,hamburg\n").await;
    assert_eq!(results(&again), ["unchanged", "changed"]);
    let long = format!("id,name\nedge-9,{}\n", "x".repeat(200));
    let (_, refused) = post(&site, "", None, &long).await;
    assert_eq!(results(&refused), ["failed"], "the registry's own rules hold per line");
    assert_eq!(post(&site, "", None, "name\nx\n").await.0, StatusCode::UNPROCESSABLE_ENTITY);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_gets_the_first_answer() {
    let site = Site::start().await;
    let (_, first) = post(&site, "", Some("k-1"), FILE).await;
    let (status, again) = post(&site, "", Some("k-1"), FILE).await;
    assert_eq!((status, &again), (StatusCode::OK, &first), "not `unchanged`, as doing it again would say");
    let (status, _) = post(&site, "", Some("k-1"), "id\nedge-7\n").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(site.ask(reqwest::Method::GET, "/api/v1/nodes/edge-7", None).await.0, StatusCode::NOT_FOUND);
    site.stop().await;
}
