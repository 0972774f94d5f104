//! SIGKILL while a file is pushed and while releases are signed: what the hub has afterwards is whole, and goes on.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleet_manager::{clock, release};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sha2::{Digest as _, Sha256};
use tokio::time;

use crate::given::Hub;

/// How often the hub is killed in each part.
const KILLS: u64 = 8;

fn seed() -> u64 {
    let given = std::env::var("FLEET_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| u64::from_le_bytes(clock::random()))
}

fn fleet(hub: &Hub, keys: &Path, verb: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_fleet"))
        .arg("--data")
        .arg(&hub.data)
        .args(["--hub", &format!("http://{}", hub.http), "--token", &hub.token()])
        .args(verb)
        .env("FLEET_PASSPHRASE", "")
        .env("FLEET_RELEASE_KEYS", keys)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn done(child: Child) -> bool {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    if !output.status.success() {
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// Kills the hub a moment after the verb began, and starts it again. Says whether the verb came through all the same.
async fn cut(hub: &mut Hub, keys: &Path, verb: &[&str], after: Duration) -> bool {
    let child = fleet(hub, keys, verb);
    time::sleep(after).await;
    hub.kill();
    let came_through = done(child).await;
    hub.up().await;
    came_through
}

/// What a node says of the files in the hub's folder.
fn verified(hub: &Hub) -> u64 {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(hub.data.join("releases")).unwrap() {
        let entry = entry.unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        files.insert(entry.file_name().into_string().unwrap(), bytes.into());
    }
    release::verify(&files, clock::wall_ms()).unwrap().seen().targets
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn pushing_and_signing_survive_kills_of_the_hub() {
    let seed = seed();
    println!("seed {seed}: FLEET_SEED={seed} draws the same moments again");
    let mut draw = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let (keys, mut hub) = (folder.path().join("keys"), Hub::start(&folder.path().join("hub")).await);
    let bytes: Vec<u8> = (0..24_000_000_u32).map(|at| (at / 3) as u8).collect();
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let large = file(folder.path(), "large.tar", &bytes);
    let push = ["artifact", "push", large.to_str().unwrap(), "--name", "large", "--version", "1.0.0"];
    for _ in 0..KILLS {
        let after = Duration::from_millis(draw.random_range(20..600));
        cut(&mut hub, &keys, &push, after).await;
        // Where it stands is where it goes on, or it is whole.
        let stored = hub.data.join("artifacts").join(&digest);
        let part = hub.data.join("artifacts/uploads").join(format!("{digest}.part"));
        assert!(!stored.exists() || fs::read(&stored).unwrap() == bytes, "it has its name and is not whole");
        if let Ok(part) = fs::read(&part) {
            assert!(bytes.starts_with(&part), "what is there is not the beginning");
        }
    }
    assert!(done(fleet(&hub, &keys, &push)).await, "it goes on to its end");
    // Killed after the last byte and before it had its name.
    hub.kill();
    let (stored, uploads) = (hub.data.join("artifacts"), hub.data.join("artifacts/uploads"));
    fs::rename(stored.join(&digest), uploads.join(format!("{digest}.part"))).unwrap();
    fs::rename(stored.join(format!("{digest}.json")), uploads.join(format!("{digest}.json"))).unwrap();
    hub.up().await;
    assert!(done(fleet(&hub, &keys, &push)).await, "all bytes are there, and it ends");
    assert_eq!(hub.get(&format!("/api/v1/artifacts/{digest}")).await["length"], bytes.len());

    assert!(done(fleet(&hub, &keys, &["release", "init"])).await);
    let mut signed = verified(&hub);
    for n in 0..KILLS {
        let (version, small) = (format!("1.{n}.0"), file(folder.path(), "small.tar", &[n as u8; 100]));
        let push = ["artifact", "push", small.to_str().unwrap(), "--name", "small", "--version", &version];
        assert!(done(fleet(&hub, &keys, &push)).await);
        let release = format!("small@{version}");
        let after = Duration::from_millis(draw.random_range(10..250));
        let came_through = cut(&mut hub, &keys, &["release", "sign", &release], after).await;
        let now = verified(&hub);
        assert!(now == signed + 1 || (now == signed && !came_through), "{now} follows {signed}");
        signed = now;
        // Signed again it is signed, whatever came of it before.
        assert!(done(fleet(&hub, &keys, &["release", "sign", &release])).await);
        assert_eq!(verified(&hub), signed + 1);
        signed += 1;
    }
    let releases = hub.get("/api/v1/releases").await;
    assert_eq!(releases["items"].as_array().unwrap().len() as u64, KILLS);
    hub.end().await;
}
