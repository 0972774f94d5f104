//! `fleet-agent join`, the program, against hubs over TLS: good ones, wrong ones, and being killed on the way.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use fleet_schemas::enrol::{JoinToken, Pin};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, Signal, kill_process},
};
use rustls::{ServerConfig, ServerConnection};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    get_json,
    process::{BINARY, Process, ask, command},
    site::{Asked, Ca, Site},
    until,
};

/// `fleet-agent join`, with the token where nobody can see it.
fn join(data: &Path, hub: SocketAddr, token: &str, more: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.env_clear().arg("join").arg(hub.to_string()).arg("--data").arg(data).args(more);
    command.env("FLEET_JOIN_TOKEN", token).stdin(Stdio::null());
    command
}

/// Off the runtime's threads: the hub serves on them.
async fn asked(mut command: Command) -> (i32, String, String) {
    tokio::task::spawn_blocking(move || ask(&mut command)).await.unwrap()
}

fn empty() -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    (folder, data)
}

/// The keys that asked to be enrolled.
fn enrolled(site: &Site) -> Vec<Vec<u8>> {
    let key = |asked| match asked {
        Asked::Enrol(key) => Some(key),
        Asked::Renew(_) | Asked::Trust | Asked::Session(..) => None,
    };
    site.asked().into_iter().filter_map(key).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_an_empty_folder_to_an_online_node_in_two_commands() {
    let site = Site::start().await;
    let (_folder, data) = empty();
    let token = site.token(1).to_string();
    let (code, out, errors) =
        asked(join(&data, site.https, &token, &["--node", "edge-1", "--name", "Shed"])).await;
    assert_eq!(code, 0, "{errors}");
    assert!(out.contains("node edge-1") && out.contains("fleet-agent run --data"), "{out}");
    let mut run = command(&data, "run");
    run.args(["--api", "127.0.0.1:0"]);
    let mut agent = tokio::task::spawn_blocking(|| Process::start(run)).await.unwrap();
    let birth = tokio::task::block_in_place(|| site.hub.birth());
    assert_eq!(birth.name.as_deref(), Some("Shed"));
    assert!(birth.instance.is_some());
    let status = format!("http://{}/api/v1/status", agent.api);
    let status: Value =
        until("online", async || get_json(&status).await, |view| view["status"] == "online").await;
    assert_eq!(status["hub"], format!("mqtts://{}", site.mqtts));
    assert_eq!(status["identity"]["hub"], site.https.to_string());
    assert_eq!(status["identity"]["trust"][0], site.book().cas[0].certificate().pin().to_string());
    let (code, out, _) = asked({
        let mut status = command(&data, "status");
        status.args(["--api", &agent.api.to_string()]);
        status
    })
    .await;
    assert!(code == 0 && out.contains("certificate ends") && out.contains("trusts"), "{out}");
    // Joined is joined: also while the agent runs, also without asking the hub, also when the token is used up.
    let before = std::fs::read(data.join("identity/joined.json")).unwrap();
    let (code, out, errors) = asked(join(&data, site.https, &token, &["-o", "json"])).await;
    assert_eq!(code, 0, "{errors}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["outcome"], &report["node"]), (&"already_joined".into(), &"edge-1".into()));
    assert_eq!(std::fs::read(data.join("identity/joined.json")).unwrap(), before);
    // Whoever would change the identity of a running agent is told to end it first.
    let (code, _, errors) = asked(join(&data, site.https, &token, &["--force"])).await;
    assert!(code == 7 && errors.contains("in use"), "{errors}");
    assert_eq!(agent.end(Signal::TERM).await, Some(0));
    assert_eq!(enrolled(&site).len(), 1);
}

/// What came over the wire, what came out of it, and how it ended.
type Heard = (Vec<u8>, Vec<u8>, Option<rustls::Error>);

/// Serves one TLS connection until it has heard something, or it ends.
fn spy(config: Arc<ServerConfig>) -> (SocketAddr, thread::JoinHandle<Heard>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let spying = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut tls = ServerConnection::new(config).unwrap();
        let (mut wire, mut plain, mut end) = (Vec::new(), Vec::new(), None);
        let mut part = [0; 4_096];
        loop {
            let read = stream.read(&mut part).unwrap_or(0);
            if read == 0 {
                return (wire, plain, end);
            }
            wire.extend_from_slice(&part[..read]);
            let mut rest = &part[..read];
            while !rest.is_empty() && end.is_none() {
                tls.read_tls(&mut rest).unwrap();
                end = tls.process_new_packets().err();
            }
            let _ = tls.reader().read_to_end(&mut plain);
            if !plain.is_empty() {
                return (wire, plain, end);
            }
            let mut out = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut out).unwrap();
            }
            let _ = stream.write_all(&out);
        }
    });
    (address, spying)
}

