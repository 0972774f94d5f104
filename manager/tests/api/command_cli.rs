//! `fleet command` as a process against a hub and nodes on sockets: what it prints, where, and its exit codes.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    cli::on,
    commands::{Does, Machine, until},
    given::Site,
};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_shows_output_and_ends_with_the_exit_code_of_the_worst_node() {
    let site = Site::start().await;
    let _good = Machine::born(&site, "edge-1", Does::Exits(0)).await;
    let _bad = Machine::born(&site, "edge-2", Does::Exits(42)).await;
    let (code, out, err) = on(&site, &["command", "run", "edge-1", "--", "df", "-h"]).await;
    assert_eq!((code, out.as_str()), (0, "hello\n"), "{err}");
    assert!(err.contains("edge-1  running") && err.contains("edge-1  succeeded"), "{err}");
    let (code, out, err) = on(&site, &["command", "run", "edge-2", "--", "df"]).await;
    assert_eq!((code, out.as_str()), (42, "hello\n"), "{err}");
    assert!(err.contains("exit code 42"), "{err}");
    let (code, out, err) = on(&site, &["command", "run", "--all", "--", "df"]).await;
    assert_eq!(code, 6, "{err}");
    let mut said: Vec<_> = out.lines().collect();
    said.sort_unstable();
    assert_eq!(said, ["edge-1 | hello", "edge-2 | hello"]);
    assert!(err.contains("1 of 2 nodes did not succeed: edge-2 failed"), "{err}");

    let (code, out, err) =
        on(&site, &["-o", "json", "command", "run", "-l", "id=edge-2", "--kind", "exec"]).await;
    let told = lines(&out);
    assert_eq!(code, 42, "{err}");
    let states: Vec<_> = told.iter().filter_map(|line| line["state"].as_str()).collect();
    assert_eq!(states, ["queued", "sent", "accepted", "running", "failed"], "{out}");
    assert!(told.iter().any(|line| line["output"]["text"] == "hello\n"), "{out}");
    let last = told.last().unwrap();
    assert_eq!((&last["over"], &last["states"]["failed"]), (&Value::from(true), &Value::from(1)));

    let id = last["id"].as_str().unwrap();
    let (code, text, _) = on(&site, &["command", "get", id]).await;
    assert!(code == 0 && text.contains("edge-2") && text.contains("  hello"), "{text}");
    let (code, out, _) = on(&site, &["command", "get", id, "--node", "edge-2", "--follow"]).await;
    assert_eq!((code, out.as_str()), (42, "hello\n"), "what is over is shown and judged again");
    let (code, text, _) = on(&site, &["command", "ls", "--node", "edge-2", "--state", "failed"]).await;
    assert!(code == 0 && text.lines().count() == 4 && text.contains(id), "{text}");
    let (code, _, err) = on(&site, &["command", "cancel", id]).await;
    assert!(code == 7 && err.contains("over already"), "{err}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_sends_nothing_and_no_wait_does_not_watch() {
    let site = Site::start().await;
    let _machine = Machine::born(&site, "edge-1", Does::Runs).await;
    let (code, text, _) = on(&site, &["command", "run", "--all", "--dry-run", "--", "df"]).await;
    assert!(code == 0 && text.contains("1 node would get it"), "{text}");
    assert_eq!(site.get("/api/v1/commands").await["items"], Value::from(Vec::<Value>::new()));
    let run = ["command", "run", "edge-1", "--kind", "ping", "--no-wait", "--idempotency-key", "once"];
    let (code, text, _) = on(&site, &run).await;
    assert_eq!(code, 0, "{text}");
    let id = text.split_whitespace().next().unwrap();
    let (_, again, _) = on(&site, &run).await;
    assert_eq!(again, text, "the same key, the same command");
    let other = ["command", "run", "edge-1", "--kind", "exec", "--no-wait", "--idempotency-key", "once"];
    let (code, _, err) = on(&site, &other).await;
    assert_eq!(code, 7, "{err}");
    let (code, text, err) = on(&site, &["command", "cancel", id, "edge-1"]).await;
    assert!(code == 0 && text.contains("the node is asked"), "{text}{err}");
    let (code, _, err) = on(&site, &["command", "get", id, "--follow"]).await;
    assert!(code == 1 && err.contains("canceled"), "{code} {err}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_wrongly_is_refused_and_nothing_is_sent() {
    let site = Site::start().await;
    let _machine = Machine::born(&site, "edge-1", Does::Runs).await;
    let large = format!("text={}", "x".repeat(fleet_schemas::limits::COMMAND_PARAMS_BYTES));
    let cases: [(&[&str], i32, &str); 12] = [
        (&["--all", "--kind", "dance"], 2, "/kind: dance is none of ping"),
        (&["--all", "--kind", "local", "--param", &large], 2, "/params"),
        (&["-l", "site=nowhere", "--kind", "ping"], 2, "matches no node"),
        (&["-l", "site=berlin rack=3", "--kind", "ping"], 2, "\n              ^\n"),
        (&["-l", "site in berlin", "--kind", "ping"], 2, "at character 9"),
        (&["-l", " ", "--kind", "ping"], 2, "--all selects every node"),
        (&["edge-9", "--kind", "ping"], 2, "there is no node \"edge-9\""),
        (&["edge-1"], 2, "--kind"),
        (&["--kind", "ping"], 2, "--all"),
        (&["edge-1", "--all", "--kind", "ping"], 2, "cannot be used with"),
        (&["edge-1", "--kind", "ping", "--ttl", "90d"], 2, "/ttl_s"),
        (&["edge-1", "--kind", "ping", "--not-before", "soon"], 2, "--not-before soon"),
    ];
    for (arguments, expected, hint) in cases {
        let (code, out, err) = on(&site, &[&["command", "run"], arguments].concat()).await;
        let shown: String = err.chars().take(400).collect();
        assert_eq!((code, out.as_str()), (expected, ""), "{shown}");
        assert!(err.contains(hint), "{hint}: {shown}");
    }
    let unknown = "0194a3f0-5b6c-7def-8123-456789abcdef";
    for verb in ["get", "cancel"] {
        let (code, _, err) = on(&site, &["command", verb, unknown]).await;
        assert!(code == 3 && err.contains("fleet command ls"), "{err}");
    }
    assert_eq!(site.get("/api/v1/commands").await["items"], Value::from(Vec::<Value>::new()));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_what_led_to_the_state_of_a_command_and_of_a_node() {
    let site = Site::start().await;
    let machine = Machine::born(&site, "edge-1", Does::Runs).await;
    let _other = Machine::born(&site, "edge-2", Does::Exits(0)).await;
    let make = async |whom: &str, ttl: &str| {
        let run = ["command", "run", whom, "--kind", "exec", "--ttl", ttl, "--no-wait"];
        let (code, text, err) = on(&site, &run).await;
        assert_eq!(code, 0, "{err}");
        text.split_whitespace().next().unwrap().to_owned()
    };
    let runs = make("edge-1", "1h").await;
    until(&site, &runs, "running").await;
    drop(machine);
    let offline = async { while site.get("/api/v1/nodes/edge-1").await["state"] == "online" {} };
    tokio::time::timeout(crate::given::PATIENCE, offline).await.unwrap();
    let (short, waits) = (make("edge-1", "50ms").await, make("--all", "1h").await);
    until(&site, &short, "expired").await;
    until(&site, &waits, "succeeded").await;

    let (code, text, err) = on(&site, &["why", &short]).await;
    assert!(code == 0 && text.contains("exec expired at edge-1"), "{text}{err}");
    assert!(text.contains("edge-1: it is offline"), "{text}");
    let (_, text, _) = on(&site, &["why", &waits]).await;
    assert!(text.contains("exec is queued for edge-1") && text.contains("its connection ended"), "{text}");
    assert!(text.contains("it waits behind 1 command in queue main"), "{text}");
    assert!(text.ends_with("1 of 2 nodes succeeded\n"), "{text}");
    let (_, text, _) = on(&site, &["why", "edge-1"]).await;
    assert!(text.contains("2 commands not over (1 running, 1 queued)"), "{text}");
    let (code, json, _) = on(&site, &["why", &runs, "--node", "edge-1", "-o", "json"]).await;
    let why: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &why["items"][0]["state"]), (0, &Value::from("running")));
    assert!(why["items"][0]["causes"][0]["because"].as_array().unwrap().len() > 2, "{json}");
    for (what, expected) in [("edge-9", 3), ("0194a3f0-5b6c-7def-8123-456789abcdef", 3), ("No Node", 2)] {
        assert_eq!(on(&site, &["why", what]).await.0, expected, "{what}");
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_watching_and_not_the_command() {
    let site = Site::start().await;
    let _machine = Machine::born(&site, "edge-1", Does::Runs).await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_fleet"))
        .arg("--data")
        .arg(site.data.path())
        .args(["command", "run", "edge-1", "--", "df"])
        .env_remove("FLEET_HUB")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let (first, said) = tokio::task::spawn_blocking(move || {
        let mut first = String::new();
        said.read_line(&mut first).unwrap();
        (first, said)
    })
    .await
    .unwrap();
    let id = first.split_whitespace().nth(1).unwrap().to_owned();
    until(&site, &id, "running").await;
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let (code, rest) = tokio::task::spawn_blocking(move || {
        let mut said = said;
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        (child.wait().unwrap().code(), rest)
    })
    .await
    .unwrap();
    assert_eq!(code, Some(130), "{rest}");
    assert!(rest.contains(&format!("`fleet command get {id} --follow` watches on")), "{rest}");
    let command = site.get(&format!("/api/v1/commands/{id}")).await;
    assert_eq!(command["states"]["running"], Value::from(1), "nothing is canceled");
    assert_eq!(command["executions"][0].get("cancel_asked_ms"), None);
    site.stop().await;
}
