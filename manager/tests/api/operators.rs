//! Operators, join tokens, tools, certificates and the trail: what is made, shown, kept and taken away.

use std::{
    io,
    sync::{Arc, LazyLock, Mutex},
};

use base64::Engine as _;
use fleet_manager::core::identity::Role;
use fleet_schemas::enrol::JoinToken;
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::given::{Node, PATIENCE, Site, operator};

async fn made(site: &Site, path: &str, body: &Value) -> Value {
    let (status, value) = site.ask(Method::POST, path, Some(&body.to_string())).await;
    assert_eq!(status, StatusCode::CREATED, "{path}: {value}");
    value
}

/// Who did what to what, newest first, below the hub's own.
async fn trail(site: &Site, query: &str) -> Vec<[String; 3]> {
    let list = site.get(&format!("/api/v1/audit{query}")).await;
    let entries = list["items"].as_array().unwrap().iter();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let told = entries.map(|entry| ["who", "action", "target"].map(|key| text(entry, key)));
    told.filter(|[who, ..]| who != "hub").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_one_entry_of_the_trail() {
    let site = Site::start().await;
    let _node = Node::born(&site, "edge-1").await;
    let ada = operator(&site.hub, "ada", Role::Operator, None).await;
    let as_ada = async |method, path, body| {
        let (status, value) = site.ask_as(Some(&ada), method, path, Some(body)).await;
        assert!(status.is_success(), "{path}: {value}");
    };
    as_ada(Method::PATCH, "/api/v1/nodes/edge-1", r#"{"site": "berlin"}"#).await;
    as_ada(Method::PUT, "/api/v1/groups/here", r#"{"selector": "site=berlin"}"#).await;
    let token = made(&site, "/api/v1/join-tokens", &json!({"labels": {"site": "berlin"}, "uses": 3})).await;
    let bob = made(&site, "/api/v1/operators", &json!({"name": "bob", "role": "viewer", "ttl_s": 60})).await;
    made(&site, "/api/v1/access", &json!({"name": "red", "read": ["fleet/v1/hub/#"]})).await;
    let revoked =
        site.ask(Method::POST, "/api/v1/nodes/edge-1/revoke", Some(r#"{"reason": "stolen"}"#)).await;
    let rotated = site.ask(Method::POST, "/api/v1/pki/rotate", Some(r#"{"what": "server"}"#)).await;
    assert_eq!((revoked.0, rotated.0), (StatusCode::OK, StatusCode::OK), "{revoked:?} {rotated:?}");
    let id = token["id"].as_str().unwrap();
    for path in [&format!("join-tokens/{id}"), "operators/bob", "access/red"] {
        let (status, _) = site.ask(Method::DELETE, &format!("/api/v1/{path}"), None).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{path}");
        let (status, _) = site.ask(Method::DELETE, &format!("/api/v1/{path}"), None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}, twice");
    }
    // Refused: no trail.
    for (path, body) in [
        ("operators", json!({"name": "ada", "role": "admin"})),
        ("operators", json!({"name": "a b", "role": "admin"})),
        ("access", json!({"name": "blue", "read": ["a/#/b"]})),
        ("access", json!({"name": "blue", "write": ["fleet/v1/hub/x"]})),
        ("access", json!({"name": "local", "read": ["a"]})),
        ("join-tokens", json!({"ttl_s": 0})),
        ("join-tokens", json!({"replace": "nobody"})),
        ("nodes/nobody/revoke", json!({})),
        ("nodes/edge-1/approve", json!({})),
        ("pki/rotate", json!({"what": "ca", "finish": true})),
    ] {
        let (status, value) =
            site.ask(Method::POST, &format!("/api/v1/{path}"), Some(&body.to_string())).await;
        assert!([404, 409, 422].contains(&status.as_u16()), "{path} {body}: {status} {value}");
    }
    let expected = [
        ["operator admin", "access.remove", "red"],
        ["operator admin", "operator.remove", "bob"],
        ["operator admin", "join_token.remove", id],
        ["operator admin", "pki.rotate", "server"],
        ["operator admin", "node.revoke", "edge-1"],
        ["operator admin", "access.create", "red"],
        ["operator admin", "operator.create", "bob"],
        ["operator admin", "join_token.create", id],
        ["operator ada", "group.put", "here"],
        ["operator ada", "node.patch", "edge-1"],
    ];
    assert_eq!(trail(&site, "").await, expected);
    assert_eq!(trail(&site, "?who=ada").await, expected[8..]);
    assert_eq!(trail(&site, "?action=node").await, [expected[4], expected[9]]);
    assert_eq!(trail(&site, "?action=node.revoke&who=operator%20admin").await, [expected[4]]);
    assert!(trail(&site, "?since_ms=9000000000000").await.is_empty());
    let first = site.get("/api/v1/audit?limit=4").await;
    let next = first["next"].as_str().unwrap();
    assert_eq!(trail(&site, &format!("?limit=6&cursor={next}")).await, expected[4..]);
    assert!(bob["token"].as_str().unwrap().starts_with("fleet_"));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_shown_as_such() {
    let site = Site::start().await;
    let _node = Node::born(&site, "edge-1").await;
    assert_eq!(site.get("/api/v1/nodes/edge-1").await["enrolment"], json!({"state": "none"}));
    let (_, node) =
        site.ask(Method::POST, "/api/v1/nodes/edge-1/revoke", Some(r#"{"reason": "stolen"}"#)).await;
    assert_eq!(node["enrolment"]["state"], "revoked");
    assert_eq!(node["enrolment"]["reason"], "stolen");
    assert!(node["enrolment"]["revoked_ms"].is_i64());
    assert_eq!(site.get("/api/v1/nodes").await["items"][0]["enrolment"], node["enrolment"]);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_tells_a_machine_which_ca_to_trust() {
    let site = Site::start().await;
    let body = json!({"ttl_s": 60, "uses": 2, "labels": {"rack": "1"}, "approve": true});
    let made = made(&site, "/api/v1/join-tokens", &body).await;
    let token: JoinToken = made["token"].as_str().unwrap().parse().unwrap();
    let pki = site.get("/api/v1/pki").await;
    assert_eq!(pki["authorities"][0]["pin"], token.pin.to_string());
    assert_eq!((&pki["stage"], &pki["nodes_waiting_count"]), (&json!("settled"), &json!(0)));
    let (_, pem) = site.ask(Method::GET, "/api/v1/pki/ca.pem", None).await;
    assert!(pem.as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let list = site.get("/api/v1/join-tokens").await;
    assert_eq!(list["items"][0]["state"], "active");
    assert_eq!(list["items"][0]["id"], token.id);
    assert_eq!(
        (&list["items"][0]["used_by"], &list["items"][0]["created_by"]),
        (&json!([]), &json!("admin"))
    );
    let (status, rotated) = site.ask(Method::POST, "/api/v1/pki/rotate", Some(r#"{"what": "ca"}"#)).await;
    assert_eq!((status, rotated["authorities"].as_array().unwrap().len()), (StatusCode::OK, 2));
    assert_eq!(
        site.ask(Method::POST, "/api/v1/pki/rotate", Some(r#"{"what": "ca"}"#)).await.0,
        StatusCode::CONFLICT
    );
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_creation_gives_the_same_secret_to_the_same_operator_only() {
    let site = Site::start().await;
    let other = operator(&site.hub, "other", Role::Admin, None).await;
    let create = async |token: &str| {
        let request = reqwest::Client::new().post(site.url("/api/v1/join-tokens")).bearer_auth(token);
        let request = request.header("idempotency-key", "k").header("content-type", "application/json");
        let answer = request.body("{}").send().await.unwrap();
        assert_eq!(
            (answer.status(), &answer.headers()["cache-control"]),
            (StatusCode::CREATED, &"no-store".parse().unwrap())
        );
        answer.json::<Value>().await.unwrap()
    };
    let first = create(&site.admin).await;
    assert_eq!(create(&site.admin).await, first);
    assert_ne!(create(&other).await["token"], first["token"]);
    assert_eq!(site.get("/api/v1/join-tokens").await["items"].as_array().unwrap().len(), 2);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_operator_is_out_at_once_streams_included() {
    let site = Site::start().await;
    let made = made(&site, "/api/v1/operators", &json!({"name": "eve", "role": "viewer"})).await;
    let token = made["token"].as_str().unwrap();
    let (status, who) = site.ask_as(Some(token), Method::GET, "/api/v1/whoami", None).await;
    assert_eq!((status, who), (StatusCode::OK, json!({"name": "eve", "role": "viewer", "expires_ms": null})));
    let open = |path| reqwest::Client::new().get(site.url(path)).bearer_auth(token).send();
    let (stream, feed) = (open("/api/v1/stream").await.unwrap(), open("/api/v1/feed").await.unwrap());
    site.ask(Method::DELETE, "/api/v1/operators/eve", None).await;
    assert_eq!(
        site.ask_as(Some(token), Method::GET, "/api/v1/whoami", None).await.0,
        StatusCode::UNAUTHORIZED
    );
    let mut chunks = stream.bytes_stream();
    let ends = async {
        let mut text = String::new();
        while let Some(Ok(chunk)) = chunks.next().await {
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
        text
    };
    let told = tokio::time::timeout(PATIENCE, ends).await.expect("the stream ends");
    assert!(told.contains("event: cut"), "{told}");
    // A quiet feed looks up when it is time for a mark.
    let told = tokio::time::timeout(PATIENCE, feed.text()).await.expect("the feed ends").unwrap();
    assert!(told.lines().last().is_some_and(|last| last.contains("\"cut\"")), "{told}");
    let (status, problem) = site.ask(Method::DELETE, "/api/v1/operators/admin", None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "the last admin stays: {problem}");
    site.stop().await;
}

/// What this process logs, all of it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("info,fleet_manager=trace,rumqttd=off")
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    log
});

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_the_answer_that_makes_them_and_nowhere_else() {
    let log = LOG.clone();
    let site = Site::start().await;
    let token = made(&site, "/api/v1/join-tokens", &json!({})).await["token"].as_str().unwrap().to_owned();
    let operator = made(&site, "/api/v1/operators", &json!({"name": "bob", "role": "viewer"})).await;
    let access = made(&site, "/api/v1/access", &json!({"name": "red", "read": ["fleet/v1/hub/#"]})).await;
    let secret = token.rsplit('.').next().unwrap().to_owned();
    let raw = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&secret).unwrap();
    let secrets = [
        secret,
        operator["token"].as_str().unwrap().to_owned(),
        access["password"].as_str().unwrap().to_owned(),
    ];
    assert_eq!(
        site.ask_as(Some(&secrets[0]), Method::GET, "/api/v1/nodes", None).await.0,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(site.ask_as(Some(&secrets[1]), Method::GET, "/api/v1/nodes", None).await.0, StatusCode::OK);

    let mut told = String::new();
    for path in ["join-tokens", "operators", "access", "audit", "status", "pki", "nodes"] {
        told.push_str(&site.get(&format!("/api/v1/{path}")).await.to_string());
    }
    told.push_str(site.ask(Method::GET, "/metrics", None).await.1.as_str().unwrap());
    for name in ["bob", "red"] {
        assert!(told.contains(name), "{name} is listed");
    }
    let state = std::fs::read(site.data.path().join("state.redb")).unwrap();
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(!logged.is_empty(), "the log is looked at");
    for secret in &secrets {
        assert!(!told.contains(secret), "shown");
        assert!(!logged.contains(secret), "logged");
        assert!(!state.windows(secret.len()).any(|at| at == secret.as_bytes()), "stored");
    }
    assert!(!state.windows(raw.len()).any(|at| at == raw), "stored");
    assert!(state.windows(9).any(|at| at == b"$argon2id"), "a password is kept as a slow hash");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_may_have_a_certificate_for_a_key_that_the_hub_never_sees() {
    let site = Site::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let body = json!({"name": "red", "read": ["fleet/v1/hub/#"], "csr": csr});
    let made = made(&site, "/api/v1/access", &body).await;
    assert!(made["certificate"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE"));
    assert!(made["ca"].is_string() && made.get("password").is_none(), "{made}");
    assert_eq!(site.get("/api/v1/access").await["items"][0]["by"], "certificate");
    let body = json!({"name": "blue", "read": ["a"], "csr": "nonsense"}).to_string();
    let (status, problem) = site.ask(Method::POST, "/api/v1/access", Some(&body)).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!("/csr")));
    site.stop().await;
}
