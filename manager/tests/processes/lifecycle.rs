//! A node's life by the command line: flashed from an image, replaced, moved to another hub, retired, and its logs.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time;

use crate::given::{Door, Hub, PATIENCE, agent_binary, until};

/// The hub's own command line.
fn fleet(hub: &Hub, verb: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleet"));
    command.env_clear().arg("--data").arg(&hub.data).args(["--hub", &format!("http://{}", hub.http)]);
    command.args(["--token", &hub.token()]).args(verb).stdin(Stdio::null());
    command
}

/// Runs a verb to its end: exit code, output, errors.
async fn ask(hub: &Hub, verb: &[&str]) -> (i32, String, String) {
    let mut command = fleet(hub, verb);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Runs a verb that has to come through; its JSON.
async fn done(hub: &Hub, verb: &[&str]) -> Value {
    let (code, out, errors) = ask(hub, &[verb, &["-o", "json"]].concat()).await;
    assert_eq!(code, 0, "{verb:?}: {errors}");
    serde_json::from_str(&out).unwrap_or(Value::Null)
}

async fn token(hub: &Hub, more: &[&str]) -> String {
    let made = done(hub, &[&["join-token", "create"], more].concat()).await;
    made["token"].as_str().unwrap().to_owned()
}

/// Where a hub serves HTTPS for nodes.
fn node_https(hub: &Hub) -> SocketAddr {
    let text = fs::read(hub.data.join("addresses.json")).unwrap();
    let addresses: Value = serde_json::from_slice(&text).unwrap();
    addresses["node_https"].as_str().unwrap().parse().unwrap()
}

/// A machine with an agent that has, or has not, joined a hub over TLS. The agent starts itself again when it must.
struct Board {
    data: PathBuf,
    door: Door,
    child: Option<Child>,
}

impl Drop for Board {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Board {
    fn new(data: &Path) -> Self {
        Self { data: data.to_owned(), door: Door::default(), child: None }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(agent_binary());
        command.env_clear().arg(verb).arg("--data").arg(&self.data).stdin(Stdio::null());
        command
    }

    async fn join(&self, hub: &Hub, token: &str, more: &[&str]) -> (i32, String) {
        let mut command = self.command("join");
        command.arg(node_https(hub).to_string()).args(["--token", token]).args(more);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// A node with this id.
    async fn joined(data: &Path, hub: &Hub, node: &str) -> Self {
        let mut board = Self::new(data);
        let (code, errors) = board.join(hub, &token(hub, &[]).await, &["--node", node]).await;
        assert_eq!(code, 0, "{errors}");
        board.up();
        board.online(hub, node).await;
        board
    }

    fn up(&mut self) {
        let settings = [
            ("FLEET_SYSTEM_INTERVAL_S", "0"),
            ("FLEET_OUTBOX_UPLOAD_S", "0.2"),
            ("FLEET_NODE_HEARTBEAT_S", "1"),
            ("FLEET_LOG", "info"),
        ];
        let mut command = self.command("run");
        command.args(["--api", "127.0.0.1:0"]).envs(settings).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let door = self.door.clone();
        // It says where it listens at each of its starts.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if std::env::var_os("FLEET_TEST_LOG").is_some() {
                    eprintln!("agent: {line}");
                }
                let api = line.split_once("api=").and_then(|(_, rest)| rest.split_whitespace().next());
                if let Some(api) = api.and_then(|api| api.parse().ok()) {
                    *door.lock().unwrap() = Some(api);
                }
            }
        });
        self.child = Some(child);
    }

    fn kill(&mut self) {
        *self.door.lock().unwrap() = None;
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    async fn online(&self, hub: &Hub, node: &str) {
        let path = format!("/api/v1/nodes/{node}");
        let state = async || {
            let nodes = hub.get("/api/v1/nodes").await;
            let known = nodes["items"].as_array().unwrap().iter().any(|known| known["id"] == node);
            if known { hub.get(&path).await["state"].clone() } else { Value::Null }
        };
        until("it is online", state, |state| state == "online").await;
    }

    /// Hands one sample in; whether it was accepted.
    async fn measure(door: &Door, value: u64) -> bool {
        let Some(api) = *door.lock().unwrap() else { return false };
        let body = json!({"samples": [{"metric": "count", "value": value}]});
        let request = reqwest::Client::new().post(format!("http://{api}/api/v1/telemetry"));
        // Named, so that a repetition after an answer that was lost is no second record.
        let request = request.header("idempotency-key", format!("count-{value}")).json(&body);
        request.send().await.is_ok_and(|answer| answer.status() == 202)
    }
}

