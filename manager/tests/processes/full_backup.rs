//! A backup does not fit: nothing of it is left, the message says how much room it needs, the hub goes on, and backups
//! of before are as good as they were.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::{
    backup::{done, fleet},
    compare,
    full_disk::{Small, readiness},
    generator::Generator,
    given::{Agent, Hub, until},
};

/// Every file below a folder, but for objects that are whole: the next backup takes those as they are.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let digest = path.extension().map_or(0, |extension| extension.len());
        if path.is_dir() {
            found.extend(files(&path));
        } else if digest != 64 {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A verb of whoever may not write more than so many bytes into one file.
async fn limited(hub: &Hub, bytes: u64, verb: &[&str]) -> Output {
    let mut command = Command::new("/bin/sh");
    let script = format!("trap '' XFSZ; ulimit -S -f {}; exec \"$0\" \"$@\"", bytes.div_ceil(512));
    command.args(["-c", &script, env!("CARGO_BIN_EXE_fleet")]);
    command.args(["--hub", &format!("http://{}", hub.http), "--token", &hub.token()]);
    command.args(verb).env_remove("FLEET_HUB").stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What is so after a backup that did not fit, and that the hub goes on.
async fn is_as_before(
    ended: &Output,
    reason: &str,
    there: (&Path, &[PathBuf]),
    hub: &Hub,
    load: &mut Generator,
) {
    let text = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(text.contains(reason) && text.contains(" have to be free there, "), "{text}");
    assert_eq!(files(there.0), there.1, "nothing of it is left");
    assert!(!hub.data.join("backup.tmp").exists());
    assert_eq!(readiness(hub).await, (200, String::new()));
    assert!(load.samples(200).await);
}

/// A hub with something to back up, and who feeds it.
async fn fed(folder: &Path, data: &Path) -> (Hub, Agent, Generator) {
    let hub = Hub::start(data).await;
    let agent = Agent::new(folder, "writer", hub.mqtt, &[]).started().await;
    let mut generator = Generator::new(1, agent.door.clone());
    for _ in 0..10 {
        assert!(generator.samples(2_000).await);
    }
    agent.drained().await;
    (hub, agent, generator)
}

/// To verify and to restore say as much, and what they say is enough.
async fn unpacks_only_where_there_is_room(
    hub: &Hub,
    keys: &Path,
    (into, before): (&Path, &[PathBuf]),
    plain: u64,
) {
    let (from, empty) = (into.to_str().unwrap(), into.parent().unwrap().join("restored"));
    let restore = ["--data", empty.to_str().unwrap(), "restore", from];
    for verb in [&["backup", "verify", from][..], &restore] {
        let ended = limited(hub, plain / 8, verb).await;
        let text = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{text}");
        assert!(text.contains("File too large") && text.contains(" have to be free there, "), "{text}");
        assert_eq!(files(into), before, "nothing of it is left");
    }
    // Begun again, with room.
    done(&empty, None, keys, &["restore", from]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_does_not_fit_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, agent, mut load) = fed(folder.path(), &folder.path().join("hub")).await;
    let (data, keys) = (hub.data.clone(), folder.path().join("keys"));
    let into = folder.path().join("backups");
    fs::create_dir(&into).unwrap();
    let to = into.to_str().unwrap();
    let made = done(&data, Some(&hub), &keys, &["backup", to, "--telemetry"]).await;
    let (size, plain) = (made["size"].as_u64().unwrap(), made["bytes"].as_u64().unwrap());
    assert!(plain > 3 * size, "so that what is written fits, and what is unpacked does not: {made}");
    let before = files(&into);
    // Full while it is written, then while it is read back.
    for most in [4_096, size + size / 2] {
        for file in ["one.fleet-backup", ""] {
            let to = into.join(file);
            let verb = ["backup", to.to_str().unwrap(), "--telemetry"];
            // In a folder it is named by the second, and the one before may be of this.
            let tried = async || limited(&hub, most, &verb).await;
            let ended = until("the next second", tried, |ended| ended.status.code() != Some(7)).await;
            is_as_before(&ended, "File too large", (&into, &before), &hub, &mut load).await;
            done(&data, None, &keys, &["backup", "verify", into.to_str().unwrap()]).await;
        }
    }
    unpacks_only_where_there_is_room(&hub, &keys, (&into, &before), plain).await;

    // The same on a filesystem that is full.
    if let Some(small) = Small::mount(&folder.path().join("small")) {
        let older = small.0.join("older.fleet-backup");
        done(&data, Some(&hub), &keys, &["backup", older.to_str().unwrap()]).await;
        let free = || rustix::fs::statvfs(&small.0).map(|found| found.f_bavail * found.f_frsize).unwrap();
        let ballast = small.0.join("ballast");
        fs::write(&ballast, vec![1; usize::try_from(free() - 32_768).unwrap()]).unwrap();
        let before = files(&small.0);
        let to = small.0.join("newer.fleet-backup");
        let ended = fleet(&data, Some(&hub), &keys, &["backup", to.to_str().unwrap()]).await;
        is_as_before(&ended, "No space left on device", (&small.0, &before), &hub, &mut load).await;
        fs::remove_file(&ballast).unwrap();
        done(&data, None, &keys, &["backup", "verify", older.to_str().unwrap()]).await;
        done(&data, Some(&hub), &keys, &["backup", to.to_str().unwrap()]).await;
    } else {
        println!("skipped: a filesystem that is full needs the right to mount a tmpfs");
    }

    agent.drained().await;
    let ledger = compare::settled(&hub).await;
    assert_eq!(ledger["balanced"], Value::Bool(true));
    assert_eq!(compare::term(&ledger, "writer", compare::ALL, "lost"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_whose_own_disk_has_no_room_for_copies_says_so_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount_of(&folder.path().join("small"), "96m") else {
        println!("skipped: it needs the right to mount a tmpfs");
        return;
    };
    let (hub, agent, mut load) = fed(folder.path(), &small.0.join("hub")).await;
    let keys = folder.path().join("keys");
    let free = || rustix::fs::statvfs(&small.0).map(|found| found.f_bavail * found.f_frsize).unwrap();
    // Enough for the hub, too little for a copy beside it.
    let ballast = small.0.join("ballast");
    fs::write(&ballast, vec![1; usize::try_from(free() - (12 << 20)).unwrap()]).unwrap();
    let to = folder.path().join("a.fleet-backup");
    let verb = ["backup", to.to_str().unwrap()];
    let ended = fleet(&hub.data, Some(&hub), &keys, &verb).await;
    let text = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(7), "{text}");
    assert!(text.contains("a copy of state.redb does not fit; up to "), "{text}");
    assert!(!to.exists() && !hub.data.join("backup.tmp").exists());
    assert_eq!(readiness(&hub).await, (200, String::new()));
    assert!(load.samples(200).await);
    agent.drained().await;
    fs::remove_file(&ballast).unwrap();
    done(&hub.data, Some(&hub), &keys, &verb).await;
    drop(hub);
}
