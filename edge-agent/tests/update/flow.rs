//! Skills from order to end: what is told, what runs, and what is refused.

use std::{fs, process::Command, time::Duration};

use fleet_edge_agent::{
    clock::Trust,
    core::{
        devices::Register,
        queue::{Passed, Time},
    },
    identity::folder::Folder,
    run,
    store::update::Ledger,
};
use fleet_schemas::{
    NodeId, command,
    update::{self, Kind, State, TUF_PATH, Window},
};
use serde_json::json;

use crate::{BINARY, Field, Process, clock, repo, until};

const WELL: &str = "[health]\ncommand = [\"./well\"]\ninterval_s = 0.1\n";

fn script(text: &str) -> (String, Vec<u8>) {
    ("well".to_owned(), format!("#!/bin/sh\n{text}\n").into_bytes())
}

/// The path of a release that is confirmed.
const WAY: [State; 7] = [
    State::Accepted,
    State::Downloading,
    State::Downloaded,
    State::Installing,
    State::Switching,
    State::Probation,
    State::Confirmed,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skills_come_stay_and_go_back() {
    let field = Field::new("flow-1").await;
    let agent = run::start(field.config.clone()).await.unwrap();
    field.repo.skill("1.0.0", WELL, &[script("exit 0")]);
    let first = field.order(1, "1.0.0", |_| ());
    let (report, result) = field.end(first).await;
    assert_eq!((report.state, result.state), (command::State::Succeeded, State::Confirmed), "{report:?}");
    assert_eq!(field.runs().as_deref(), Some("1.0.0"));
    until("each step told", async || field.told(first), |told| told.last() == Some(&State::Confirmed)).await;
    assert_eq!(field.told(first), WAY);
    // What runs is told before it counts as confirmed.
    let events = field.site.hub.events();
    let digest = |event: &fleet_schemas::event::Event| {
        update::running(event).and_then(|versions| versions.running.first().map(|running| running.digest))
    };
    let runs = events.iter().position(|event| digest(event) == Some(result.digest)).unwrap();
    let confirmed = events
        .iter()
        .position(|event| update::Report::of(event).is_some_and(|report| report.state == State::Confirmed));
    assert!(runs < confirmed.unwrap());
    let downloads = field.config.data.join("releases/downloads");
    until("no download is left", async || fs::read_dir(&downloads).unwrap().count(), |left| *left == 0).await;
    // The same again is nothing to do.
    let (report, result) = field.end(field.order(2, "1.0.0", |_| ())).await;
    assert_eq!((report.state, result.state), (command::State::Succeeded, State::Confirmed));
    assert_eq!(result.reason.unwrap().code, "already_running");

    // A release that never gets well goes, and is not tried a third time.
    field.repo.skill("1.1.0", WELL, &[script("echo no battery; exit 3")]);
    for number in [3, 4] {
        let id = field.order(number, "1.1.0", |order| order.probation_ms = Some(300));
        let (report, result) = field.end(id).await;
        assert_eq!((report.state, result.state), (command::State::Failed, State::RolledBack));
        let reason = report.reason.unwrap();
        assert!(reason.code == "unhealthy" && reason.message.contains("no battery"), "{reason:?}");
        assert_eq!(field.runs().as_deref(), Some("1.0.0"));
    }
    let (report, result) = field.end(field.order(5, "1.1.0", |_| ())).await;
    assert_eq!((report.state, result.state), (command::State::Rejected, State::Rejected));
    assert_eq!(report.reason.unwrap().code, "quarantined");

    // One that is better; then down again, which only an order to go back may.
    field.repo.skill("1.2.0", WELL, &[script("exit 0")]);
    let (_, result) = field.end(field.order(6, "1.2.0", |_| ())).await;
    assert_eq!((result.state, field.runs().as_deref()), (State::Confirmed, Some("1.2.0")));
    let (report, _) = field.end(field.order(7, "1.0.0", |_| ())).await;
    assert_eq!(report.reason.unwrap().code, "downgrade");
    let (_, result) = field.end(field.order(8, "1.0.0", |order| order.back = true)).await;
    assert_eq!((result.state, field.runs().as_deref()), (State::Confirmed, Some("1.0.0")));
    let kept = fs::read_dir(field.skill())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
    assert_eq!(kept.count(), 2, "what runs and what ran before");

    let status = agent.status().await.unwrap().updates.unwrap();
    assert_eq!((status.updates.len(), status.quarantined.len()), (0, 1));
    assert_eq!(status.running[0].version.as_str(), "1.0.0");
    assert!(agent.metrics().contains(r#"fleet_agent_updates_total{kind="skill",state="rolled_back"} 2"#));
    agent.stop().await;

    // The next birth says what runs, also when the account was lost meanwhile.
    fs::write(field.config.data.join("releases/update.redb"), [9; 5_000]).unwrap();
    let births = field.site.hub.births().len();
    let agent = run::start(field.config.clone()).await.unwrap();
    let all = until("a birth", async || field.site.hub.births(), |all| all.len() > births).await;
    let versions = &all.last().unwrap().versions;
    assert_eq!(versions.skills["greeter"], "1.0.0");
    assert_eq!((versions.running.len(), versions.running[0].kind), (1, Kind::Skill));
    agent.stop().await;

    // Somebody moves the link by hand: the hub is told what is so.
    let mut names =
        fs::read_dir(field.skill()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let other = names.find(|name| name.starts_with("1.2.0-") && !name.ends_with(".json")).unwrap();
    fs::remove_file(field.skill().join("current")).unwrap();
    std::os::unix::fs::symlink(other, field.skill().join("current")).unwrap();
    let births = field.site.hub.births().len();
    let agent = run::start(field.config.clone()).await.unwrap();
    let all = until("a birth", async || field.site.hub.births(), |all| all.len() > births).await;
    assert_eq!(all.last().unwrap().versions.skills["greeter"], "1.2.0");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_breaks_is_resumed_and_no_byte_comes_twice() {
    let field = Field::new("flow-2").await;
    let agent = run::start(field.config.clone()).await.unwrap();
    field.repo.skill("1.0.0", "", &[("noise".to_owned(), repo::noise(6_000_000))]);
    field.repo.cut(&[2_000_000, 1_500_000]);
    let (_, result) = field.end(field.order(1, "1.0.0", |_| ())).await;
    assert_eq!(result.state, State::Confirmed);
    let ranges = field.repo.ranges();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!(ranges[0] == 0 && ranges[1] > 1_000_000 && ranges[2] > ranges[1] + 500_000, "{ranges:?}");
    let length = field.repo.length("skill/greeter/1.0.0/any");
    let page = agent.metrics();
    assert!(page.contains(&format!("fleet_agent_update_bytes_total {length}\n")), "{page}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_what_was_signed_is_refused_and_nothing_is_installed() {
    let field = Field::new("flow-3").await;
    let agent = run::start(field.config.clone()).await.unwrap();
    let target = "skill/greeter/1.0.0/any";
    field.repo.skill("1.0.0", "", &[]);
    // Other bytes of the same length, twice; then more bytes.
    let path = field.repo.artifact_path(target);
    let length = usize::try_from(field.repo.length(target)).unwrap();
    field.repo.spoil(&path, vec![7; length].into());
    let (_, result) = field.end(field.order(1, "1.0.0", |_| ())).await;
    assert_eq!((result.state, result.reason.unwrap().code.as_str()), (State::Failed, "digest_mismatch"));
    assert_eq!(field.repo.ranges(), [0, 0], "it is fetched anew once");
    field.repo.spoil(&path, vec![7; length + 1].into());
    let (_, result) = field.end(field.order(2, "1.0.0", |_| ())).await;
    assert_eq!(result.reason.unwrap().code, "length_mismatch");
    // An order for another digest than was signed.
    let id = field.order(3, "1.0.0", |order| order.digest.0[0] ^= 1);
    let (report, result) = field.end(id).await;
    assert_eq!((report.state, result.state), (command::State::Rejected, State::Rejected));
    assert_eq!(result.reason.unwrap().code, "digest_mismatch");
    // A release that leaves its folder.
    let evil = repo::archive(&[("data".to_owned(), repo::data("2.0.0"))]);
    field.repo.release("skill/greeter/2.0.0/any", [&evil[..], b"tail"].concat(), &json!({}));
    let plain = {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..9].copy_from_slice(b"../../bad");
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        [header.as_bytes().to_vec(), vec![0; 1_024]].concat()
    };
    field.repo.release("skill/greeter/3.0.0/any", plain, &json!({}));
    let (_, result) = field.end(field.order(4, "3.0.0", |_| ())).await;
    assert_eq!((result.state, result.reason.unwrap().code.as_str()), (State::Failed, "bad_archive"));
    assert!(!field.config.data.join("releases/bad").exists() && !field.config.data.join("bad").exists());
    // A signature that does not fit.
    field.repo.skill("4.0.0", "", &[]);
    let mut spoilt = field.repo.served_file("timestamp.json").to_vec();
    let at = spoilt.windows(5).position(|part| part == b"\"sig\"").unwrap() + 8;
    spoilt[at] = if spoilt[at] == b'0' { b'1' } else { b'0' };
    field.repo.spoil(&format!("{TUF_PATH}/timestamp.json"), spoilt.into());
    let (_, result) = field.end(field.order(5, "4.0.0", |_| ())).await;
    assert_eq!((result.state, result.reason.unwrap().code.as_str()), (State::Rejected, "bad_signature"));
    assert_eq!(field.runs(), None);
    assert!(!field.skill().join("current").exists());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_called_off_or_gives_way_until_it_switches() {
    let field = Field::new("flow-4").await;
    let agent = run::start(field.config.clone()).await.unwrap();
    field.repo.skill("1.0.0", "", &[("noise".to_owned(), repo::noise(600_000))]);
    field.repo.skill("1.1.0", "", &[]);
    let downloading = async |id| {
        let told = async || field.told(id);
        until("it downloads", told, |told| told.contains(&State::Downloading)).await;
    };
    let hold = field.repo.hold(&field.repo.artifact_path("skill/greeter/1.0.0/any"), 100_000);
    let first = field.order(1, "1.0.0", |_| ());
    downloading(first).await;
    field.site.hub.cancel(first);
    let (report, result) = field.end(first).await;
    assert_eq!((report.state, result.state), (command::State::Canceled, State::Canceled));
    let second = field.order(2, "1.0.0", |_| ());
    downloading(second).await;
    let third = field.order(3, "1.1.0", |_| ());
    let (report, result) = field.end(second).await;
    assert_eq!((report.state, result.state), (command::State::Superseded, State::Superseded));
    let (_, result) = field.end(third).await;
    assert_eq!((result.state, field.runs().as_deref()), (State::Confirmed, Some("1.1.0")));
    drop(hold);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_and_budgets_hold_a_download_until_it_may_begin() {
    let field = Field::new("flow-5").await;
    let mut config = field.config.clone();
    let metered = config.data.join("metered");
    fs::write(&metered, "").unwrap();
    config.update.metered_while = Some(metered.clone());
    // A board without a clock of its own.
    config.clock.trust = Trust::Unsynced;
    let agent = run::start(config.clone()).await.unwrap();
    field.repo.skill("1.0.0", "", &[]);
    let window = Window { unmetered: true, ..Window::default() };
    let id = field.order(1, "1.0.0", |order| order.window = Some(window));
    let waits = async || agent.status().await.unwrap().updates.unwrap().updates;
    let waiting =
        until("it waits", waits, |all| all.iter().any(|update| update.state == State::Downloading)).await;
    assert!(waiting[0].reason.as_ref().unwrap().contains("paid by the byte"), "{waiting:?}");
    assert!(field.repo.ranges().is_empty());
    agent.stop().await;
    {
        // Its time is by the hub's: after a reboot it goes on.
        let opened = Ledger::open(&config.data.join("releases"), 0).unwrap();
        let at = |true_ms| Time { now: clock().now(), boot: [9; 8], true_ms };
        let now_ms = clock().now().wall_ms;
        let deadline = opened.ledger.account().updates[&id].deadline;
        let passed =
            [None, Some(now_ms), Some(now_ms + 600_000)].map(|true_ms| deadline.passed(&at(true_ms)));
        assert_eq!(passed, [Passed::Unknown, Passed::No, Passed::Yes]);
    }
    // The next start looks at once.
    fs::remove_file(&metered).unwrap();
    let agent = run::start(config).await.unwrap();
    let (_, result) = field.end(id).await;
    assert_eq!(result.state, State::Confirmed);
    // Hours that cannot be read, and a zone that nobody knows.
    for (number, window) in [
        (2, Window { hours: Some("soon".into()), ..Window::default() }),
        (3, Window { zone: Some("Mars/Olympus".into()), ..Window::default() }),
    ] {
        field.repo.skill("1.1.0", "", &[]);
        let (report, _) = field.end(field.order(number, "1.1.0", |order| order.window = Some(window))).await;
        assert_eq!(report.reason.unwrap().code, "bad_window");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_takes_no_updates_says_why() {
    let field = Field::new("flow-6").await;
    let mut config = field.config.clone();
    config.update.enabled = false;
    let agent = run::start(config).await.unwrap();
    field.repo.skill("1.0.0", "", &[]);
    let (report, _) = field.site.hub.end(field.order(1, "1.0.0", |_| ())).await;
    assert_eq!(
        (report.state, report.reason.unwrap().code.as_str()),
        (command::State::Rejected, "updates_off")
    );
    assert_eq!(agent.status().await.unwrap().updates, None);
    assert!(field.site.hub.births()[0].versions.running.is_empty());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_during_the_download_leaves_what_runs() {
    let field = Field::new("flow-7").await;
    field.repo.skill("1.0.0", "", &[]);
    let agent = run::start(field.config.clone()).await.unwrap();
    let (_, result) = field.end(field.order(1, "1.0.0", |_| ())).await;
    assert_eq!(result.state, State::Confirmed);
    agent.stop().await;
    // A limit on the size of files, with the signal ignored: the writes fail as on a full disk.
    let mut command = Command::new("/bin/sh");
    let script = "trap '' XFSZ; ulimit -S -f 12000; exec \"$0\" run --data \"$1\" --api 127.0.0.1:0";
    command.args(["-c", script, BINARY]).arg(&field.config.data);
    let agent = Process::start(command);
    field.repo.skill("1.1.0", "", &[("noise".to_owned(), repo::noise(16_000_000))]);
    let (report, result) = field.end(field.order(2, "1.1.0", |_| ())).await;
    assert_eq!((report.state, result.state), (command::State::Failed, State::Failed));
    let reason = result.reason.unwrap();
    assert!(reason.code == "no_space" && reason.message.contains("still to come"), "{reason:?}");
    assert_eq!(field.runs().as_deref(), Some("1.0.0"));
    // Nothing of it is left, and it may be tried again: that says nothing about the release.
    let downloads = field.config.data.join("releases/downloads");
    until("no download is left", async || fs::read_dir(&downloads).unwrap().count(), |left| *left == 0).await;
    drop(agent);
    let agent = run::start(field.config.clone()).await.unwrap();
    let (_, result) = field.end(field.order(3, "1.1.0", |_| ())).await;
    assert_eq!((result.state, field.runs().as_deref()), (State::Confirmed, Some("1.1.0")));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_is_told_and_asked() {
    let field = Field::new("flow-8").await;
    let log = field.config.data.join("log");
    let agent = run::start(field.config.clone()).await.unwrap();
    let hook = |fails: bool| {
        let end = if fails { "exit 1" } else { "exit 0" };
        let text = format!("echo $FLEET_SKILL $FLEET_VERSION >> {}; {end}", log.display());
        ("hook".to_owned(), format!("#!/bin/sh\n{text}\n").into_bytes())
    };
    let manifest = "[hooks]\nstarted = [\"./hook\"]\n";
    field.repo.skill("1.0.0", manifest, &[hook(false)]);
    field.repo.skill("1.1.0", manifest, &[hook(true)]);
    let (_, result) = field.end(field.order(1, "1.0.0", |_| ())).await;
    assert_eq!(result.state, State::Confirmed);
    let (report, result) = field.end(field.order(2, "1.1.0", |_| ())).await;
    assert_eq!((result.state, report.reason.unwrap().code.as_str()), (State::Failed, "hook_failed"));
    assert_eq!(field.runs().as_deref(), Some("1.0.0"));
    let told = fs::read_to_string(&log).unwrap();
    assert_eq!(told, "greeter 1.0.0\ngreeter 1.1.0\ngreeter 1.0.0\n");
    // A server that answers is well; one that went after it had been is broken before its trial is over.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let _ = stream.read(&mut [0; 1_024]).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
                .await;
        }
    });
    let manifest =
        format!("[health]\nhttp = \"http://127.0.0.1:{port}/\"\ninterval_s = 0.05\ntimeout_s = 5\n");
    field.repo.skill("1.2.0", &manifest, &[]);
    let (_, result) = field.end(field.order(3, "1.2.0", |_| ())).await;
    assert_eq!(result.state, State::Confirmed);
    field.repo.skill("1.3.0", &manifest, &[]);
    let id = field.order(4, "1.3.0", |order| order.probation_ms = Some(600_000));
    let told = async || field.told(id);
    until("on trial", told, |told| told.contains(&State::Probation)).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    server.abort();
    let (report, result) = field.end(id).await;
    assert_eq!((result.state, report.reason.unwrap().code.as_str()), (State::RolledBack, "unhealthy"));
    assert_eq!(field.runs().as_deref(), Some("1.2.0"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hub_changes_its_ca_in_the_middle_of_a_download() {
    let field = Field::new("flow-9").await;
    let mut config = field.config.clone();
    config.hub.trust = Duration::from_secs(1);
    let agent = run::start(config.clone()).await.unwrap();
    field.repo.skill("1.0.0", "", &[("noise".to_owned(), repo::noise(3_000_000))]);
    let hold = field.repo.hold(&field.repo.artifact_path("skill/greeter/1.0.0/any"), 1_000_000);
    field.repo.cut(&[1_500_000]);
    let id = field.order(1, "1.0.0", |_| ());
    let told = async || field.told(id);
    until("it downloads", told, |told| told.contains(&State::Downloading)).await;
    field.site.add_ca();
    let stored = async || Folder::new(&config.data).load().unwrap().unwrap();
    until("both are trusted, and it has a certificate of the new one", stored, |joined| {
        joined.ca.len() == 2 && joined.next.as_ref().is_some_and(|next| next.certificate.is_some())
    })
    .await;
    field.site.drop_old_ca();
    // The connection that is open breaks, and the next meets another hub's certificate.
    drop(hold);
    field.site.hub.broker.as_ref().unwrap().kick(&NodeId::parse("flow-9").unwrap(), "for the test");
    let (_, result) = field.end(id).await;
    assert_eq!((result.state, field.runs().as_deref()), (State::Confirmed, Some("1.0.0")));
    let ranges = field.repo.ranges();
    assert!(ranges.len() >= 2 && *ranges.last().unwrap() > 1_000_000, "{ranges:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_is_a_device_is_well_once_it_is_heard() {
    let field = Field::new("flow-10").await;
    let mut config = field.config.clone();
    config.devices.register = Register::Auto;
    let agent = run::start(config).await.unwrap();
    let url = format!("http://{}/api/v1/telemetry", agent.api());
    let speak = async || {
        let body = json!({"device": "greeter", "samples": [{"metric": "m", "value": 1}]}).to_string();
        let request = reqwest::Client::new().post(&url).header("content-type", "application/json");
        assert_eq!(request.body(body).send().await.unwrap().status(), 202);
    };
    // Before the switch does not count.
    speak().await;
    field.repo.skill("1.0.0", "[health]\nheartbeat = \"greeter\"\ninterval_s = 0.05\n", &[]);
    let id = field.order(1, "1.0.0", |order| order.probation_ms = Some(400));
    let (report, result) = field.end(id).await;
    let reason = report.reason.unwrap();
    assert_eq!((result.state, reason.code.as_str()), (State::RolledBack, "unhealthy"));
    assert!(reason.message.contains("has not been heard"), "{reason:?}");
    assert_eq!(field.runs(), None, "there was nothing before");
    let id = field.order(2, "1.0.0", |order| order.probation_ms = Some(3_000));
    let told = async || field.told(id);
    until("on trial", told, |told| told.contains(&State::Probation)).await;
    speak().await;
    let (_, result) = field.end(id).await;
    assert_eq!((result.state, field.runs().as_deref()), (State::Confirmed, Some("1.0.0")));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_hub_it_is_not_confirmed_unless_the_order_says_so() {
    let field = Field::new("flow-11").await;
    let mut config = field.config.clone();
    config.update.reach = Duration::from_millis(700);
    let agent = run::start(config.clone()).await.unwrap();
    field.repo.skill("1.0.0", "", &[]);
    field.repo.skill("1.1.0", "", &[]);
    let (_, result) = field.end(field.order(1, "1.0.0", |order| order.offline_ok = true)).await;
    assert_eq!(result.state, State::Confirmed);
    // The gate closes while the bytes are on their way.
    let node = NodeId::parse("flow-11").unwrap();
    let hold = field.repo.hold(&field.repo.artifact_path("skill/greeter/1.1.0/any"), 0);
    let id = field.order(2, "1.1.0", |_| ());
    let told = async || field.told(id);
    until("it downloads", told, |told| told.contains(&State::Downloading)).await;
    field.site.book().nodes.get_mut(&node).unwrap().revoked = true;
    field.site.hub.broker.as_ref().unwrap().kick(&node, "for the test");
    let offline = async || agent.status().await.unwrap().status;
    until("offline", offline, |status| status == "offline").await;
    drop(hold);
    let last = async || agent.status().await.unwrap().updates.unwrap().last.unwrap();
    let last = until("over", last, |last| last.target.version.as_str() == "1.1.0").await;
    assert_eq!(last.state, State::RolledBack);
    assert!(last.reason.unwrap().starts_with("inconclusive_link"), "the one before did not reach it either");
    assert_eq!(field.runs().as_deref(), Some("1.0.0"));
    field.site.book().nodes.get_mut(&node).unwrap().revoked = false;
    let (report, result) = field.end(id).await;
    assert_eq!(
        (report.state, result.reason.unwrap().code.as_str()),
        (command::State::Failed, update::INCONCLUSIVE)
    );
    assert!(agent.status().await.unwrap().updates.unwrap().quarantined.is_empty());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_that_was_pinned_with_the_identity_counts_and_no_other() {
    let field = Field::new("flow-12").await;
    let mut config = field.config.clone();
    config.hub.trust = Duration::from_secs(1);
    let other = repo::Repo::new();
    let root = String::from_utf8(other.served_file("1.root.json").to_vec()).unwrap();
    field.site.book().releases_root = Some(root);
    let agent = run::start(config.clone()).await.unwrap();
    let stored = async || Folder::new(&config.data).load().unwrap().unwrap().releases_root;
    until("it is pinned", stored, Option::is_some).await;
    field.repo.skill("1.0.0", "", &[]);
    let (report, result) = field.end(field.order(1, "1.0.0", |_| ())).await;
    assert_eq!((report.state, result.state), (command::State::Rejected, State::Rejected));
    assert_eq!(result.reason.unwrap().code, "bad_signature");
    // What was heard first stays, whatever the hub says later.
    let own = String::from_utf8(field.repo.served_file("1.root.json").to_vec()).unwrap();
    field.site.book().releases_root = Some(own);
    let (_, result) = field.end(field.order(2, "1.0.0", |_| ())).await;
    assert_eq!((result.state, field.runs()), (State::Rejected, None));
    agent.stop().await;
}
