//! Commands to devices: told once, when the device hears, and done when it says so.

use std::net::SocketAddr;

use fleet_schemas::command::{Offer, State};
use serde_json::{Value, json};

use crate::{Site, board::Board, hub::offer};

/// With a device that is registered and was never heard.
async fn site(node: &str) -> Site {
    let site = Site::start_with(node, "", |config| {
        config.devices.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        config.devices.open = true;
    })
    .await;
    let request = reqwest::Client::new().put(site.url("/api/v1/devices/shed")).body("{}");
    let answer = request.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(answer.status(), 201);
    site
}

fn restart(number: u64, more: &Value) -> Offer {
    let mut params = json!({"device": "shed", "action": "restart"});
    params.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    offer(number, "device", &params)
}

async fn board(site: &Site) -> Board {
    let board = Board::open(site.agent.devices().unwrap(), "esp").await;
    board.listen("clawland/shed/cmd").await;
    board
}

const TOLD: &str = r#"{"action":"restart"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_is_told_once_it_hears_and_its_answer_ends_the_command() {
    let site = site("device-1").await;
    let id = site.hub.want(restart(1, &Value::Null));
    site.hub.reaches(id, State::Accepted).await;
    // One for somebody else in the same queue need not wait for it.
    let ping = site.hub.want(offer(2, "ping", &Value::Null));
    assert_eq!(site.hub.end(ping).await.0.state, State::Succeeded);
    assert_eq!(site.hub.reports(id).last().unwrap().state, State::Accepted);
    let mut board = board(&site).await;
    assert_eq!(board.hear().await, ("clawland/shed/cmd".to_owned(), TOLD.to_owned()));
    // What it says on its own is no answer.
    board.say("clawland/shed/status", r#"{"status":"online"}"#).await;
    board.say("clawland/shed/status", r#"{"status":"restarted"}"#).await;
    let (end, _) = site.hub.end(id).await;
    assert_eq!(end.state, State::Succeeded);
    let result: Value = end.result.unwrap().deserialized().unwrap();
    assert_eq!(
        result,
        json!({"device": "shed", "written": true, "confirmed": true, "answer": {"status": "restarted"}})
    );
    // Asked again, it is answered and not told again.
    site.hub.insist(restart(1, &Value::Null));
    let later = site.hub.want(restart(3, &json!({"action": "led"})));
    assert_eq!(board.hear().await.1, r#"{"action":"led"}"#);
    board.say("clawland/shed/status", r#"{"status":"unsupported"}"#).await;
    let reason = site.hub.end(later).await.0.reason.unwrap();
    assert!(reason.code == "device_failed" && reason.message.contains("unsupported"), "{reason:?}");
    assert!(board.heard_nothing());
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_confirms_is_not_called_done() {
    let site = site("device-2").await;
    let mut board = board(&site).await;
    let silent = site.hub.want(restart(1, &json!({"answer_s": 0.3})));
    assert_eq!(board.hear().await.1, TOLD);
    let (end, _) = site.hub.end(silent).await;
    let reason = end.reason.unwrap();
    assert_eq!(
        (end.state, reason.code.as_str(), reason.may_have_executed),
        (State::Failed, "no_answer", true)
    );
    let unasked = site.hub.want(restart(2, &json!({"answer_s": 0})));
    let (end, _) = site.hub.end(unasked).await;
    let result: Value = end.result.unwrap().deserialized().unwrap();
    assert_eq!((end.state, &result["confirmed"]), (State::Succeeded, &json!(false)));
    assert_eq!(board.hear().await.1, TOLD);
    let slow = site.hub.want(Offer { timeout_ms: 60_000, ..restart(3, &json!({"answer_s": 50})) });
    site.hub.reaches(slow, State::Running).await;
    assert_eq!(board.hear().await.1, TOLD, "{:?}", site.hub.reports(slow));
    site.hub.cancel(slow);
    let (end, _) = site.hub.end(slow).await;
    assert_eq!((end.state, end.reason.unwrap().may_have_executed), (State::Canceled, true));
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_that_does_not_come_in_time_is_never_told() {
    let site = site("device-3").await;
    let late = site.hub.want(Offer { left_ms: 300, ..restart(1, &Value::Null) });
    let (end, _) = site.hub.end(late).await;
    assert_eq!(end.state, State::Expired);
    assert!(end.reason.unwrap().message.contains("before the device heard"));
    let mut board = board(&site).await;
    let next = site.hub.want(restart(2, &json!({"action": "ping"})));
    assert_eq!(board.hear().await.1, r#"{"action":"ping"}"#);
    board.say("clawland/shed/status", r#"{"status":"pong"}"#).await;
    assert_eq!(site.hub.end(next).await.0.state, State::Succeeded);
    for (number, params, code) in [
        (3, json!({"device": "shed"}), "bad_params"),
        (4, json!({"device": "shed", "payload": "x".repeat(600)}), "too_large"),
        (5, json!({"device": "barn", "action": "restart"}), "unknown_device"),
    ] {
        let id = site.hub.want(offer(number, "device", &params));
        let (end, _) = site.hub.end(id).await;
        assert_eq!((end.state, end.reason.unwrap().code.as_str()), (State::Rejected, code));
    }
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_listener_a_command_for_a_device_is_refused_at_once() {
    let site = Site::start("device-4", "").await;
    let id = site.hub.want(restart(1, &Value::Null));
    let (end, _) = site.hub.end(id).await;
    assert_eq!((end.state, end.reason.unwrap().code.as_str()), (State::Rejected, "no_listener"));
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_starts_again_tells_no_board_twice() {
    let site = site("device-5").await;
    let mut board_one = board(&site).await;
    let slow = restart(1, &json!({"answer_s": 25}));
    let id = site.hub.want(slow);
    assert_eq!(board_one.hear().await.1, TOLD);
    let (hub, folder, config) = (site.hub, site.folder, site.config);
    site.agent.stop().await;
    let agent = fleet_edge_agent::run::start(config).await.unwrap();
    let mut board_two = Board::open(agent.devices().unwrap(), "esp").await;
    board_two.listen("clawland/shed/cmd").await;
    let (end, _) = hub.end(id).await;
    let reason = end.reason.unwrap();
    assert_eq!(
        (end.state, reason.code.as_str(), reason.may_have_executed),
        (State::Failed, "interrupted", true)
    );
    // What comes next is all that it hears.
    let next = hub.want(restart(2, &json!({"action": "led", "answer_s": 0})));
    assert_eq!(hub.end(next).await.0.state, State::Succeeded);
    assert_eq!(board_two.hear().await.1, r#"{"action":"led"}"#);
    assert!(board_two.heard_nothing());
    agent.stop().await;
    drop(folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_whose_connection_breaks_is_waited_for_until_it_answers() {
    let site = site("device-6").await;
    let mut first = board(&site).await;
    let id = site.hub.want(Offer { timeout_ms: 60_000, ..restart(1, &json!({"answer_s": 50})) });
    assert_eq!(first.hear().await.1, TOLD);
    // It restarts, and says so in its next session.
    first.client.disconnect().await.unwrap();
    let second = board(&site).await;
    second.say("clawland/shed/status", r#"{"status":"restarted"}"#).await;
    assert_eq!(site.hub.end(id).await.0.state, State::Succeeded);
    site.agent.stop().await;
}
