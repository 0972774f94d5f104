//! The load generator tells the truth: what it believes to be durable is what the hub's ledger has.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fleet_manager::{api::shapes::Ledger, run::Addresses};
use serde_json::Value;

const FLEET: &str = env!("CARGO_BIN_EXE_fleet");

/// A hub in a process of its own.
struct Hub(Child, Addresses);

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "a deadline of the test itself")]
fn hub(data: &Path) -> Hub {
    let mut command = Command::new(FLEET);
    let any = "127.0.0.1:0";
    command
        .args(["hub", "--http", any, "--mqtt", any, "--mqtts", any, "--node-https", any, "--data"])
        .arg(data);
    let mut child = command.stdout(Stdio::null()).spawn().expect("the hub starts");
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(data.join("addresses.json")).unwrap_or_default();
        if let Ok(addresses) = serde_json::from_str(&text) {
            return Hub(child, addresses);
        }
        assert_eq!(child.try_wait().expect("the hub can be waited for"), None, "the hub ended");
        assert!(began.elapsed() < Duration::from_secs(30), "the hub does not come up");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn what_the_bench_believes_is_what_the_ledger_has() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(&folder.path().join("data"));
    let (http, mqtt) = (format!("http://{}", hub.1.http), hub.1.mqtt.to_string());
    let admin = fs::read_to_string(folder.path().join("data/access/admin")).unwrap();
    let token = admin.lines().nth(1).unwrap();
    let mut acked = 0;
    for batch in ["10", "500"] {
        let args = ["bench", "ingest", "--nodes", "5", "--seconds", "1", "--most", "300", "--batch", batch];
        let output = Command::new(FLEET)
            .args(args)
            .args(["--hub", &http, "--token", token, "--mqtt", &mqtt, "-o", "json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let figure = |name: &str| {
            let figures = report["figures"].as_array().unwrap();
            figures.iter().find(|figure| figure["name"] == name).unwrap()["value"].as_f64().unwrap()
        };
        assert!(figure("durable samples") > 0.0);
        assert_eq!(figure("samples acked"), figure("batches acked") * batch.parse::<f64>().unwrap());
        acked += figure("samples acked") as u64;
    }
    let ask = reqwest::Client::new().get(format!("{http}/api/v1/ledger?verify=true")).bearer_auth(token);
    let ledger: Ledger = ask.send().await.unwrap().json().await.unwrap();
    assert_eq!(ledger.accounts.iter().map(|account| account.stored).sum::<u64>(), acked);
    assert_eq!(ledger.accounts.iter().filter(|account| account.lane == "telemetry").count(), 10);
    assert!(ledger.accounts.iter().all(|account| account.state == "balanced"), "{ledger:?}");
    assert!(ledger.findings.unwrap().is_empty());
}

/// Runs a benchmark; gives what it found by name.
fn report(args: &[&str]) -> impl Fn(&str) -> Option<f64> + use<> {
    let mut command = Command::new(FLEET);
    let output = command.arg("bench").args(args).args(["-o", "json"]).output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report is JSON");
    move |name| {
        let figures = report["figures"].as_array().expect("a report has figures");
        figures.iter().find(|figure| figure["name"] == name)?["value"].as_f64()
    }
}

#[test]
fn sessions_over_tls_are_let_in_born_and_cost_something() {
    let figure = report(&["sessions", "--tls", "--nodes", "50"]);
    assert_eq!(figure("sessions"), Some(50.0));
    assert!(figure("CPU of a new session").unwrap() > 0.0);
    let (open, born) = (figure("memory of a session"), figure("memory of a session and its node"));
    assert!(0.0 < open.unwrap() && open <= born, "{open:?} {born:?}");
}

#[test]
fn messages_go_through_every_broker_in_turn() {
    for tls in [false, true] {
        let mut args = vec!["fan-in", "--clients", "3", "--seconds", "1", "--rounds", "1"];
        args.extend(tls.then_some("--tls"));
        let figure = report(&args);
        assert!(figure("gate and router").unwrap() > 0.0);
        // Only where it is installed.
        assert_ne!(figure("mosquitto"), Some(0.0));
        assert_eq!(figure("bare rumqttd to a TCP subscriber").is_some_and(|rate| rate > 0.0), !tls);
        // A tool that is too slow is cut off, and counted as that.
        let cut = figure("rounds in which it was cut off as too slow");
        assert_eq!(figure("what that tool gets").is_some_and(|rate| rate > 0.0), cut == Some(0.0));
        assert_eq!(cut.is_some(), !tls);
    }
}
