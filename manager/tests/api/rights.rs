//! Who may do what: every route by every kind of caller, over HTTP.

use fleet_manager::{
    api::{self, rights::Needs},
    core::{
        identity::{Change, Role},
        registry::Intent,
    },
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::given::{Node, Site, operator, sign_greeter};

/// Nothing of these may be decided by less than an admin.
const ADMINS: [&str; 9] = [
    "join-tokens",
    "field-tokens",
    "operators",
    "access",
    "audit",
    "approve",
    "revoke",
    "backup",
    "log-level",
];

#[test]
fn looking_takes_a_viewer_changing_an_operator_and_letting_in_an_admin() {
    let table = api::table();
    for right in &table {
        let below = right.path.strip_prefix("/api/v1/");
        let Some(below) = below else {
            page(right);
            continue;
        };
        // Who may roll out may approve; that it is another person is asked beside.
        let lets_in = !below.starts_with("rollouts/") && below.split('/').any(|part| ADMINS.contains(&part));
        // As revoking it, and it cannot be taken back.
        let removes = right.method == Method::DELETE && below == "nodes/{id}";
        let admin = lets_in || removes || below.starts_with("pki");
        let least = match (admin, right.method == Method::GET) {
            // Reading by POST: the question is too long for a path.
            _ if ["pki/ca.pem", "prom/read"].contains(&below) => Role::Viewer,
            (true, _) => Role::Admin,
            (false, true) => Role::Viewer,
            (false, false) => Role::Operator,
        };
        assert_eq!(right.needs, Needs::Role(least), "{right:?}");
    }
    for path in ["/livez", "/readyz", "/version", "/openapi.json", "/metrics"] {
        assert!(table.iter().any(|right| right.path == path), "{path}");
    }
}

/// Of people's pages: looking takes a viewer's session, changing an operator's, and who may get in is an admin's.
fn page(right: &api::rights::Right) {
    let open = ["/livez", "/readyz", "/version", "/metrics", "/openapi.json", "/login", "/assets/{file}"];
    let least = match right.path {
        path if open.contains(&path) => {
            return assert!(matches!(right.needs, Needs::Nothing | Needs::Here), "{right:?}");
        }
        "/access" | "/audit" => Role::Admin,
        "/logout" => Role::Viewer,
        _ if right.method == Method::GET => Role::Viewer,
        _ => Role::Operator,
    };
    assert_eq!(right.needs, Needs::Session(least), "{right:?}");
}

/// A request that goes as far as its arguments, and no further.
fn harmless(method: &Method, path: &str) -> (String, Option<&'static str>) {
    let path = path.replace("{id}", "nobody").replace("{name}", "nothing").replace("{digest}", "00");
    let path = path.replace("{kind}", "site");
    match *method {
        // Any object is a document.
        _ if path.contains("/config") => (format!("{path}?nonsense=1"), Some("{}")),
        Method::GET => (format!("{path}?nonsense=1"), None),
        Method::DELETE => (format!("{path}?nonsense=1"), None),
        _ => (path, Some(r#"{"nonsense": 1}"#)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_closed_to_whoever_lacks_the_role() {
    let site = Site::start().await;
    let now_ms = site.hub.clock().now().wall_ms;
    let viewer = operator(&site.hub, "viewer", Role::Viewer, None).await;
    let changer = operator(&site.hub, "changer", Role::Operator, Some(now_ms + 3_600_000)).await;
    let expired = operator(&site.hub, "expired", Role::Admin, Some(now_ms - 1)).await;
    let removed = operator(&site.hub, "removed", Role::Admin, None).await;
    let gone = Intent::Identity(Change::RemoveOperator("removed".to_owned()));
    site.hub.intend("hub", gone).await.unwrap();
    let made = site.get("/api/v1/audit").await;

    let callers = [
        (None, None),
        (Some(viewer.as_str()), Some(Role::Viewer)),
        (Some(&changer), Some(Role::Operator)),
        (Some(&site.admin), Some(Role::Admin)),
        (Some(&expired), None),
        (Some(&removed), None),
        (Some("fleet_nonsense"), None),
    ];
    for right in api::table() {
        // Of people's pages: a token is none of theirs, and who has no session is sent to begin one.
        if matches!(right.needs, Needs::Session(_)) {
            let client =
                reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
            let path = site.url(&right.path.replace("{id}", "nobody"));
            for token in [None, Some(&site.admin)] {
                let request = client.request(right.method.clone(), &path);
                let request =
                    token.map(|token| request.try_clone().unwrap().bearer_auth(token)).unwrap_or(request);
                let answer = request.send().await.unwrap();
                let to = answer.headers().get("location").and_then(|to| to.to_str().ok()).unwrap_or_default();
                assert_eq!(
                    (answer.status(), to.starts_with("/login")),
                    (StatusCode::SEE_OTHER, true),
                    "{right:?}"
                );
            }
            continue;
        }
        let (path, body) = harmless(&right.method, right.path);
        for (token, role) in callers {
            let (status, answer) = site.ask_as(token, right.method.clone(), &path, body).await;
            let open = match right.needs {
                Needs::Nothing | Needs::Here => true,
                Needs::Role(least) | Needs::Session(least) => role.is_some_and(|role| role >= least),
            };
            let told = format!("{right:?} by {role:?}: {status} {answer}");
            match (open, role, token) {
                (true, ..) => assert!(![401, 403, 429].contains(&status.as_u16()), "{told}"),
                (false, Some(_), _) => assert_eq!(status, StatusCode::FORBIDDEN, "{told}"),
                (false, None, None) => assert_eq!(status, StatusCode::UNAUTHORIZED, "{told}"),
                // The address has tried too often by then.
                (false, None, Some(_)) => assert!([401, 429].contains(&status.as_u16()), "{told}"),
            }
            if !open {
                assert_eq!(answer["status"], status.as_u16(), "a problem: {told}");
                assert!(!token.is_some_and(|token| answer.to_string().contains(token)), "{told}");
            }
        }
    }
    assert_eq!(site.get("/api/v1/audit").await, made, "what is refused leaves no trail");
    let (_, metrics) = site.ask_as(None, Method::GET, "/metrics", None).await;
    for reason in ["no_token", "bad_token", "role", "too_many"] {
        let line = format!("fleet_http_denied_total{{reason=\"{reason}\"}} ");
        let found = metrics.as_str().unwrap().lines().find_map(|at| at.strip_prefix(&line));
        assert!(found.is_some_and(|count| count != "0"), "{reason}");
    }
    site.stop().await;
}

/// What an operator who is bound may change all the same: it reaches no node.
const HARMLESS: [&str; 3] = [
    "POST /api/v1/artifacts",
    "PATCH /api/v1/artifacts/{digest}/upload",
    "POST /api/v1/receivers/{name}/test",
];

/// A request that changes something of `node` at `site`, if its holder may; the alerts are of that node.
fn reaching(right: &api::rights::Right, node: &str, site: &str) -> (String, String) {
    let path = right.path.replace("{kind}/{name}", &format!("site/{site}"));
    let path = match right.path {
        path if path.starts_with("/api/v1/sites/") => path.replace("{name}", site),
        path if path.starts_with("/api/v1/nodes/{id}") => path.replace("{id}", node),
        path if path.starts_with("/api/v1/rollouts/{id}") => path.replace("{id}", "greeter-1.0.0-1"),
        _ => path,
    };
    let path = path.replace("{name}", "kit").replace("{digest}", &"00".repeat(32));
    let body = match (right.method.as_str(), right.path) {
        (_, "/api/v1/commands") => json!({"nodes": [node], "kind": "ping"}),
        (_, "/api/v1/rollouts") => json!({"release": "greeter@1.0.0", "nodes": [node]}),
        (_, "/api/v1/silences") => json!({"node": node, "for_s": 60}),
        (_, "/api/v1/groups/{name}") => json!({"selector": "site"}),
        (_, "/api/v1/sites/{name}") => json!({"tz": "Asia/Tokyo"}),
        (_, "/api/v1/nodes/{id}") => json!({"name": "x"}),
        (_, "/api/v1/releases/metadata") => json!({"targets": "{}"}),
        ("POST", path) if path.ends_with("/rollback") && path.contains("config") => json!({"to": 1}),
        ("PUT" | "PATCH", path) if path.contains("config") => json!({"apps": {"x": 1}}),
        _ => json!({}),
    };
    (path, body.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_operator_changes_nothing_outside_by_any_route() {
    let site = Site::start().await;
    let _nodes = [Node::born(&site, "near").await, Node::born(&site, "far").await];
    for (node, place) in [("near", "berlin"), ("far", "tokyo")] {
        let body = json!({ "site": place }).to_string();
        site.ask(Method::PATCH, &format!("/api/v1/nodes/{node}"), Some(&body)).await;
    }
    // So that there is something to return to, and to remove.
    for layer in ["fleet", "site/tokyo"] {
        for n in 0..2 {
            let body = json!({"apps": {"n": n}}).to_string();
            let (status, answer) =
                site.ask(Method::PUT, &format!("/api/v1/config/{layer}"), Some(&body)).await;
            assert!(status.is_success(), "{layer}: {answer}");
        }
    }
    let schema = site.ask(Method::PUT, "/api/v1/config-schema", Some(r#"{"type": "object"}"#)).await;
    assert!(schema.0.is_success(), "{}", schema.1);
    sign_greeter(&site.hub);
    let all = json!({"release": "greeter@1.0.0", "all": true, "terms": {"approve": "any"}}).to_string();
    assert_eq!(site.ask(Method::POST, "/api/v1/rollouts", Some(&all)).await.0, StatusCode::CREATED);
    let body = json!({"name": "ben", "role": "operator", "on": "site=berlin"}).to_string();
    let (_, made) = site.ask(Method::POST, "/api/v1/operators", Some(&body)).await;
    let ben = made["token"].as_str().unwrap().to_owned();
    let me = site.ask_as(Some(&ben), Method::GET, "/api/v1/whoami", None).await.1;
    assert_eq!((&me["name"], &me["on"]), (&json!("ben"), &json!("site=berlin")));
    let changes = async || {
        let trail = site.get("/api/v1/audit?who=ben").await;
        trail["items"].as_array().unwrap().len()
    };
    // Every route that changes something: what is new has to be put here, or it fails.
    let mut refused = 0;
    for right in api::table().into_iter().filter(|right| right.needs == Needs::Role(Role::Operator)) {
        let told = format!("{} {}", right.method, right.path);
        let is_alert = right.path.starts_with("/api/v1/alerts/") || right.path == "/api/v1/silences/{id}";
        // Of alerts there are none here, and of commands none that is open: those are tried below it.
        let of_one =
            ["/api/v1/commands/{id}/cancel", "/api/v1/commands/{id}/approve-held"].contains(&right.path);
        if HARMLESS.contains(&told.as_str()) || is_alert || of_one {
            continue;
        }
        let (path, body) = reaching(&right, "far", "tokyo");
        let is_text = right.path.starts_with("/api/v1/rules") || right.path == "/api/v1/nodes/import";
        let (kind, body) = match right.path {
            "/api/v1/nodes/import" => ("text/csv", "id,name\nfar,x\n".to_owned()),
            _ if is_text => ("application/yaml", "rules: []\n".to_owned()),
            _ => ("application/json", body),
        };
        // Whoever only asks what would come of it is told the same.
        let is_told_dry = right.path.starts_with("/api/v1/config")
            || ["/api/v1/nodes/import", "/api/v1/rollouts"].contains(&right.path);
        for query in ["", "?dry_run=true"].into_iter().take(1 + usize::from(is_told_dry)) {
            let url = site.url(&format!("{path}{query}"));
            let request = reqwest::Client::new().request(right.method.clone(), url).bearer_auth(&ben);
            let answer = request.header("content-type", kind).body(body.clone()).send().await.unwrap();
            let (status, text) = (answer.status(), answer.text().await.unwrap());
            assert_eq!(status, StatusCode::FORBIDDEN, "{told}{query}: {text}");
            assert!(text.contains("ben may change only what matches site=berlin"), "{told}{query}: {text}");
        }
        refused += 1;
    }
    assert!(refused > 20, "{refused}");
    assert_eq!(changes().await, 0, "nothing of it was done");
    // Looking is everybody's, and what matches is theirs.
    assert_eq!(site.ask_as(Some(&ben), Method::GET, "/api/v1/nodes/far", None).await.0, StatusCode::OK);
    let as_ben = async |method: Method, path: &str, body: serde_json::Value| {
        let body = body.to_string();
        let (status, answer) = site.ask_as(Some(&ben), method, path, Some(&body)).await;
        assert!(status.is_success(), "{path}: {answer}");
    };
    as_ben(Method::PATCH, "/api/v1/nodes/near", json!({"name": "door"})).await;
    as_ben(Method::POST, "/api/v1/commands", json!({"nodes": ["near"], "kind": "ping"})).await;
    as_ben(Method::PUT, "/api/v1/config/site/berlin", json!({"apps": {"x": 1}})).await;
    as_ben(Method::PUT, "/api/v1/sites/berlin", json!({"tz": "Europe/Berlin"})).await;
    as_ben(Method::POST, "/api/v1/silences", json!({"site": "berlin", "for_s": 60})).await;
    assert_eq!(site.get("/api/v1/nodes/near").await["tz"], "Europe/Berlin");
    assert!(changes().await >= 4);
    let out =
        site.ask_as(Some(&ben), Method::PATCH, "/api/v1/nodes/near", Some(r#"{"site": "tokyo"}"#)).await;
    assert_eq!(out.0, StatusCode::FORBIDDEN);
    assert!(out.1["detail"].as_str().unwrap().contains("near would not any more"), "{}", out.1);
    // A token says when it was used, and for whom.
    let used = async || {
        let list = site.get("/api/v1/operators").await;
        list["items"].as_array().unwrap().iter().find(|one| one["name"] == "ben").cloned().unwrap()
    };
    let ben = used().await;
    assert!(ben["last_used_ms"].is_i64() && ben["on"] == "site=berlin", "{ben}");
    for wrong in [
        json!({"name": "x", "role": "admin", "on": "site=a"}),
        json!({"name": "x", "role": "operator", "on": "state=online"}),
    ] {
        let (status, answer) = site.ask(Method::POST, "/api/v1/operators", Some(&wrong.to_string())).await;
        assert_eq!(
            (status, &answer["errors"][0]["pointer"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!("/on"))
        );
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_how_to_ask() {
    let site = Site::start().await;
    let url = site.url("/api/v1/nodes");
    let client = reqwest::Client::new();
    let answer = client.get(&url).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"fleet\"");
    let problem: serde_json::Value = answer.json().await.unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("fleet login"), "{problem}");
    let answer = client.get(&url).bearer_auth("fleet_wrong").send().await.unwrap();
    assert!(answer.headers()["www-authenticate"].to_str().unwrap().contains("invalid_token"));
    let viewer = operator(&site.hub, "eve", Role::Viewer, None).await;
    let answer =
        client.delete(site.url("/api/v1/operators/admin")).bearer_auth(&viewer).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let problem: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(
        problem["detail"].as_str().unwrap().split(';').next(),
        Some("eve is viewer and this needs admin")
    );
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guesser_is_slowed_and_nobody_else() {
    let site = Site::start().await;
    let guess = async || {
        let request = reqwest::Client::new().get(site.url("/api/v1/nodes")).bearer_auth("fleet_guess");
        request.send().await.unwrap()
    };
    let mut refused = Vec::new();
    let slowed = loop {
        let answer = guess().await;
        match answer.status() {
            StatusCode::UNAUTHORIZED => refused.push(()),
            _ => break answer,
        }
        assert!(refused.len() < 100, "nobody is slowed");
    };
    assert_eq!(slowed.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(slowed.headers().contains_key("retry-after"));
    site.get("/api/v1/nodes").await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_may_be_looked_at_without_a_token_from_here_only() {
    let data = tempfile::tempdir().unwrap();
    let disk = std::sync::Arc::new(fleet_manager::store::disk::Folder::new(data.path()));
    let site = Site::with(disk, data, false, true).await;
    let look = |path: &str| reqwest::Client::new().get(site.url(path));
    assert_eq!(look("/api/v1/nodes").send().await.unwrap().status(), StatusCode::OK);
    let proxied = look("/api/v1/nodes").header("x-forwarded-for", "192.0.2.1");
    assert_eq!(proxied.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let proxied = look("/metrics").header("forwarded", "for=192.0.2.1");
    assert_eq!(proxied.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let change = site.ask_as(None, Method::PUT, "/api/v1/groups/x", Some(r#"{"selector": "a"}"#)).await;
    assert_eq!(change.0, StatusCode::FORBIDDEN);
    // A wrong token is no better than none, and is not mistaken for none.
    assert_eq!(
        look("/api/v1/nodes").bearer_auth("x").send().await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        site.ask_as(None, Method::GET, "/api/v1/whoami", None).await.1,
        json!({"name": "anonymous", "role": "viewer", "expires_ms": null})
    );
    site.stop().await;
}