/// The values of the counter that a hub has of a node.
async fn counted(hub: &Hub, node: &str) -> Vec<u64> {
    let path = format!("/api/v1/nodes/{node}/telemetry?metric=count&from_ms=0&to_ms=9000000000000");
    let answer = hub.get(&path).await;
    let series = answer["series"].as_array().unwrap();
    let points = series.iter().flat_map(|series| series["points"].as_array().unwrap());
    points.map(|point| point[1].as_f64().unwrap() as u64).collect()
}

/// The accounts of a node, none of which may be anything but balanced.
async fn balanced(hub: &Hub, node: &str) -> Vec<Value> {
    let path = format!("/api/v1/ledger?node={node}");
    let even = |ledger: &Value| {
        ledger["accounts"].as_array().unwrap().iter().all(|account| account["state"] == "balanced")
    };
    let ledger = until("its accounts are even", async || hub.get(&path).await, even).await;
    ledger["accounts"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn boards_flashed_from_one_image_join_by_themselves_under_their_own_ids() {
    let folder = tempfile::tempdir().unwrap();
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    let made = done(&hub, &["join-token", "create", "--uses", "9", "--ttl", "7d"]).await;
    let line = made["join"].as_str().unwrap();
    // The image: settings and a token, and no identity.
    let image = folder.path().join("image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("agent.toml"), "[node]\nkind = \"board\"\n").unwrap();
    // The line as it was printed, with the address at which the boards reach the hub.
    let line = line.replace(line.split(' ').nth(2).unwrap(), &node_https(&hub).to_string());
    fs::write(image.join("join-token"), format!("# hall 3\n{line}\n")).unwrap();
    let mut boards = Vec::new();
    for name in ["one", "two"] {
        let data = folder.path().join(name);
        fs::create_dir(&data).unwrap();
        for file in ["agent.toml", "join-token"] {
            fs::copy(image.join(file), data.join(file)).unwrap();
        }
        let mut board = Board::new(&data);
        board.up();
        boards.push(board);
    }
    let online = |nodes: &Value| {
        let items = nodes["items"].as_array().unwrap();
        items.len() == 2 && items.iter().all(|node| node["state"] == "online")
    };
    let nodes = until("both are online", async || hub.get("/api/v1/nodes").await, online).await;
    let ids: Vec<_> =
        nodes["items"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    assert_ne!(ids[0], ids[1]);
    for id in ids {
        let (_, digits) = id.rsplit_once('-').unwrap();
        assert!(digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
    for board in &boards {
        assert!(!board.data.join("join-token").exists(), "the token lies there still");
    }
    // A card that is cloned after its first boot is one identity twice: the hub says so.
    let (first, clone) = (&boards[0], folder.path().join("clone"));
    fs::create_dir_all(clone.join("identity")).unwrap();
    let identity = Path::new("identity").join("joined.json");
    fs::copy(first.data.join(&identity), clone.join(&identity)).unwrap();
    let mut twin = Board::new(&clone);
    twin.up();
    let told = |events: &Value| {
        events["items"].as_array().unwrap().iter().any(|event| event["kind"] == "two_instances")
    };
    until("the hub tells of twins", async || hub.get("/api/v1/events?limit=100").await, told).await;
    drop((boards, twin));
    hub.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_node_keeps_its_history_and_what_waited_for_the_old_one_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    let mut old = Board::joined(&folder.path().join("old"), &hub, "edge-1").await;
    assert!(Board::measure(&old.door, 1).await);
    until("the record is here", async || counted(&hub, "edge-1").await, |all| *all == [1]).await;
    done(&hub, &["node", "set", "edge-1", "--label", "rack=12"]).await;
    done(&hub, &["config", "set", "node/edge-1", "apps.note=kept"]).await;
    old.kill();

    // The id alone is no claim; the refusal says what is.
    let new = folder.path().join("new");
    let mut board = Board::new(&new);
    let (code, errors) = board.join(&hub, &token(&hub, &[]).await, &["--node", "edge-1"]).await;
    assert_eq!(code, 7, "{errors}");
    assert!(
        errors.contains("fleet join-token create --replace edge-1") && errors.contains("--node"),
        "{errors}"
    );

    let waits = done(&hub, &["command", "run", "edge-1", "--kind", "ping", "--no-wait"]).await;
    let replace = token(&hub, &["--replace", "edge-1"]).await;
    let (code, errors) = board.join(&hub, &replace, &[]).await;
    assert_eq!(code, 0, "{errors}");
    let path = format!("/api/v1/commands/{}", waits["id"].as_str().unwrap());
    let execution = hub.get(&path).await["executions"][0].clone();
    assert_eq!(execution["state"], "failed", "{execution}");
    let last = execution["history"].as_array().unwrap().last().unwrap();
    assert_eq!(last["reason"]["code"], "replaced", "{execution}");

    board.up();
    board.online(&hub, "edge-1").await;
    assert!(Board::measure(&board.door, 2).await);
    until("both records are here", async || counted(&hub, "edge-1").await, |all| *all == [1, 2]).await;
    let node = hub.get("/api/v1/nodes/edge-1").await;
    assert_eq!(node["labels"]["rack"], "12");
    until(
        "it follows",
        async || hub.get("/api/v1/nodes/edge-1/config").await,
        |config| config["state"] == "in_sync" && config["desired"]["doc"]["apps"]["note"] == "kept",
    )
    .await;
    balanced(&hub, "edge-1").await;
    let events = hub.get("/api/v1/nodes/edge-1/events?limit=100").await;
    let kinds: Vec<_> =
        events["items"].as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"node_replaced") && !kinds.contains(&"edge_rollback"), "{kinds:?}");

    // The old machine is back, and stays outside.
    old.up();
    let refused = |_: &Value| !old.door.lock().unwrap().is_none();
    until("it runs", async || Value::Null, refused).await;
    let api = old.door.lock().unwrap().unwrap();
    let status = async || {
        let answer = reqwest::get(format!("http://{api}/api/v1/status")).await.unwrap();
        answer.json::<Value>().await.unwrap()
    };
    until("it is refused", status, |status| status["identity"]["refused"].is_string()).await;
    drop((old, board));
    hub.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_moves_between_hubs_and_every_record_is_at_one_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Hub::start(&folder.path().join("first")).await;
    let mut second = Hub::start(&folder.path().join("second")).await;
    let board = Board::joined(&folder.path().join("board"), &first, "edge-1").await;
    let there = node_https(&second).to_string();

    // A hub that refuses, and one that is not there: the node stays, and says why.
    let used = token(&second, &[]).await;
    let other = Board::new(&folder.path().join("other"));
    assert_eq!(other.join(&second, &used, &["--node", "other"]).await.0, 0);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (hub, hint) in [(&there, "used up"), (&nobody, "cannot be reached")] {
        let (code, _, errors) =
            ask(&first, &["node", "move", "edge-1", "--hub", hub, "--token", &used]).await;
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains(hint) && errors.contains("stays"), "{errors}");
    }
    board.online(&first, "edge-1").await;

    // Programs on the node go on measuring all the while.
    let door = board.door.clone();
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let measuring = tokio::spawn(async move {
        tokio::pin!(stopping);
        let mut value = 0;
        loop {
            value += 1;
            while !Board::measure(&door, value).await {
                time::sleep(Duration::from_millis(20)).await;
            }
            if time::timeout(Duration::from_millis(20), &mut stopping).await.is_ok() {
                return value;
            }
        }
    });
    until("some are at the first hub", async || counted(&first, "edge-1").await.len(), |count| *count > 20)
        .await;
    let moves = token(&second, &[]).await;
    let (code, out, errors) =
        ask(&first, &["node", "move", "edge-1", "--hub", &there, "--token", &moves]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(out.contains("edge-1 has left") && out.contains("0 of its records are missing"), "{out}");
    board.online(&second, "edge-1").await;
    until("some are at the second hub", async || counted(&second, "edge-1").await.len(), |count| *count > 20)
        .await;
    stop.send(()).unwrap();
    let last = measuring.await.unwrap();
    let here = counted(&first, "edge-1").await;
    let whole = |count: &Vec<u64>| count.len() + here.len() >= usize::try_from(last).unwrap();
    let there = until("all are there", async || counted(&second, "edge-1").await, whole).await;
    let (one, two): (BTreeSet<u64>, BTreeSet<u64>) =
        (here.iter().copied().collect(), there.iter().copied().collect());
    assert_eq!((one.len(), two.len()), (here.len(), there.len()), "twice at one hub");
    assert_eq!(one.intersection(&two).count(), 0, "at both hubs");
    assert_eq!(one.union(&two).copied().collect::<Vec<_>>(), (1..=last).collect::<Vec<_>>());
    for hub in [&first, &second] {
        for account in balanced(hub, "edge-1").await {
            assert_eq!(
                (&account["lost"], &account["at_edge"], &account["written_off"]),
                (&json!(0), &json!(0), &json!(0)),
                "{account}"
            );
        }
    }
    let shown = done(&first, &["command", "ls", "--kind", "move"]).await;
    let secret = moves.rsplit('.').next().unwrap();
    assert!(!shown.to_string().contains(secret));
    drop((board, other));
    first.end().await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_goes_on_after_the_agent_was_killed_on_its_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Hub::start(&folder.path().join("first")).await;
    let mut second = Hub::start(&folder.path().join("second")).await;
    let mut board = Board::joined(&folder.path().join("board"), &first, "edge-1").await;
    let there = node_https(&second).to_string();
    let mut accepted = 0;
    let mut hubs = [&first, &second];
    // There and back, killed a little later each time: before the new hub was asked, after, while it leaves.
    for round in 0..6_u64 {
        let [from, to] = hubs;
        for _ in 0..5 {
            accepted += 1;
            until("it is accepted", async || Board::measure(&board.door, accepted).await, |done| *done).await;
        }
        let address =
            if std::ptr::eq(to, &raw const second) { there.clone() } else { node_https(&first).to_string() };
        let more: &[&str] = if round > 0 { &["--replace", "edge-1"] } else { &[] };
        let token = token(to, more).await;
        let mut moving = fleet(from, &["node", "move", "edge-1", "--hub", &address, "--token", &token]);
        let mut moving = moving.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        time::sleep(Duration::from_millis(60 + 250 * round)).await;
        board.kill();
        board.up();
        board.online(to, "edge-1").await;
        tokio::task::spawn_blocking(move || moving.wait().unwrap()).await.unwrap();
        hubs = [to, from];
    }
    let all = async || {
        let mut all = counted(&first, "edge-1").await;
        all.extend(counted(&second, "edge-1").await);
        all.sort_unstable();
        all
    };
    until("each record is at one hub", all, |all| *all == (1..=accepted).collect::<Vec<_>>()).await;
    balanced(&first, "edge-1").await;
    balanced(&second, "edge-1").await;
    drop(board);
    first.end().await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_shut_out_and_its_history_stays_or_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    let mut boards = Vec::new();
    for node in ["kept", "purged"] {
        let board = Board::joined(&folder.path().join(node), &hub, node).await;
        assert!(Board::measure(&board.door, 7).await);
        until("the record is here", async || counted(&hub, node).await, |all| *all == [7]).await;
        boards.push(board);
    }
    let (code, _, errors) = ask(&hub, &["node", "rm", "kept"]).await;
    assert!(code == 2 && errors.contains("--keep-data"), "{errors}");
    done(&hub, &["node", "rm", "kept", "--keep-data"]).await;
    done(&hub, &["node", "rm", "purged", "--purge", "--yes"]).await;
    // Their agents are refused, and what they say makes no node.
    for board in &boards {
        let api = board.door.lock().unwrap().unwrap();
        let status = async || {
            let answer = reqwest::get(format!("http://{api}/api/v1/status")).await.unwrap();
            answer.json::<Value>().await.unwrap()
        };
        until("it is refused", status, |status| status["identity"]["refused"].is_string()).await;
    }
    for restart in [false, true] {
        if restart {
            hub.end().await;
            hub.up().await;
        }
        assert_eq!(hub.get("/api/v1/nodes").await["items"], json!([]));
        assert_eq!(counted(&hub, "kept").await, [7]);
        assert_eq!(hub.get("/api/v1/nodes/kept").await["state"], "removed");
        let ledger = hub.get("/api/v1/ledger").await;
        assert_eq!((&ledger["balanced"], &ledger["accounts"]), (&json!(true), &json!([])));
        let (code, _, errors) = ask(&hub, &["node", "get", "purged"]).await;
        assert_eq!(code, 3, "{errors}");
    }
    // Only a token that says so lets the id in again, with its history where that was kept.
    let replace = token(&hub, &["--replace", "kept"]).await;
    let again = folder.path().join("again");
    let mut board = Board::new(&again);
    assert_eq!(board.join(&hub, &replace, &[]).await.0, 0);
    board.up();
    board.online(&hub, "kept").await;
    assert_eq!(counted(&hub, "kept").await, [7]);
    drop((boards, board));
    hub.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_logs_are_read_and_followed_from_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    let data = folder.path().join("board");
    fs::create_dir(&data).unwrap();
    let app = folder.path().join("app.log");
    fs::write(&app, "of before the agent\n").unwrap();
    // What it collects is told at the level of debug, every second.
    let number = folder.path().join("number");
    fs::write(&number, "1\n").unwrap();
    let collects = format!("[[file]]\npath = {number:?}\nmetric = \"t\"\nevery_s = 1\n");
    fs::write(data.join("agent.toml"), format!("[logs]\nfiles = [{app:?}]\n{collects}")).unwrap();
    let board = Board::joined(&data, &hub, "edge-1").await;
    let (code, out, errors) = ask(&hub, &["node", "logs", "edge-1", "-n", "200"]).await;
    assert!(code == 0 && out.contains("fleet-agent") && out.contains("connected"), "{out}{errors}");

    // More than one answer holds: an hour of it arrives, in order and whole.
    let lines: String =
        (0..1_000).map(|n| format!("line {n} {}\n", "of an application that talks ".repeat(2))).collect();
    let append = |text: &str| {
        use std::io::Write as _;
        fs::OpenOptions::new().append(true).open(&app).unwrap().write_all(text.as_bytes()).unwrap();
    };
    append(&lines[..lines.len() / 2]);
    time::sleep(Duration::from_secs(1)).await;
    append(&lines[lines.len() / 2..]);
    let unit = app.to_str().unwrap();
    let read = async || {
        let (code, out, errors) =
            ask(&hub, &["node", "logs", "edge-1", "--since", "1h", "--unit", unit, "-o", "json"]).await;
        assert_eq!(code, 0, "{errors}");
        let line =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["message"].as_str().unwrap().to_owned();
        out.lines().map(line).collect::<Vec<_>>()
    };
    let read = until("all lines are there", read, |read| read.len() >= 1_000).await;
    assert!(
        read.iter().enumerate().all(|(n, line)| line.starts_with(&format!("line {n} "))),
        "{:?}",
        &read[..3]
    );
    let (code, out, _) = ask(&hub, &["node", "logs", "edge-1", "--grep", "line 999 ", "-n", "5"]).await;
    assert!(code == 0 && out.lines().count() == 1, "{out}");

    let mut follow = fleet(&hub, &["node", "logs", "edge-1", "-f", "--unit", unit, "-n", "1"]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let out = BufReader::new(follow.stdout.take().unwrap());
    let (seen, mut sees) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| seen.send(line)));
    let mut next = async || time::timeout(PATIENCE, sees.recv()).await.unwrap().unwrap();
    assert!(next().await.contains("line 999"));
    for n in 0..3 {
        append(&format!("followed {n}\n"));
        assert!(next().await.ends_with(&format!("followed {n}")));
    }
    // Following is cheap: a question a second while there is something, one in 20 s while there is nothing.
    let made =
        async || hub.get("/api/v1/commands?kind=logs&limit=1000").await["items"].as_array().unwrap().len();
    let before = made().await;
    time::sleep(Duration::from_secs(5)).await;
    assert!(made().await - before <= 2, "{} questions in 5 s of silence", made().await - before);
    follow.kill().unwrap();
    follow.wait().unwrap();

    // How much is logged is changed at both ends while they run.
    let (code, _, errors) = ask(&hub, &["log-level", "loud"]).await;
    assert!(code != 0 && errors.contains("fleet_broker=debug"), "{errors}");
    assert_eq!(
        done(&hub, &["log-level", "info,fleet_broker=debug"]).await["level"],
        "info,fleet_broker=debug"
    );
    assert_eq!(done(&hub, &["log-level"]).await["at_start"], "warn");
    done(&hub, &["config", "set", "node/edge-1", "log.level=debug", "--wait"]).await;
    let debug = async || ask(&hub, &["node", "logs", "edge-1", "--level", "debug", "-n", "500"]).await.1;
    until("the agent says more", debug, |out| out.contains("  debug    collected")).await;
    drop(board);
    hub.end().await;
}
