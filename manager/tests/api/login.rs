//! The command line and its rights: contexts, TLS, and the verbs that let others in.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use fleet_manager::{core::identity::Role, store::disk::Folder};
use fleet_schemas::enrol::JoinToken;
use serde_json::Value;

use crate::given::{Node, Site, operator};

/// Runs the binary in an empty folder, with contexts of its own.
fn fleet(home: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fleet"))
        .args(arguments)
        .current_dir(home)
        .env_clear()
        .env("XDG_CONFIG_HOME", home.join("config"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

async fn run(home: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    let (home, input) = (home.to_owned(), input.to_owned());
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let arguments = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        fleet(&home, &arguments, &input)
    };
    tokio::task::spawn_blocking(arguments).await.unwrap()
}

async fn tls() -> Site {
    let data = tempfile::tempdir().unwrap();
    let disk = Arc::new(Folder::new(data.path()));
    Site::with(disk, data, true, false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_holds_address_token_and_ca() {
    let site = tls().await;
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (hub, ca) = (format!("https://{}", site.http), site.data.path().join("pki/ca.pem"));
    let ca = ca.to_str().unwrap();
    let viewer = operator(&site.hub, "eve", Role::Viewer, None).await;

    let (code, _, why) = run(home, &["login", "--hub", &hub, "--token-file", "-"], &viewer).await;
    assert!(code == 2 && why.contains("--ca"), "{code} {why}");
    let login = ["login", "--hub", &hub, "--ca", ca, "--token-file", "-", "--name", "lab"];
    let (code, _, why) = run(home, &login, "fleet_wrong\n").await;
    assert_eq!(code, 4, "{why}");
    let (code, told, why) = run(home, &login, &format!("{viewer}\n")).await;
    assert!(code == 0 && told.contains("eve (viewer)"), "{told} {why}");
    let (code, _, why) = run(home, &["node", "ls"], "").await;
    assert_eq!(code, 0, "the context is enough: {why}");
    let (code, _, why) = run(home, &["operator", "create", "x", "--role", "admin"], "").await;
    assert!(code == 4 && why.contains("eve is viewer and this needs admin"), "{why}");

    let pin = run(home, &["pki", "status", "-o", "json", "--token", &site.admin], "").await.1;
    let pin: Value = serde_json::from_str(&pin).unwrap();
    let pin = pin["authorities"][0]["pin"].as_str().unwrap();
    let by_pin = ["login", "--hub", &hub, "--ca-pin", pin, "--token", &site.admin, "--name", "by-pin"];
    let (code, told, why) = run(home, &by_pin, "").await;
    assert!(code == 0 && told.contains("admin (admin)"), "{told} {why}");
    assert_eq!(run(home, &["operator", "ls"], "").await.0, 0, "the new context is the current one");
    let wrong = pin.chars().rev().collect::<String>();
    let wrong = if wrong.parse::<fleet_schemas::enrol::Pin>().is_ok() { wrong } else { "A".repeat(43) };
    let (code, _, why) =
        run(home, &["login", "--hub", &hub, "--ca-pin", &wrong, "--token", "fleet_x"], "").await;
    assert!(code == 5 && why.contains("not signed by the CA"), "{code} {why}");

    let (_, list, _) = run(home, &["login", "--list", "-o", "json"], "").await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (&list["items"][0]["context"], &list["items"][0]["current"]),
        (&"by-pin".into(), &true.into())
    );
    assert!(!list.to_string().contains("fleet_"), "tokens are not listed");
    assert_eq!(run(home, &["login", "--use", "lab"], "").await.0, 0);
    assert_eq!(run(home, &["operator", "ls"], "").await.0, 4);
    assert_eq!(run(home, &["login", "--rm", "lab"], "").await.0, 0);
    assert_eq!(run(home, &["login", "--use", "lab"], "").await.0, 3);
    assert_eq!(run(home, &["node", "ls"], "").await.0, 5, "no context is current any more");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_folder_is_enough_on_the_hubs_own_machine_also_by_tls() {
    let site = tls().await;
    let home = tempfile::tempdir().unwrap();
    let data = site.data.path().to_str().unwrap();
    let (code, text, why) = run(home.path(), &["--data", data, "status"], "").await;
    assert!(code == 0 && text.contains("https://127.0.0.1"), "{text} {why}");
    let plain = reqwest::Client::new().get(site.url("/livez")).send().await;
    assert!(plain.is_err(), "nothing is served in the clear");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_let_machines_and_tools_in() {
    let site = Site::start().await;
    let _node = Node::born(&site, "edge-1").await;
    let home = tempfile::tempdir().unwrap();
    let data = site.data.path().to_str().unwrap().to_owned();
    let on = async |arguments: &[&str]| {
        let (code, text, why) = run(home.path(), &[&["--data", &data], arguments].concat(), "").await;
        assert_eq!(code, 0, "{arguments:?}: {why}");
        text
    };
    let text = on(&["join-token", "create", "--ttl", "1h", "--uses", "2", "--label", "site=berlin"]).await;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("fleet-agent join ")).unwrap();
    let (address, token) = line.split_once(" --token ").unwrap();
    assert!(address.ends_with(":8443") && token.parse::<JoinToken>().is_ok(), "{line}");
    assert_eq!(text.lines().next(), Some(token));
    let json: Value = serde_json::from_str(&on(&["join-token", "create", "-o", "json"]).await).unwrap();
    let id = json["id"].as_str().unwrap();
    assert!(json["token"].as_str().unwrap().parse::<JoinToken>().is_ok());
    assert!(on(&["join-token", "ls"]).await.contains(id));
    on(&["join-token", "rm", id]).await;

    let text = on(&["node", "revoke", "edge-1", "--reason", "stolen"]).await;
    assert!(text.contains("revoked"), "{text}");
    assert!(on(&["node", "describe", "edge-1"]).await.contains("stolen"));

    let made: Value = serde_json::from_str(
        &on(&["access", "create", "raw", "--read", "fleet/v1/+/up/#", "-o", "json"]).await,
    )
    .unwrap();
    assert!(made["username"] == "raw" && made["password"].is_string(), "{made}");
    let keys = home.path().join("keys");
    on(&["access", "create", "bridge", "--preset", "mosquitto", "--cert", keys.to_str().unwrap()]).await;
    for file in ["bridge.key", "bridge.crt", "ca.crt"] {
        assert!(keys.join(file).exists(), "{file}");
    }
    let flow: Value =
        serde_json::from_str(&on(&["access", "create", "red", "--preset", "node-red"]).await).unwrap();
    let broker = flow.as_array().unwrap().iter().find(|node| node["type"] == "mqtt-broker").unwrap();
    assert_eq!((&broker["port"], &broker["credentials"]["user"]), (&"8883".into(), &"red".into()));
    let tools = on(&["access", "ls"]).await;
    assert!(["raw", "bridge", "red", "certificate"].iter().all(|word| tools.contains(word)), "{tools}");
    on(&["access", "rm", "raw"]).await;
    let text = on(&["audit", "--who", "admin", "--limit", "3"]).await;
    assert!(text.lines().nth(1).unwrap().contains("access.remove") && text.lines().count() == 4, "{text}");
    assert!(on(&["pki", "ca"]).await.starts_with("-----BEGIN"));
    on(&["pki", "rotate", "server"]).await;
    assert!(on(&["pki", "status"]).await.contains("everything"));
    site.stop().await;
}