/// Where the first record on the wire ends: the ClientHello (RFC 8446 §5.1).
fn hello_ends(wire: &[u8]) -> usize {
    assert_eq!(wire[0], 22, "a handshake record");
    5 + usize::from(u16::from_be_bytes([wire[3], wire[4]]))
}

#[tokio::test]
async fn a_hub_of_another_ca_is_told_nothing() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let token = JoinToken { pin: ours.certificate().pin(), id: "t".into(), secret: [7; 32] };
    let (_folder, data) = empty();
    let (address, spying) = spy(theirs.server(&[]));
    let (code, _, errors) = asked(join(&data, address, &token.to_string(), &["--node", "edge-1"])).await;
    assert_eq!(code, 4, "{errors}");
    assert!(
        errors.contains("no certificate of the hub's CA") && errors.contains("Nothing was sent"),
        "{errors}"
    );
    let (wire, plain, end) = spying.join().unwrap();
    assert_eq!(plain, b"", "nothing was said to it");
    assert!(matches!(end, Some(rustls::Error::AlertReceived(_))), "{end:?}");
    // Behind the ClientHello there is room for an alert and a change of ciphers, and for nothing else.
    let behind = wire.len() - hello_ends(&wire);
    assert!(behind <= 6 + 5 + 2 + 1 + 16, "{behind} bytes");
    assert!(!data.join("identity/joined.json").exists());
    // The same hub is spoken to by whoever has its pin: the spy would have heard it.
    let token = JoinToken { pin: theirs.certificate().pin(), ..token };
    let (address, spying) = spy(theirs.server(&[]));
    let (code, _, errors) = asked(join(&data, address, &token.to_string(), &["--node", "edge-1"])).await;
    assert_eq!(code, 5, "{errors}");
    let (_, plain, _) = spying.join().unwrap();
    assert!(plain.starts_with(b"POST /v1/enrol HTTP/1.1\r\n"));
}

