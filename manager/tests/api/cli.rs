//! The binary: what it prints, and its exit codes.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::given::{Node, Site};

fn fleet(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fleet"))
        .args(arguments)
        .env_remove("FLEET_HUB")
        .env_remove("FLEET_DATA")
        .env_remove("FLEET_TOKEN")
        // No contexts of whoever runs the tests.
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs the binary on the site's data folder, off the runtime's threads.
pub(crate) async fn on(site: &Site, arguments: &[&str]) -> (i32, String, String) {
    let data = site.data.path().to_str().unwrap().to_owned();
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let output = tokio::task::spawn_blocking(move || {
        let mut all = vec!["--data", &data];
        all.extend(arguments.iter().map(String::as_str));
        fleet(&all, b"")
    })
    .await
    .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_find_the_local_hub_and_answer() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let t = fleet_manager::clock::wall_ms();
    node.measures(&[(t - 5_000, "", "temperature", 20.0), (t - 1_000, "", "temperature", 22.0)]).await;
    node.told("door_opened", "left").await;

    let (code, table, _) =
        on(&site, &["node", "set", "edge-1", "--site", "berlin", "--label", "rack=12"]).await;
    assert!(code == 0 && table.contains("berlin"), "{table}");
    let (code, json, _) = on(&site, &["node", "ls", "-l", "rack=12,site=berlin", "-o", "json"]).await;
    let list: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &list["items"][0]["id"]), (0, &Value::from("edge-1")));
    let (code, yaml, _) = on(&site, &["node", "get", "edge-1", "-o", "yaml"]).await;
    assert!(code == 0 && yaml.contains("\nsite: berlin\n"), "{yaml}");
    let (code, text, _) = on(&site, &["node", "describe", "edge-1"]).await;
    assert!(code == 0 && text.contains("door_opened: left") && text.contains("cpu_percent"), "{text}");
    let (code, table, _) = on(&site, &["telemetry", "edge-1"]).await;
    assert!(code == 0 && table.contains("temperature") && table.contains("21"), "{table}");
    let (_, csv, _) = on(&site, &["telemetry", "edge-1", "-o", "csv"]).await;
    assert_eq!(csv.lines().count(), 3, "{csv}");
    let (code, text, _) = on(&site, &["ledger", "--verify"]).await;
    assert!(code == 0 && text.contains("balanced") && text.contains("verified"), "{text}");
    let (code, text, _) = on(&site, &["status"]).await;
    assert!(code == 0 && text.contains("1 online"), "{text}");
    let (code, text, err) = on(&site, &["doctor"]).await;
    assert!(text.contains("readiness") && text.contains("1 online"), "{code} {text}{err}");
    let (_, json, _) = on(&site, &["doctor", "-o", "json"]).await;
    let doctor: Value = serde_json::from_str(&json).unwrap();
    let verdict = |check: &str| {
        let checks = doctor["checks"].as_array().unwrap();
        checks.iter().find(|one| one["check"] == check).unwrap()["verdict"].clone()
    };
    // Whether its disk is full is this machine's affair.
    let asked = ["readiness", "ledger", "certificates", "store", "broker", "versions"].map(verdict);
    assert!(asked.iter().all(|verdict| verdict == "ok"), "{json}");
    assert_eq!(code == 0, doctor["ok"] == true);
    let (code, frame, _) = on(&site, &["top", "--once"]).await;
    assert_eq!((code, frame.lines().count()), (0, 24), "{frame}");
    assert!(frame.contains("edge-1") && frame.contains("online"), "{frame}");
    let (code, _, _) = on(&site, &["group", "set", "spares", "!site"]).await;
    let (_, groups, _) = on(&site, &["group", "ls"]).await;
    assert!(code == 0 && groups.contains("spares"), "{groups}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_exit_codes() {
    let site = Site::start().await;
    let _node = Node::born(&site, "edge-1").await;
    for (arguments, expected) in [
        (&["node", "get", "nobody"][..], 3),
        (&["node", "ls", "-l", "a b"], 2),
        (&["node", "set", "edge-1"], 2),
        (&["node", "set", "edge-1", "--label", "state=x"], 2),
        (&["group", "rm", "nothing"], 3),
        (&["telemetry", "edge-1", "--since", "soon"], 2),
        (&["node", "ls", "-o", "csv"], 2),
        (&["top"], 2),
        (&["status", "--hub", "127.0.0.1:1"], 5),
        (&["doctor", "--hub", "127.0.0.1:1"], 5),
        (&["nonsense"], 2),
        (&["--help"], 0),
        (&["node", "set", "--help"], 0),
    ] {
        let (code, _, stderr) = on(&site, arguments).await;
        assert_eq!(code, expected, "{arguments:?}: {stderr}");
        assert!(expected == 0 || !stderr.is_empty(), "{arguments:?} says nothing");
    }
    let path = site.data.path().join("nodes.csv");
    std::fs::write(&path, "id,site\nedge-2,berlin\nEDGE,berlin\n").unwrap();
    let (code, table, _) = on(&site, &["node", "import", path.to_str().unwrap()]).await;
    assert!(code == 6 && table.contains("created") && table.contains("failed"), "{code} {table}");
    site.stop().await;
}

#[test]
fn no_hub_is_unreachable() {
    let empty = tempfile::tempdir().unwrap();
    let output = fleet(&["--data", empty.path().to_str().unwrap(), "node", "ls"], b"");
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("fleet hub"));
}

#[test]
fn payloads_are_decoded_from_a_pipe() {
    let output = fleet(&["decode"], b"a1617601\n");
    assert_eq!(
        (output.status.code(), String::from_utf8(output.stdout).unwrap()),
        (Some(0), "{\n  \"v\": 1\n}\n".into())
    );
    let lines = b"fleet/v1/hub/node/edge-1 7b226964223a2261227d\nfleet/v1/edge-1/up/birth ff\n";
    let output = fleet(&["decode"], lines);
    assert_eq!(output.status.code(), Some(6), "one of two lines");
    let output = fleet(&["decode", "fleet/v1/edge-1/up/birth"], &[0xff]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fleet(&["decode", "no/topic"], b"").status.code(), Some(2));
}
