//! The first start, interrupted at any moment, leaves a folder that the next start takes.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleet_manager::clock;
use rcgen::KeyPair;
use tokio::time;

use crate::given::{PATIENCE, Site};

fn spawn(data: &Path) -> Child {
    let any = "127.0.0.1:0";
    Command::new(env!("CARGO_BIN_EXE_fleet"))
        .arg("--data")
        .arg(data)
        .args(["hub", "--http", any, "--mqtt", any, "--mqtts", any, "--node-https", any])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn keys(data: &Path) -> Option<String> {
    fs::read_to_string(data.join("pki/keys.json")).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_is_killed_while_it_starts_for_the_first_time_starts_the_next_time() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let data = folder.path().join(round.to_string());
        let mut first_keys = None;
        // Ever later: from before the first file until it serves.
        for step in 0..8_u64 {
            let mut child = spawn(&data);
            time::sleep(Duration::from_millis(step * 12 + round * 3)).await;
            child.kill().unwrap();
            child.wait().unwrap();
            let found = keys(&data);
            assert!(first_keys.is_none() || first_keys == found, "keys that were there once stay");
            first_keys = found;
        }
        let mut child = spawn(&data);
        let deadline = clock::mono() + PATIENCE;
        let addresses: serde_json::Value = loop {
            assert!(clock::mono() < deadline && child.try_wait().unwrap().is_none(), "it does not start");
            let text = fs::read(data.join("addresses.json")).unwrap_or_default();
            let addresses: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
            let http = addresses.as_ref().and_then(|found| found["http"].as_str().map(str::to_owned));
            if let Some(http) = http
                && reqwest::get(format!("http://{http}/livez")).await.is_ok()
            {
                break addresses.unwrap();
            }
            time::sleep(Duration::from_millis(20)).await;
        };
        assert!(first_keys.is_none() || first_keys == keys(&data));
        let admin = fs::read_to_string(data.join("access/admin")).unwrap();
        let token = admin.lines().nth(1).unwrap();
        let url = format!("http://{}/api/v1/operators", addresses["http"].as_str().unwrap());
        let answer = reqwest::Client::new().get(&url).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_admin_is_made_once_and_secrets_are_for_the_owner_only() {
    let site = Site::start().await;
    let token = site.running.admin.clone().unwrap();
    let data = site.data.path();
    let kept = fs::read_to_string(data.join("access/admin")).unwrap();
    assert_eq!(kept, format!("admin\n{token}\n"));
    for file in ["access/admin", "access/local", "pki/keys.json", "pki/ca.pem"] {
        let mode = fs::metadata(data.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    for folder in ["access", "pki"] {
        assert_eq!(fs::metadata(data.join(folder)).unwrap().permissions().mode() & 0o777, 0o700, "{folder}");
    }
    let site = Site::start_in(site.stop().await).await;
    assert_eq!(site.running.admin, None);
    assert_eq!(fs::read_to_string(site.data.path().join("access/admin")).unwrap(), kept);
}

/// As on a board without a battery that has not been told the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_whose_clock_is_behind_when_it_last_ran_issues_nothing_until_somebody_has_looked() {
    let site = Site::start().await;
    let begun_ms = site.running.hub.clock().now().wall_ms;
    let data = site.stop().await;
    let file = data.path().join("clock");
    let kept: i64 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    assert!(kept >= begun_ms, "kept at the end, {kept}");
    let ahead_ms = begun_ms + 40 * 24 * 3_600_000;
    fs::write(&file, format!("{ahead_ms}\n")).unwrap();

    let site = Site::start_in(data).await;
    let readiness = site.running.hub.readiness();
    assert!(readiness.ready && readiness.reasons[0].contains("more than a day behind"), "{readiness:?}");
    assert!(site.running.hub.clock().now().wall_ms >= ahead_ms, "time goes on where it was");
    let (token, key) = (site.token(|_| ()).await, KeyPair::generate().unwrap());
    assert_eq!(site.join(&token, "roof", &key).await.code(), (503, "clock_in_doubt"));
    let data = site.stop().await;
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{ahead_ms}\n"));

    fs::remove_file(&file).unwrap();
    let site = Site::start_in(data).await;
    assert!(site.running.hub.readiness().reasons.is_empty());
    let (token, key) = (site.token(|_| ()).await, KeyPair::generate().unwrap());
    assert_eq!(site.join(&token, "roof", &key).await.issued().node.as_str(), "roof");
}
