//! Alerts over HTTP, SSE and MQTT: rules in, alerts out, and what operators do with them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::HeaderMap, routing::post};
use fleet_manager::{clock, core::identity::Role, notify, store::disk::Folder};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    cli::on,
    given::{Node, PATIENCE, Site, operator},
    mirror::Tool,
    stream::Stream,
};

pub(crate) const HOT: &str = "rules:\n  - {id: hot, sensor: any, field: temperature, condition: \"value > 27\", severity: critical, \
                   labels: {team: lab}, message: \"{{ device }} is at {{ value }}\"}\n";

pub(crate) async fn put(site: &Site, path: &str, text: &str) -> (StatusCode, Value) {
    let request =
        site.client().put(site.url(path)).header("content-type", "application/yaml").body(text.to_owned());
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap_or_default())
}

/// The alerts of a query, once there are as many as wanted.
pub(crate) async fn alerts(site: &Site, query: &str, count: usize) -> Vec<Value> {
    let there = async {
        loop {
            let items =
                site.get(&format!("/api/v1/alerts?{query}")).await["items"].as_array().unwrap().clone();
            if items.len() == count {
                return items;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.unwrap_or_else(|_| panic!("{count} of {query}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_taken_whole_or_refused_with_their_place() {
    let site = Site::start().await;
    let (status, rules) = put(&site, "/api/v1/rules", HOT).await;
    assert_eq!(status, StatusCode::OK, "{rules}");
    let find = |rules: &Value, id: &str| {
        rules["items"].as_array().unwrap().iter().find(|rule| rule["id"] == id).cloned().unwrap()
    };
    assert_eq!(find(&rules, "hot")["source"], "rules.yaml");
    assert_eq!(find(&rules, "node-offline")["source"], "default");
    assert_eq!(std::fs::read_to_string(site.data.path().join("rules.yaml")).unwrap(), HOT);

    let wrong = "rules:\n  - {id: hot, condition: 'valeu > 27'}\n";
    let (status, refused) = put(&site, "/api/v1/rules", wrong).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused["errors"][0]["pointer"], "rules.yaml:2:27", "{refused}");
    assert!(refused["errors"][0]["detail"].as_str().unwrap().contains("valeu"), "{refused}");
    let kept = site.get("/api/v1/rules").await;
    assert_eq!(find(&kept, "hot")["condition"], "value > 27");
    assert_eq!(std::fs::read_to_string(site.data.path().join("rules.yaml")).unwrap(), HOT);
    let request = site.client().get(site.url("/api/v1/rules")).header("accept", "application/yaml");
    assert_eq!(request.send().await.unwrap().text().await.unwrap(), HOT);

    // A file that somebody edits by hand is noticed, and one that is wrong changes nothing but says so.
    std::fs::write(site.data.path().join("rules.yaml"), wrong).unwrap();
    let noticed = async {
        loop {
            let rules = site.get("/api/v1/rules").await;
            if rules["refused"].is_object() {
                return rules;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let rules = tokio::time::timeout(PATIENCE, noticed).await.unwrap();
    assert_eq!((&rules["refused"]["line"], &rules["refused"]["column"]), (&json!(2), &json!(27)));
    assert_eq!(find(&rules, "hot")["condition"], "value > 27");

    let kit = "alerts:\n  - {id: wet, sensor: bme280, field: humidity, condition: \"value > 80.0\", severity: warn, \
               message: \"{{ value }}\", outputs: [log, webhook, buzzer], cooldown_s: 300}\n";
    put(&site, "/api/v1/rules", HOT).await;
    let (status, rules) = put(&site, "/api/v1/rules/kits/greenhouse", kit).await;
    assert_eq!(status, StatusCode::OK, "{rules}");
    assert_eq!(find(&rules, "greenhouse.wet")["source"], "kit greenhouse");
    let (status, _) = site.ask(Method::DELETE, "/api/v1/rules/kits/greenhouse", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = site.ask(Method::DELETE, "/api/v1/rules/kits/greenhouse", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let actions: Vec<Value> = site.get("/api/v1/audit").await["items"].as_array().unwrap().clone();
    let count = |action: &str| actions.iter().filter(|entry| entry["action"] == action).count();
    assert_eq!((count("rules.put"), count("rules.kit")), (2, 2), "{actions:?}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_raises_an_alert_that_operators_see_and_take_care_of() {
    let site = Site::start().await;
    assert_eq!(put(&site, "/api/v1/rules", HOT).await.0, StatusCode::OK);
    let mut node = Node::born(&site, "edge-1").await;
    let mut stream = Stream::open(&site, "?kind=alert").await;
    let mut tool = Tool::on(&site, "tool-1", "fleet/v1/hub/alert/#").await;
    node.measures(&[(clock::wall_ms(), "dht22", "temperature", 28.5)]).await;
    let (_, alert) = stream.next().await;
    assert_eq!(
        (&alert["rule"], &alert["node"], &alert["device"], &alert["state"], &alert["message"]),
        (&json!("hot"), &json!("edge-1"), &json!("dht22"), &json!("firing"), &json!("dht22 is at 28.5"))
    );
    assert_eq!(
        alerts(&site, "state=firing&severity=error", 1).await,
        std::slice::from_ref(&alert),
        "told is what is stored"
    );
    let (told, _) = tool.next("fleet/v1/hub/alert/hot/edge-1").await;
    assert_eq!((&told["id"], &told["firing_count"]), (&alert["id"], &json!(1)));
    let mut late = Tool::on(&site, "tool-2", "fleet/v1/hub/alert/+/edge-1").await;
    let (retained, flag) = late.next("fleet/v1/hub/alert/hot/edge-1").await;
    assert_eq!((&retained["id"], flag), (&alert["id"], true));

    let path = format!("/api/v1/alerts/{}", alert["id"].as_str().unwrap());
    let viewer = operator(&site.hub, "viewer", Role::Viewer, None).await;
    let acknowledge = format!("{path}/acknowledge");
    let (status, _) = site.ask_as(Some(&viewer), Method::POST, &acknowledge, Some("{}")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, seen) = site.ask(Method::POST, &acknowledge, Some(r#"{"comment": "on my way"}"#)).await;
    assert_eq!((status, &seen["acknowledged_by"]), (StatusCode::OK, &json!("operator admin")), "{seen}");
    assert_eq!(seen["comment"], "on my way");
    let (status, silence) =
        site.ask(Method::POST, &format!("{path}/silence"), Some(r#"{"for_s": 3600}"#)).await;
    assert_eq!((status, &silence["device"]), (StatusCode::CREATED, &json!("dht22")), "{silence}");
    assert!(site.get(&path).await["silenced_until_ms"].is_i64());
    assert_eq!(site.get("/api/v1/silences").await["items"], json!([silence]));
    let ended = format!("/api/v1/silences/{}", silence["id"].as_str().unwrap());
    assert_eq!(site.ask(Method::DELETE, &ended, None).await.0, StatusCode::NO_CONTENT);
    assert!(site.get(&path).await.get("silenced_until_ms").is_none());
    for (body, wrong) in [
        (r#"{"for_s": 60}"#, "everything"),
        (r#"{"rule": "hot"}"#, "no end"),
        (r#"{"rule": "hot", "for_s": 0}"#, "past"),
    ] {
        let (status, _) = site.ask(Method::POST, "/api/v1/silences", Some(body)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}");
    }

    node.measures(&[(clock::wall_ms(), "dht22", "temperature", 21.0)]).await;
    let over = alerts(&site, "state=resolved&rule=hot", 1).await;
    assert_eq!((&over[0]["id"], &over[0]["value"]), (&alert["id"], &json!(21.0)));
    let cleared = async {
        loop {
            let (payload, _) = tool.next("fleet/v1/hub/alert/hot/edge-1").await;
            if payload.is_null() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, cleared).await.unwrap();
    assert_eq!(alerts(&site, "state=open&rule=hot", 0).await, Vec::<Value>::new());
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_alerts_lose_none() {
    let site = Site::start().await;
    assert_eq!(put(&site, "/api/v1/rules", HOT).await.0, StatusCode::OK);
    let mut node = Node::born(&site, "edge-1").await;
    let now = clock::wall_ms();
    let names: Vec<String> = (0..25).map(|n| format!("d{n}")).collect();
    let samples: Vec<_> = names.iter().map(|name| (now, name.as_str(), "temperature", 30.0)).collect();
    node.measures(&samples).await;
    alerts(&site, "state=open&rule=hot&limit=100", 25).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = site.get(&format!("/api/v1/alerts?rule=hot&limit=10{cursor}")).await;
        seen.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|alert| alert["device"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    seen.sort();
    let mut expected = names.clone();
    expected.sort();
    assert_eq!(seen, expected);
    let (status, _) = site.ask(Method::GET, "/api/v1/alerts?state=nonsense", None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    site.stop().await;
}

/// What a receiver was sent, in order; it refuses the first requests.
#[derive(Clone, Default)]
struct Hook {
    refusals: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<(String, String, Value)>>>,
}

async fn hook(State(hook): State<Hook>, headers: HeaderMap, body: String) -> StatusCode {
    let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let body = serde_json::from_str(&body).unwrap();
    hook.seen.lock().unwrap().push((header("content-type"), header("authorization"), body));
    let left = hook.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    if left.is_ok() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

impl Hook {
    async fn serve(self) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes =
            Router::new().route("/hook", post(hook)).route("/am/api/v2/alerts", post(hook)).with_state(self);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        address
    }

    async fn until(&self, count: usize) -> Vec<(String, String, Value)> {
        let there = async {
            while self.seen.lock().unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            self.seen.lock().unwrap().clone()
        };
        tokio::time::timeout(PATIENCE, there).await.unwrap_or_else(|_| panic!("{count} requests"))
    }
}

pub(crate) fn receiver(name: &str, kind: notify::Kind, url: String) -> notify::Receiver {
    notify::Receiver {
        name: name.to_owned(),
        kind,
        url,
        severity: None,
        token_file: None,
        ca_file: None,
        timeout_s: 10,
        labels: [("team".to_owned(), "lab".to_owned())].into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_are_told_until_they_take_it_and_keep_one_id() {
    let (web, am) = (Hook::default(), Hook::default());
    web.refusals.store(1, Ordering::SeqCst);
    let (web_at, am_at) = (web.clone().serve().await, am.clone().serve().await);
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("token"), "s3cret\n").unwrap();
    let mut webhook = receiver("web", notify::Kind::Webhook, format!("http://{web_at}/hook"));
    webhook.token_file = Some(data.path().join("token"));
    let receivers = vec![webhook, receiver("am", notify::Kind::Alertmanager, format!("http://{am_at}/am/"))];
    let disk = Arc::new(Folder::new(data.path()));
    let site = Site::telling(disk, data, false, false, receivers).await;
    assert_eq!(put(&site, "/api/v1/rules", HOT).await.0, StatusCode::OK);
    let mut node = Node::born(&site, "edge-1").await;
    node.measures(&[(clock::wall_ms(), "dht22", "temperature", 28.5)]).await;

    let seen = web.until(2).await;
    assert_eq!(seen[0], seen[1], "what was refused is said again, under the same id");
    let (kind, token, event) = &seen[0];
    assert_eq!(
        (kind.as_str(), token.as_str(), &event["type"], &event["specversion"], &event["subject"]),
        (
            "application/cloudevents+json; charset=utf-8",
            "Bearer s3cret",
            &json!("fleet.alert.firing"),
            &json!("1.0"),
            &json!("hot/edge-1/dht22")
        )
    );
    assert_eq!(event["data"]["message"], "dht22 is at 28.5");
    let pushed = am.until(1).await;
    let alert = &pushed[0].2[0];
    let labels = json!({
        "alertname": "hot", "node": "edge-1", "device": "dht22", "severity": "critical", "team": "lab",
    });
    assert_eq!((&alert["labels"], &alert["annotations"]["summary"]), (&labels, &json!("dht22 is at 28.5")));

    node.measures(&[(clock::wall_ms(), "dht22", "temperature", 20.0)]).await;
    let seen = web.until(3).await;
    assert_eq!(seen[2].2["type"], "fleet.alert.resolved");
    assert_ne!(seen[2].2["id"], event["id"]);
    let over = am.until(2).await;
    assert_eq!(over[1].2[0]["labels"], labels);

    let (status, _) = site.ask(Method::POST, "/api/v1/receivers/web/test", None).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(web.until(4).await[3].2["type"], "fleet.alert.test");
    let (status, _) = site.ask(Method::POST, "/api/v1/receivers/nobody/test", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let empty = async {
        while !site.hub.state().notices().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("what was taken waits no more");
    let metrics = site.client().get(site.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let sent = |receiver: &str, count: u64| {
        let line =
            format!("fleet_alert_notifications_total{{receiver=\"{receiver}\",outcome=\"sent\"}} {count}");
        assert!(metrics.contains(&line), "{line}");
    };
    sent("web", 3);
    sent("am", 2);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_checks_applies_tries_and_takes_care() {
    let site = Site::start().await;
    let file = |name: &str, text: &str| {
        let path = site.data.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (good, wrong) =
        (file("good.yaml", HOT), file("wrong.yaml", "rules:\n  - {id: hot, condition: 'value >'}\n"));
    let (code, text, _) = on(&site, &["rule", "check", &good]).await;
    assert!(code == 0 && text.contains("1 rules"), "{text}");
    let (code, _, told) = on(&site, &["rule", "check", &wrong]).await;
    assert!(code == 1 && told.contains("line 2, column 27"), "{told}");
    let (code, _, told) = on(&site, &["rule", "apply", &wrong]).await;
    assert!(code == 2 && told.contains("rules.yaml:2:27"), "{told}");
    let (code, text, told) = on(&site, &["rule", "apply", &good]).await;
    assert!(code == 0 && text.contains("hot") && text.contains("node-offline"), "{text}{told}");

    let samples = "time_ms,node,device,metric,value\n1000,a,d,temperature,26\n2000,a,d,temperature,28\n9000,a,d,temperature,20\n";
    let given = file("samples.csv", samples);
    let (code, json, _) = on(&site, &["rule", "test", &good, "--samples", &given, "-o", "json"]).await;
    let seen: Value = serde_json::from_str(&json).unwrap();
    let states: Vec<_> =
        seen["items"].as_array().unwrap().iter().map(|seen| (&seen["at_ms"], &seen["state"])).collect();
    assert_eq!(code, 0);
    assert_eq!(states, [(&json!(2_000), &json!("firing")), (&json!(9_000), &json!("resolved"))]);

    let mut node = Node::born(&site, "edge-1").await;
    node.measures(&[(clock::wall_ms(), "dht22", "temperature", 28.5)]).await;
    let alert = alerts(&site, "state=firing&rule=hot", 1).await.remove(0);
    let id = alert["id"].as_str().unwrap();
    let (code, table, _) = on(&site, &["alert", "ls"]).await;
    assert!(code == 0 && table.contains("edge-1/dht22") && table.contains("dht22 is at 28.5"), "{table}");
    let (code, table, _) = on(&site, &["rule", "test", &good, "--since", "1h"]).await;
    assert!(code == 0 && table.contains("1 alerts would have fired"), "{table}");
    let (code, ..) = on(&site, &["alert", "ack", id, "--comment", "mine"]).await;
    assert_eq!(code, 0);
    let (code, text, _) = on(&site, &["alert", "silence", id, "--for", "2h"]).await;
    assert!(code == 0 && text.contains("rule hot, node edge-1, device dht22"), "{text}");
    let (code, text, _) = on(&site, &["alert", "get", id]).await;
    assert!(code == 0 && text.contains("silenced") && text.contains("mine"), "{text}");
    let (code, text, _) = on(&site, &["alert", "silences", "-o", "json"]).await;
    assert!(code == 0 && text.contains("\"rule\": \"hot\""), "{text}");
    assert_eq!(on(&site, &["alert", "unsilence", "1"]).await.0, 0);
    assert_eq!(on(&site, &["alert", "unsilence", "1"]).await.0, 3);
    assert_eq!(on(&site, &["alert", "ack", "999"]).await.0, 3);
    assert_eq!(on(&site, &["alert", "test", "nobody"]).await.0, 3);
    site.stop().await;
}