#[tokio::test]
async fn what_is_no_hub_is_unreachable() {
    let token = JoinToken { pin: Pin([7; 32]), id: "t".into(), secret: [7; 32] }.to_string();
    let (_folder, data) = empty();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let plain = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let mut wire = Vec::new();
        let _ = stream.read_to_end(&mut wire);
        wire
    });
    let (code, _, errors) = asked(join(&data, address, &token, &["--node", "edge-1"])).await;
    assert!(code == 5 && errors.contains("does not speak TLS"), "{errors}");
    assert!(plain.join().unwrap().len() < 1_000);
    // Nobody listens there any more.
    let (code, _, errors) = asked(join(&data, address, &token, &["--node", "edge-1"])).await;
    assert!(code == 5 && errors.contains("cannot be reached"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_token_is_told_apart() {
    let site = Site::start().await;
    let good = site.token(1);
    let (_folder, data) = empty();
    let unknown = JoinToken { id: "nobody".into(), ..good.clone() };
    let tampered = JoinToken { secret: [0; 32], ..good.clone() };
    let expired = site.token(1);
    site.expire(&expired);
    for (token, expected, hint) in [
        (&unknown, 3, "does not know this join token"),
        (&tampered, 4, "secret of this join token is wrong"),
        (&expired, 4, "has expired"),
    ] {
        let (code, _, errors) =
            asked(join(&data, site.https, &token.to_string(), &["--node", "edge-1"])).await;
        assert_eq!(code, expected, "{errors}");
        assert!(errors.contains(hint) && errors.contains("fleet join-token create"), "{errors}");
    }
    let text = good.to_string();
    let (code, _, errors) = asked(join(&data, site.https, &text[..text.len() - 4], &[])).await;
    assert!(code == 2 && errors.contains("secret of the join token is incomplete"), "{errors}");
    let (code, _, errors) = asked({
        let mut none = join(&data, site.https, "", &[]);
        none.env_remove("FLEET_JOIN_TOKEN");
        none
    })
    .await;
    assert!(code == 2 && errors.contains("--token"), "{errors}");
    let (code, _, errors) = asked(join(&data, site.https, &text, &["--node", "edge-1"])).await;
    assert_eq!(code, 0, "{errors}");
    // Stolen after use: another machine has another key.
    let (_other, other) = empty();
    let (code, _, errors) = asked(join(&other, site.https, &text, &["--node", "edge-2"])).await;
    assert!(code == 4 && errors.contains("used as often as it may"), "{errors}");
    assert!(!other.join("identity/joined.json").exists());
    // And a name that is taken.
    let another = site.token(1).to_string();
    let (code, _, errors) = asked(join(&other, site.https, &another, &["--node", "edge-1"])).await;
    assert!(code == 7 && errors.contains("Choose another with --node"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_waits_for_approval_with_one_key() {
    let site = Site::start().await;
    site.book().approval = true;
    let (_folder, data) = empty();
    let token = site.token(1).to_string();
    let wait = || {
        let mut child = join(&data, site.https, &token, &["--node", "edge-1"]);
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("fleet node approve edge-1"), "{line}");
        (child, said)
    };
    let (mut child, _said) = tokio::task::block_in_place(wait);
    // Not SIGINT: tests that a shell runs in the background pass it on as ignored.
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(!tokio::task::block_in_place(|| child.wait()).unwrap().success());
    let (child, mut said) = tokio::task::block_in_place(wait);
    let times = site.asked().len();
    until("it asks again", async || site.asked().len(), |asked| *asked > times).await;
    site.book().approval = false;
    let output = tokio::task::block_in_place(|| child.wait_with_output()).unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("joined the hub"));
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "it says so once");
    let keys = enrolled(&site);
    assert!(keys.len() >= 3 && keys.iter().all(|key| *key == keys[0]), "it asks with one key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_stores_it_is_given_the_same_answer() {
    let site = Site::start().await;
    let (_folder, data) = empty();
    let token = site.token(1).to_string();
    let identity = data.join("identity");
    std::fs::create_dir_all(&identity).unwrap();
    // Opening a pipe waits for somebody to read it: the program stands still in the middle of storing.
    let pipe = identity.join("joined.json.new");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut child = join(&data, site.https, &token, &["--node", "edge-1"]).spawn().unwrap();
    until("the hub has answered", async || site.book().nodes.len(), |nodes| *nodes == 1).await;
    // It ends by itself only if it gets past the pipe.
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_file(&pipe).unwrap();
    // What half a write leaves behind does not matter either.
    std::fs::write(&pipe, "{\"format\":1,\"node\":\"ed").unwrap();
    assert!(!identity.join("joined.json").exists());
    // It remembers by its key what it became, whatever it asks for now.
    let (code, out, errors) = asked(join(&data, site.https, &token, &["-o", "json"])).await;
    assert_eq!(code, 0, "{errors}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["outcome"], &report["node"]), (&"joined".into(), &"edge-1".into()));
    let keys = enrolled(&site);
    assert!(keys.len() >= 2 && keys.iter().all(|key| *key == keys[0]), "the token was used once, by one key");
    assert!(!identity.join("joining.pem").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_its_hub_only_by_force_and_follows_it_when_it_moves() {
    let (one, two) = (Site::start().await, Site::start().await);
    let (_folder, data) = empty();
    let (first, second) = (one.token(1).to_string(), two.token(1).to_string());
    assert_eq!(asked(join(&data, one.https, &first, &["--node", "edge-1"])).await.0, 0);
    let (code, _, errors) = asked(join(&data, two.https, &second, &[])).await;
    assert!(code == 7 && errors.contains("--force") && errors.contains("edge-1"), "{errors}");
    // The first hub's token at the second hub's address: not believed, and nothing is changed.
    let before = std::fs::read(data.join("identity/joined.json")).unwrap();
    let (code, _, errors) = asked(join(&data, two.https, &first, &[])).await;
    assert!(code == 4 && errors.contains("another hub"), "{errors}");
    assert_eq!(std::fs::read(data.join("identity/joined.json")).unwrap(), before);
    // The first hub by another name.
    let moved = format!("localhost:{}", one.https.port());
    let (code, out, errors) = asked({
        let mut command = command(&data, "join");
        command.args([&moved, "--token", &first, "-o", "json"]);
        command
    })
    .await;
    assert_eq!(code, 0, "{errors}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["outcome"], &report["hub"]), (&"moved".into(), &moved.into()));
    let (code, _, errors) = asked(join(&data, two.https, &second, &["--node", "edge-9", "--force"])).await;
    assert_eq!(code, 0, "{errors}");
    assert_ne!(enrolled(&one)[0], enrolled(&two)[0], "a new hub is shown a new key");
    assert!(data.join("identity/left").exists(), "releases of the first hub are not trusted any more");
}
