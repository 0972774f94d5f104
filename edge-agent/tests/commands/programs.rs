//! What the hub asks for and the node does, or refuses.

use std::time::Duration;

use fleet_schemas::{
    MetricName,
    command::{Offer, State},
    limits,
};
use serde_json::{Value, json};

use crate::{Site, hub::offer, until};

/// A shell stands for any program here: the agent itself knows none.
const SHELL: &str = r#"
[command.sh]
program = "/bin/sh"
args = ["-c", "{script}"]
params.script.type = "text"
"#;

fn script(number: u64, text: &str) -> Offer {
    offer(number, "exec", &json!({"name": "sh", "args": {"script": text}}))
}

fn json_of(value: &ciborium::Value) -> Value {
    value.deserialized().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_answers_in_its_way() {
    let site = Site::start(
        "kinds",
        "[command.echo]\nprogram = \"echo\"\nargs = [\"{word}\"]\nparams.word.type = \"word\"",
    )
    .await;
    let ping = site.hub.want(offer(1, "ping", &Value::Null));
    let echo = site.hub.want(offer(2, "exec", &json!({"argv": ["echo", "hello"]})));
    let query = site.hub.want(offer(3, "query", &json!({"what": "status"})));
    let (end, _) = site.hub.end(ping).await;
    let result = json_of(end.result.as_ref().unwrap());
    assert!(
        end.state == State::Succeeded && result["time_ms"].is_i64() && result["up_ms"].is_u64(),
        "{result}"
    );
    let states: Vec<_> = site.hub.reports(ping).iter().map(|report| report.state).collect();
    assert_eq!(states, [State::Accepted, State::Running, State::Succeeded]);
    let (end, output) = site.hub.end(echo).await;
    assert_eq!((end.state, end.exit_code, output.as_str()), (State::Succeeded, Some(0), "hello\n"));
    let (end, _) = site.hub.end(query).await;
    assert_eq!(json_of(end.result.as_ref().unwrap())["node_id"], json!("kinds"));
    for what in ["outbox", "system"] {
        let query =
            site.hub.want(offer(if what == "system" { 5 } else { 4 }, "query", &json!({"what": what})));
        assert!(site.hub.end(query).await.0.result.is_some(), "{what}");
    }
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_allowed_is_refused_with_the_lines_that_would_allow_it() {
    let site = Site::start("refusals", "").await;
    for (number, kind, params, code) in [
        (1, "exec", json!({"argv": ["df", "-h", "/"]}), "not_allowed"),
        (2, "dance", Value::Null, "unknown_kind"),
        (3, "query", json!({"what": "weather"}), "bad_params"),
        (4, "restart", json!({"what": "agent"}), "not_restartable"),
    ] {
        let id = site.hub.want(offer(number, kind, &params));
        let (end, _) = site.hub.end(id).await;
        assert_eq!((end.state, end.reason.unwrap().code.as_str()), (State::Rejected, code));
        assert_eq!(site.hub.reports(id).len(), 1, "it was never accepted");
    }
    let refused = site.hub.reports(offer(1, "exec", &Value::Null).id).remove(0).reason.unwrap();
    let file = site.folder.path().join("data/commands.toml");
    assert!(refused.message.contains(&file.display().to_string()), "{}", refused.message);
    let (_, lines) = refused.message.split_once(":\n").unwrap();
    std::fs::write(&file, lines).unwrap();
    let id = site.hub.want(offer(5, "exec", &json!({"argv": ["df", "-h", "/"]})));
    let (end, output) = site.hub.end(id).await;
    assert!(end.exit_code == Some(0) && output.contains('%'), "{end:?} {output}");
    std::fs::write(&file, "[command.df]\nprogram = 5\n").unwrap();
    let id = site.hub.want(offer(6, "exec", &json!({"argv": ["df", "-h", "/"]})));
    let broken = site.hub.end(id).await.0.reason.unwrap();
    assert!(broken.code == "bad_allow_list" && broken.message.contains("line 2"), "{broken:?}");
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_runs_once_however_often_the_hub_insists() {
    let site = Site::start("once", SHELL).await;
    let runs = site.folder.path().join("runs");
    let again = script(1, &format!("echo run >> {}; exit 7", runs.display()));
    let id = site.hub.want(again.clone());
    let (end, _) = site.hub.end(id).await;
    assert_eq!((end.state, end.exit_code), (State::Failed, Some(7)));
    for _ in 0..3 {
        site.hub.insist(again.clone());
    }
    let later = site.hub.want(script(2, "true"));
    site.hub.end(later).await;
    assert_eq!(std::fs::read_to_string(runs).unwrap(), "run\n");
    assert!(
        site.hub
            .reports(id)
            .iter()
            .filter(|report| report.state.is_terminal())
            .all(|r| r.exit_code == Some(7))
    );
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_is_killed_with_its_children_and_its_queue_goes_on() {
    let site = Site::start("hangs", SHELL).await;
    // It ignores the request to end; the child keeps the pipe open.
    let hang = "trap '' TERM; sleep 1000 & echo ready; while true; do wait; done";
    let slow = site.hub.want(Offer { timeout_ms: 500, ..script(1, hang) });
    let canceled = site.hub.want(script(2, hang));
    let waiting = site.hub.want(script(3, "true"));
    let last = site.hub.want(script(4, "echo last"));
    let (end, output) = site.hub.end(slow).await;
    assert_eq!((end.state, output.as_str()), (State::TimedOut, "ready\n"));
    assert!(end.reason.unwrap().may_have_executed);
    let ready =
        |reports: &Vec<fleet_schemas::command::Report>| reports.iter().any(|report| report.output.is_some());
    until("ready", async || site.hub.reports(canceled), ready).await;
    site.hub.cancel(waiting);
    site.hub.cancel(canceled);
    assert_eq!(site.hub.end(waiting).await.0.state, State::Canceled);
    assert_eq!(site.hub.end(canceled).await.0.state, State::Canceled);
    let (end, output) = site.hub.end(last).await;
    assert_eq!((end.state, output.as_str()), (State::Succeeded, "last\n"));
    site.hub.cancel(last);
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_comes_while_it_is_made_and_is_cut_at_its_limit() {
    let site = Site::start("output", SHELL).await;
    let gate = site.folder.path().join("gate");
    let waits =
        format!("echo out; echo err >&2; while [ ! -e {} ]; do sleep 0.05; done; echo end", gate.display());
    let id = site.hub.want(script(1, &waits));
    let said =
        |reports: &Vec<fleet_schemas::command::Report>| reports.iter().any(|report| report.output.is_some());
    until("first words", async || site.hub.reports(id), said).await;
    assert!(site.hub.reports(id).iter().all(|report| !report.state.is_terminal()));
    std::fs::write(gate, "").unwrap();
    assert_eq!(site.hub.end(id).await.1, "out\nerr\nend\n");
    let id = site.hub.want(script(2, "head -c 300000 /dev/zero | tr '\\0' x; exit 3"));
    let (end, output) = site.hub.end(id).await;
    assert_eq!((end.exit_code, output.len()), (Some(3), limits::COMMAND_OUTPUT_BYTES));
    let cut =
        site.hub.reports(id).iter().filter_map(|r| r.output.as_ref()).filter(|output| output.cut).count();
    assert_eq!(cut, 1);
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_has_its_own_environment_bounds_and_user() {
    let list = format!(
        "{SHELL}\n[command.bounded]\nprogram = \"/bin/sh\"\nargs = [\"-c\", \"sleep 0.3; ulimit -c; ulimit -v; nice; pwd; env\"]\n\
         cwd = \"/tmp\"\nnice = 7\nmemory_mb = 512\nenv = {{ GIVEN = \"yes\" }}\n\
         [command.nobody]\nprogram = \"/usr/bin/id\"\nargs = [\"-u\"]\nuser = \"nobody\"\n\
         [command.slow]\nprogram = \"/bin/sleep\"\nargs = [\"1000\"]\ntimeout_s = 0.2\n"
    );
    let site = Site::start("bounds", &list).await;
    let id = site.hub.want(offer(1, "exec", &json!({"name": "bounded"})));
    let (_, output) = site.hub.end(id).await;
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..4], ["0", "524288", "7", "/tmp"], "{output}");
    assert!(lines.contains(&"GIVEN=yes") && !output.contains("CARGO"), "{output}");
    let id = site.hub.want(offer(2, "exec", &json!({"name": "nobody"})));
    let (end, output) = site.hub.end(id).await;
    if rustix::process::getuid().is_root() {
        assert_eq!((end.exit_code, output.as_str()), (Some(0), "65534\n"));
    } else {
        assert_eq!(end.reason.unwrap().code, "not_allowed");
    }
    let id = site.hub.want(offer(3, "exec", &json!({"name": "slow"})));
    assert_eq!(site.hub.end(id).await.0.state, State::TimedOut);
    let id = site.hub.want(script(4, "kill -9 $$"));
    let (end, _) = site.hub.end(id).await;
    assert_eq!((end.state, end.exit_code), (State::Failed, Some(137)));
    site.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_run_side_by_side_and_what_waits_too_long_expires() {
    let site = Site::start("queues", SHELL).await;
    let gate = site.folder.path().join("gate");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    let first = site.hub.want(script(1, &waits));
    let late = site.hub.want(Offer { left_ms: 300, ..script(2, "true") });
    let other = Offer { queue: MetricName::parse("other").unwrap(), ..script(3, "true") };
    let other = site.hub.want(other);
    assert_eq!(site.hub.end(other).await.0.state, State::Succeeded);
    assert_eq!(site.hub.end(late).await.0.state, State::Expired);
    let held = site.hub.reaches(first, State::Running).await;
    assert!(held.iter().all(|report| !report.state.is_terminal()));
    std::fs::write(gate, "").unwrap();
    assert_eq!(site.hub.end(first).await.0.state, State::Succeeded);
    let started = clock_ms();
    site.agent.stop().await;
    assert!(clock_ms() - started < 5_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_what_runs_in_time() {
    let site = Site::start("stops", SHELL).await;
    let id = site.hub.want(script(1, "trap '' TERM; echo ready; while true; do sleep 1; done"));
    until("ready", async || site.hub.reports(id), |reports| reports.iter().any(|r| r.output.is_some())).await;
    let started = clock_ms();
    tokio::time::timeout(Duration::from_secs(6), site.agent.stop()).await.unwrap();
    assert!(clock_ms() - started < 5_000);
}

fn clock_ms() -> i64 {
    crate::clock().now().wall_ms
}
