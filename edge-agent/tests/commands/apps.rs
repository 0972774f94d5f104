//! Programs on the node: they ask for commands, and do those that are theirs.

use fleet_schemas::{
    command::{Offer, State},
    event::Severity,
};
use serde_json::{Value, json};

use crate::{Site, get_json, hub::offer, post, until};

const ECHO: &str = "[command.echo]\nprogram = \"echo\"\nargs = [\"{word}\"]\nparams.word.type = \"word\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_takes_extends_and_reports() {
    let site = Site::start("apps", "").await;
    let take = |body: Value| {
        let url = site.url("/api/v1/local/take");
        async move { post(&url, body).await }
    };
    assert_eq!(take(json!({"wait_s": 0})).await.0, 204, "there is none");
    let (waiting, id) = tokio::join!(take(json!({"kinds": ["blink"], "wait_s": 30, "lease_s": 20})), async {
        site.hub.want(offer(1, "local", &json!({"kind": "blink", "times": 3})))
    });
    let (status, taken) = waiting;
    assert_eq!((status, &taken["id"], &taken["params"]["times"]), (200, &json!(id.to_string()), &json!(3)));
    site.hub.reaches(id, State::Running).await;
    let url = |word: &str| site.url(&format!("/api/v1/local/{id}/{word}"));
    assert_eq!(post(&url("extend"), json!({"lease_s": 40})).await.0, 204);
    let body = json!({"state": "succeeded", "result": {"blinked": 3}, "output": "on off\n", "exit_code": 0});
    assert_eq!(post(&url("report"), body.clone()).await.0, 204);
    let (end, output) = site.hub.end(id).await;
    assert_eq!((end.state, output.as_str(), end.exit_code), (State::Succeeded, "on off\n", Some(0)));
    assert_eq!(post(&url("report"), body).await.0, 409, "it is over");
    assert_eq!(post(&url("extend"), json!({})).await.0, 409);
    // Another kind is for another app.
    let other = site.hub.want(offer(2, "local", &json!({"kind": "beep"})));
    site.hub.reaches(other, State::Accepted).await;
    assert_eq!(take(json!({"kinds": ["blink"]})).await.0, 204);
    site.hub.cancel(other);
    assert_eq!(site.hub.end(other).await.0.state, State::Canceled);
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_runs_out_is_offered_again_or_lost() {
    let site = Site::start("leases", "").await;
    let take = async || post(&site.url("/api/v1/local/take"), json!({"wait_s": 10, "lease_s": 0.2})).await;
    let lost = site.hub.want(offer(1, "local", &json!({})));
    assert_eq!(take().await.0, 200);
    let end = site.hub.end(lost).await.0;
    assert_eq!((end.state, end.reason.unwrap().code.as_str()), (State::Failed, "lease_lost"));
    let again = site.hub.want(Offer { idempotent: true, ..offer(2, "local", &json!({})) });
    for _ in 0..2 {
        assert_eq!(take().await.1["id"], json!(again.to_string()));
    }
    let url = site.url(&format!("/api/v1/local/{again}/report"));
    // The lease may have run out by now: then it is taken a last time.
    if post(&url, json!({"state": "failed", "message": "no bulb"})).await.0 == 409 {
        assert_eq!(take().await.0, 200);
        post(&url, json!({"state": "failed", "message": "no bulb"})).await;
    }
    let end = site.hub.end(again).await.0;
    assert_eq!(end.state, State::Failed);
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_on_the_node_asks_and_the_hub_hears_of_the_end() {
    let site = Site::start("asks", ECHO).await;
    let body = json!({"kind": "exec", "params": {"name": "echo", "args": {"word": "hi"}}});
    let (status, answer) = post(&site.url("/api/v1/command"), body).await;
    assert_eq!((status, &answer["status"], &answer["command"]), (202, &json!("accepted"), &json!("exec")));
    let url = site.url(&format!("/api/v1/commands/{}", answer["id"].as_str().unwrap()));
    let over = until("an end", async || get_json(&url).await.1, |one| one["state"] == "succeeded").await;
    assert_eq!(
        (&over["output"], &over["exit_code"], &over["origin"]),
        (&json!("hi\n"), &json!(0), &json!("node"))
    );
    let told =
        |events: &Vec<fleet_schemas::event::Event>| events.iter().any(|e| e.kind.as_str() == "local_command");
    let events = until("an event", async || site.hub.events(), told).await;
    assert_eq!((events[0].severity, events[0].id.as_deref()), (Severity::Info, answer["id"].as_str()));
    // The words of older agents.
    assert_eq!(post(&site.url("/api/command"), json!({"type": "ping", "payload": {}})).await.0, 202);
    let (status, queue) = get_json(&site.url("/api/v1/queue")).await;
    assert!(status == 200 && queue["running"].is_array() && queue["limit"] == 1_000, "{queue}");
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_told_by_status_and_field() {
    let site = Site::start("mistakes", ECHO).await;
    for (path, body, status, says) in [
        ("command", "{", 400, "not JSON"),
        ("command", "{}", 422, "kind"),
        ("command", r#"{"kind":"dance"}"#, 422, "ping"),
        ("command", r#"{"kind":"exec","params":{"argv":["rm","-rf","/"]}}"#, 403, "commands.toml"),
        ("command", r#"{"kind":"exec","params":{"name":"echo","args":{"word":"-n"}}}"#, 422, "`-`"),
        ("command", r#"{"kind":"ping","ttl_s":-1}"#, 422, "/ttl_s"),
        ("command", r#"{"kind":"ping","timeout_s":0}"#, 422, "/timeout_s"),
        ("local/take", r#"{"wait_s":61}"#, 422, "/wait_s"),
        ("local/nonsense/extend", "{}", 404, "command id"),
        ("local/0194a3f0-5b6c-7def-8123-456789abcdef/extend", "{}", 409, "not yours"),
        ("local/0194a3f0-5b6c-7def-8123-456789abcdef/report", r#"{"state":"maybe"}"#, 422, "state"),
    ] {
        let (found, answer) = post(&site.url(&format!("/api/v1/{path}")), body).await;
        let text = answer.to_string();
        assert!(found == status && (text.contains(says) || says == "state"), "{path} {body}: {found} {text}");
    }
    let unknown = site.url("/api/v1/commands/0194a3f0-5b6c-7def-8123-456789abcdef");
    assert_eq!(get_json(&unknown).await.0, 404);
    let large = json!({"kind": "local", "params": {"x": "x".repeat(70_000)}});
    assert_eq!(post(&site.url("/api/v1/command"), large).await.0, 422);
    site.agent.stop().await;
}
