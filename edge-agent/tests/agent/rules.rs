//! Local rules, files and exporters with real programs and sockets, and no hub.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing};
use fleet_edge_agent::{config::Config, rules::ProgramConfig, run::Handle};
use fleet_schemas::{Lane, event};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    PATIENCE, get_json,
    hub::{Hub, Said, connected},
    post, quiet, script, start, until, url,
};

const HOT: &str = "alerts:\n  - id: hot\n    sensor: dht22\n    field: t\n    condition: \"value > 27\"\n    \
                   severity: warn\n    message: \"{{ sensor }} has {{ value }}\"\n    outputs: [log, webhook, buzzer]\n";

async fn say(agent: &Handle, value: f64) {
    let body = json!({"device": "dht22", "samples": [{"metric": "t", "value": value}]});
    assert_eq!(post(&url(agent, "/api/v1/telemetry"), body).await.0, 202);
}

/// The value of a series, 0 while it is not there.
fn value(agent: &Handle, series: &str) -> f64 {
    let page = agent.metrics();
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

fn events(agent: &Handle) -> f64 {
    value(agent, r#"fleet_agent_accepted_records_total{kind="event"}"#)
}

/// A folder with rules and a buzzer that writes down what it is told.
fn with_buzzer(node: &str, rules: &str) -> (tempfile::TempDir, Config, std::path::PathBuf) {
    let (folder, mut config) = quiet(node);
    fs::create_dir_all(&config.data).unwrap();
    fs::write(config.data.join("alerts.yaml"), rules).unwrap();
    let heard = folder.path().join("heard");
    let text = format!(
        "echo \"$FLEET_ALERT_STATE $FLEET_ALERT_RULE $FLEET_ALERT_MESSAGE $HOME\" >> {}",
        heard.display()
    );
    let program = script(folder.path(), "buzz", &text);
    let buzzer = ProgramConfig { program, args: Vec::new(), timeout: Duration::from_secs(20) };
    config.rules.program = BTreeMap::from([("buzzer".to_owned(), buzzer)]);
    (folder, config, heard)
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(|line| line.trim_end().to_owned()).collect()
}

#[tokio::test]
async fn an_alert_is_told_without_a_hub_and_once_over_a_restart() {
    let (_folder, config, heard) = with_buzzer("rules-1", HOT);
    let agent = start(config.clone()).await;
    until("the rule is taken", async || value(&agent, "fleet_agent_rules"), |rules| *rules == 1.0).await;
    say(&agent, 20.0).await;
    say(&agent, 30.0).await;
    until("the buzzer", async || lines(&heard), |heard| heard == &["firing hot dht22 has 30"]).await;
    until("an event", async || events(&agent), |events| *events == 1.0).await;
    // What fires is on disk before the next restart: the state is written after the event.
    let state = config.data.join("rules.state");
    until("the state", async || state.exists(), |exists| *exists).await;
    agent.stop().await;
    let agent = start(config).await;
    until("the rule again", async || value(&agent, "fleet_agent_rules"), |rules| *rules == 1.0).await;
    say(&agent, 31.0).await;
    say(&agent, 20.0).await;
    let told = until("the end", async || lines(&heard), |heard| heard.len() >= 2).await;
    assert_eq!(told, ["firing hot dht22 has 30", "resolved hot over: dht22 has 20"]);
    until("one event", async || events(&agent), |events| *events == 1.0).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_wrong_file_is_refused_as_a_whole_and_a_right_one_is_taken_at_once() {
    let (_folder, config, heard) = with_buzzer("rules-2", HOT);
    let file = config.data.join("alerts.yaml");
    let agent = start(config).await;
    until("the rule is taken", async || value(&agent, "fleet_agent_rules"), |rules| *rules == 1.0).await;
    fs::write(&file, format!("{HOT}  - id: other\n    field: t\n    condition: \"value >\"\n")).unwrap();
    until("an event says so", async || events(&agent), |events| *events == 1.0).await;
    say(&agent, 30.0).await;
    until("the old rule fires", async || lines(&heard), |heard| heard.len() == 1).await;
    fs::write(&file, HOT.replace("27", "40")).unwrap();
    // The alert goes on under the rule of the same name, and is over by its new condition.
    until(
        "the new rule",
        async || {
            say(&agent, 35.0).await;
            lines(&heard)
        },
        |heard| heard.len() == 2,
    )
    .await;
    assert_eq!(lines(&heard)[1], "resolved hot over: dht22 has 35");
    agent.stop().await;
}

/// Serves until it is dropped.
async fn serve(router: Router) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

#[tokio::test]
async fn a_webhook_that_fails_is_asked_again() {
    let (says, mut said) = mpsc::channel::<Value>(8);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let hook = routing::post(move |axum::Json(body): axum::Json<Value>| async move {
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        says.send(body).await.unwrap();
        StatusCode::NO_CONTENT
    });
    let address = serve(Router::new().route("/hook", hook)).await;
    let (_folder, mut config, _) = with_buzzer("rules-3", HOT);
    config.rules.webhook = Some(format!("http://{address}/hook").parse().unwrap());
    let agent = start(config).await;
    until("the rule is taken", async || value(&agent, "fleet_agent_rules"), |rules| *rules == 1.0).await;
    say(&agent, 30.5).await;
    let body = tokio::time::timeout(PATIENCE, said.recv()).await.unwrap().unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    for (key, expected) in [
        ("node", json!("rules-3")),
        ("rule", json!("hot")),
        ("device", json!("dht22")),
        ("metric", json!("t")),
        ("value", json!(30.5)),
        ("state", json!("firing")),
        ("severity", json!("warning")),
    ] {
        assert_eq!(body[key], expected, "{body}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn files_and_exporters_are_read_and_a_hostile_one_does_no_harm() {
    let page = "# TYPE up gauge\nup 1\nload{cpu=\"0\"} 0.5\nload{cpu=\"1\"} 0.25\nsecret 7\n";
    let endless = || async { "x{a=\"b\"} 1\n".repeat(500_000) };
    let router = Router::new().route("/metrics", routing::get(move || async move { page }));
    let address = serve(router.route("/endless", routing::get(endless))).await;
    let (folder, mut config) = quiet("rules-4");
    fs::write(folder.path().join("temp"), "42500\n").unwrap();
    let text = format!(
        "[[file]]\npath = \"{0}/temp\"\nmetric = \"t\"\nscale = 0.001\nevery_s = 3600\n\
         [[scrape]]\nurl = \"http://{address}/metrics\"\nmetrics = [\"up\", \"load\"]\nevery_s = 3600\n\
         [[scrape]]\nurl = \"http://{address}/endless\"\nmetrics = [\"*\"]\nevery_s = 3600",
        folder.path().display()
    );
    let read: Config = toml::from_str(&text).unwrap();
    (config.file, config.scrape) = (read.file, read.scrape);
    let agent = start(config).await;
    let held = async || get_json(&url(&agent, "/api/v1/outbox")).await["held_records"].as_u64().unwrap();
    until("a value of the file, three of the page", held, |held| *held == 4).await;
    let large = r#"fleet_agent_collect_failures_total{kind="scrape",reason="large"}"#;
    until("the endless page", async || value(&agent, large), |large| *large == 1.0).await;
    assert_eq!(value(&agent, r#"fleet_agent_collected_samples_total{kind="scrape"}"#), 3.0);
    agent.stop().await;
}

#[tokio::test]
async fn collectors_that_cannot_be_are_named() {
    for (text, hint) in [
        ("[[scrape]]\nurl = \"http://10.0.0.1/metrics\"\nmetrics = [\"up\"]", "on this machine"),
        ("[[scrape]]\nurl = \"http://127.0.0.1/metrics\"\nmetrics = []", "names none"),
        ("[[file]]\npath = \"/a\"", "metric"),
        ("[[file]]\npath = \"/a[\"\nformat = \"json\"", "pattern"),
    ] {
        let config: Config = toml::from_str(text).unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(hint), "{text}: {error}");
    }
    let https = toml::from_str::<Config>("[rules]\nwebhook = \"https://example.org\"").unwrap_err();
    assert!(https.to_string().contains("plain http"), "{https}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_reaches_the_hub_as_an_event_long_before_its_sample() {
    let hub = Hub::start("127.0.0.1:0", true);
    let (_folder, mut config) = connected("rules-5", hub.address);
    fs::create_dir_all(&config.data).unwrap();
    fs::write(config.data.join("alerts.yaml"), HOT).unwrap();
    config.upload.every = Some(Duration::from_secs(3_600));
    let agent = start(config).await;
    until("the rule is taken", async || value(&agent, "fleet_agent_rules"), |rules| *rules == 1.0).await;
    until("online", async || agent.status().await.unwrap().status, |status| status == "online").await;
    say(&agent, 30.5).await;
    let batch = loop {
        match hub.said.recv_timeout(PATIENCE).unwrap() {
            Said::Batch(Lane::Event, batch) => break batch,
            Said::Batch(lane, batch) => panic!("{lane:?} {batch:?}"),
            Said::Birth(_) | Said::Death(_) | Said::Heartbeat(_) => {}
        }
    };
    let events = event::decode(&batch.body).unwrap();
    let told = &events[0];
    assert_eq!((told.kind.as_str(), told.severity), ("alert", event::Severity::Warning));
    assert_eq!(told.message, "dht22 has 30.5");
    assert_eq!(told.device.as_ref().map(|device| device.as_str()), Some("dht22"));
    let data: Value = told.data.as_ref().unwrap().deserialized().unwrap();
    let expected = json!({
        "rule": "hot", "device": "dht22", "metric": "t", "value": 30.5, "state": "firing", "severity": "warning",
    });
    assert_eq!(data, expected);
    agent.stop().await;
}
