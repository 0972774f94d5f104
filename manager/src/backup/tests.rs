//! A data folder with something of everything, backed up, damaged, restored.

use std::{
    collections::BTreeSet,
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_schemas::{CommandId, DeviceId, Lane, MetricName, NodeId, StoreId, telemetry};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{
    make::{Ask, Sources},
    read::Place,
    restore::{Options, Report},
    *,
};
use crate::{
    artifact,
    consume::{CREDIT, Consumer},
    core::{
        Now,
        command::{Command, Execution},
        fleet::Record,
        identity::{Change, Enrolment, Standing, Token},
        registry::{Intent, Order},
    },
    pki::Pki,
    release::{self, Key, Releases, Signers},
    store::{
        disk::Folder,
        state::{Commit, StateStore},
        telemetry::{InboxBatch, Query, TelemetryStore},
    },
};

pub(crate) const NOW_MS: i64 = 1_796_000_000_000;
const WEEK_MS: i64 = 7 * 86_400_000;
const ID: StoreId = StoreId([7; 16]);

pub(crate) fn now(ms: i64) -> Now {
    Now { wall_ms: ms, mono: Duration::from_secs(1) }
}

fn node(id: &str) -> NodeId {
    NodeId::parse(id).unwrap()
}

fn open(data: &Path, ms: i64) -> Consumer {
    let config = crate::store::telemetry::Config::default();
    Consumer::open(std::sync::Arc::new(Folder::new(data)), config, ID, now(ms)).unwrap()
}

/// Appends so many samples of a node, received then.
pub(crate) fn measure(store: &TelemetryStore, node: u32, recv_ms: i64, count: i64) {
    let mut builder = telemetry::Builder::default();
    for nth in 0..count {
        let device = DeviceId::parse("probe").unwrap();
        let metric = MetricName::parse("temperature").unwrap();
        let (time_ms, value) = (recv_ms + nth, nth as f64);
        builder.push(telemetry::Sample { time_ms, device, metric, unit: None, value });
    }
    let samples = builder.build();
    let body = samples.encode();
    let mut write = store.begin().unwrap();
    let (lane, shift_ms) = (Lane::Telemetry, 0);
    let batch = InboxBatch { node, lane, recv_ms, shift_ms, samples: &samples, body: &body, payload: None };
    write.append(&batch).unwrap();
    write.commit().unwrap();
}

fn token(id: &str) -> Token {
    Token {
        id: id.to_owned(),
        secret: [1; 32],
        created_ms: NOW_MS,
        created_by: "operator ann".to_owned(),
        expires_ms: NOW_MS + 900_000,
        uses: 2,
        labels: Default::default(),
        approve: false,
        replace: None,
        used_by: Vec::new(),
    }
}

fn command(n: u8, idempotent: bool) -> Command {
    let word = |text: &str| MetricName::parse(text).unwrap();
    Command {
        id: CommandId([n; 16]),
        no: n.into(),
        kind: word("exec"),
        params: ciborium::Value::Null,
        params_bytes: 1,
        queue: word("main"),
        priority: 0,
        idempotent,
        supersedes: None,
        created_ms: NOW_MS,
        not_before_ms: None,
        not_after_ms: NOW_MS + 3_600_000,
        timeout_ms: 1_000,
        by: "operator ann".to_owned(),
        selector: None,
    }
}

/// A hub's folder: two nodes, samples of this week and of one past, commands, tokens, keys, a signed artifact.
pub(crate) fn hub() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut consumer = open(data, NOW_MS - WEEK_MS);
    let shared = consumer.shared().clone();
    let nodes = vec![(1, Record::new(node("a"), NOW_MS)), (2, Record::new(node("b"), NOW_MS))];
    let mut commands = crate::core::command::Effects::default();
    for (n, idempotent) in [(1, false), (2, true)] {
        let made = std::sync::Arc::new(command(n, idempotent));
        commands.write(made.id, 1, None, &Execution::new(NOW_MS, NOW_MS));
        commands.made.push(made);
    }
    shared.state().apply(&Commit { nodes, commands, ..Commit::default() }).unwrap();
    measure(&shared.telemetry, 1, NOW_MS - WEEK_MS, 500);
    // Everything of then is sealed, and no feed wants it any more.
    while shared.telemetry.seal(NOW_MS).unwrap().more {}
    measure(&shared.telemetry, 1, NOW_MS, 30);
    measure(&shared.telemetry, 2, NOW_MS, 7);
    // The newest rows stay; those of the week before go.
    while shared.telemetry.seal(NOW_MS + 61_000).unwrap().more {}
    let order = |change| Order { by: "operator ann".to_owned(), intent: Intent::Identity(change) };
    let orders = vec![order(Change::PutToken(token("one"))), order(Change::PutToken(token("two")))];
    consumer.consume(std::iter::empty(), orders, CREDIT, now(NOW_MS)).unwrap();
    consumer.keep_trail(&data.join(trail::FILE), now(NOW_MS)).unwrap();
    Pki::open(data, &[], std::sync::Arc::new(|| (now(NOW_MS), false))).unwrap();
    sign(data);
    fs::create_dir_all(data.join("access")).unwrap();
    fs::write(data.join("access/admin"), "admin\nsecret\n").unwrap();
    fs::create_dir_all(data.join("nodes/demo-1")).unwrap();
    fs::write(data.join("addresses.json"), "{}").unwrap();
    folder
}

fn releases(data: &Path, ms: i64) -> Releases {
    let artifacts = std::sync::Arc::new(artifact::Store::open(data, ms).unwrap());
    Releases::open(data, artifacts, std::sync::Arc::new(move || (now(ms), false))).unwrap()
}

fn sign(data: &Path) {
    let releases = releases(data, NOW_MS);
    let (root, targets) = (Key::generate().unwrap(), Key::generate().unwrap());
    let (snapshot, timestamp) = releases.online_keys();
    let signers = Signers { root: vec![root.public()], targets: vec![targets.public()], snapshot, timestamp };
    let root = release::make::sign(release::make::root(1, &signers, NOW_MS).unwrap(), &[&root]).unwrap();
    let listed = release::make::targets(1, &Default::default(), NOW_MS).unwrap();
    let targets = release::make::sign(listed, &[&targets]).unwrap();
    releases.publish(Some(&root), Some(&targets)).unwrap();
    let bytes = vec![5; 100_000];
    let digest = fleet_schemas::update::Digest(Sha256::digest(&bytes).into());
    let target = "skill/greeter/1.0.0/any".parse().unwrap();
    let pushed = artifact::Pushed { target, at_ms: 1, by: "ann".into(), min_from: None, device_kind: None };
    let artifacts = releases.artifacts();
    artifacts.begin(digest, bytes.len() as u64, pushed).unwrap();
    let upload = artifacts.upload(&digest).unwrap();
    upload.append(0, &bytes).unwrap();
    artifacts.complete(&upload).unwrap();
}

fn back_up(data: &Path, ask: &Ask) -> (Vec<u8>, Manifest) {
    back_up_with(data, ask, None)
}

fn sources(data: &Path, trail: Option<PathBuf>) -> Sources {
    let (state, samples) = restore::stores(data, now(NOW_MS)).unwrap();
    let moment = samples.moment(&state).unwrap().unwrap();
    let store_id = state.store_id().to_string();
    Sources { data: data.to_owned(), moment, releases: None, trail, store_id, now_ms: NOW_MS }
}

fn back_up_with(data: &Path, ask: &Ask, trail: Option<PathBuf>) -> (Vec<u8>, Manifest) {
    let mut out = Vec::new();
    let manifest = make::write(sources(data, trail), ask, &mut out, &|| true).unwrap();
    (out, manifest)
}

fn write(folder: &Path, bytes: &[u8]) -> Place {
    let file = folder.join("a.fleet-backup");
    fs::write(&file, bytes).unwrap();
    Place { file, objects: folder.join(OBJECTS) }
}

fn verify(place: &Place) -> Result<read::Checked, Error> {
    let scratch = tempfile::tempdir().unwrap();
    read::verify(place, None, scratch.path(), &mut |_, _| {})
}

fn restore_to(place: &Place, data: &Path, trail: Option<&Path>) -> Result<Report, Error> {
    let options = Options { place, keys: None, data, trail, now: now(NOW_MS + 60_000) };
    restore::restore(&options, &mut |_, _| {})
}

fn samples(store: &TelemetryStore, node: u32) -> usize {
    let query = Query {
        node,
        device: None,
        metric: None,
        from_ms: i64::MIN,
        to_ms: i64::MAX,
        step: None,
        series_max: 100,
        points_max: 100_000,
    };
    store.query(&query).unwrap().iter().map(|series| series.points.len()).sum()
}

#[test]
fn a_restored_hub_has_what_the_old_one_had_and_is_another() {
    let (hub, there) = (hub(), tempfile::tempdir().unwrap());
    let ask = Ask { telemetry: true, ..Ask::default() };
    let (bytes, manifest) = back_up(hub.path(), &ask);
    assert_eq!(manifest.left_out, ["nodes"]);
    assert!(!hub.path().join(make::COPIES).exists(), "copies are removed");
    let place = write(there.path(), &bytes);
    let checked = verify(&place).unwrap();
    assert!(checked.opened >= 3 && checked.counts["nodes"] == 2, "{checked:?}");

    let data = there.path().join("restored");
    let report = restore_to(&place, &data, None).unwrap();
    assert_eq!((report.nodes, report.held, report.tokens_ended, report.samples_missing), (2, 1, 2, 0));
    assert_eq!(report.config_epoch, 1);
    assert!(!restore::is_unfinished(&data));
    for same in ["pki/keys.json", "releases/online.json", "access/admin"] {
        assert_eq!(fs::read(data.join(same)).unwrap(), fs::read(hub.path().join(same)).unwrap(), "{same}");
    }
    assert!(!data.join("addresses.json").exists() && !data.join("nodes").exists());

    let consumer = open(&data, NOW_MS + 70_000);
    assert_eq!(consumer.store_id().to_string(), report.store_id);
    assert_ne!(consumer.store_id(), ID);
    let shared = consumer.shared();
    assert_eq!((samples(&shared.telemetry, 1), samples(&shared.telemetry, 2)), (530, 7));
    let fleet = shared.fleet();
    assert_eq!(fleet.nodes.len(), 2);
    let held = |n: u8| fleet.commands.held_of(&CommandId([n; 16]));
    assert_eq!((held(1), held(2)), (1, 0), "what may be done twice is not held");
    assert_eq!(fleet.restored.as_ref().unwrap().restore.backup_ms, NOW_MS);
    assert!(shared.identities().tokens.values().all(|token| token.expires_ms <= NOW_MS + 60_000));
    drop(fleet);
    // A node that saw later versions of the old hub takes these.
    let (timestamp, snapshot) = report.releases.unwrap();
    let floor = release::restored_from(NOW_MS + 60_000);
    assert!(timestamp >= floor && snapshot >= floor);
    let again = releases(&data, NOW_MS + 60_000);
    assert_eq!(again.next_targets(), floor);
    assert_eq!(again.artifacts().all().len(), 1);
    release::verify(&again.files(), NOW_MS + 60_000).unwrap();
}

#[test]
fn what_root_restores_belongs_to_the_owner_of_the_folder() {
    use std::os::unix::fs::{MetadataExt as _, chown};

    let (hub, there) = (hub(), tempfile::tempdir().unwrap());
    let (bytes, _) = back_up(hub.path(), &Ask::default());
    let place = write(there.path(), &bytes);
    let data = there.path().join("restored");
    fs::create_dir(&data).unwrap();
    // Anybody else restores as themselves, and owns it all.
    if rustix::process::geteuid().is_root() {
        chown(&data, Some(65_534), Some(65_534)).unwrap();
    }
    restore_to(&place, &data, None).unwrap();
    let owner = |path: &Path| fs::symlink_metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    let (mut folders, mut seen) = (vec![data.clone()], 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(owner(&path), owner(&data), "{}", path.display());
            seen += 1;
            folders.extend(path.is_dir().then_some(path));
        }
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn nothing_behind_a_link_is_given_away() {
    use std::os::unix::fs::{MetadataExt as _, chown, symlink};

    let there = tempfile::tempdir().unwrap();
    let (data, other) = (there.path().join("data"), there.path().join("other"));
    fs::create_dir_all(data.join("inner")).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join("secret"), "").unwrap();
    fs::write(data.join("inner/file"), "").unwrap();
    symlink(&other, data.join("link")).unwrap();
    symlink(other.join("secret"), data.join("inner/link")).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&data, Some(65_534), Some(65_534)).unwrap();
    }
    let before = fs::metadata(&other).unwrap().uid();
    restore::give_to_owner(&data).unwrap();
    let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
    assert_eq!(owner(&data.join("inner/file")), owner(&data));
    assert_eq!((owner(&other), owner(&other.join("secret"))), (before, before));
}

#[test]
fn a_small_backup_books_the_weeks_that_it_leaves_out() {
    let (hub, there) = (hub(), tempfile::tempdir().unwrap());
    let (bytes, manifest) = back_up(hub.path(), &Ask::default());
    assert!(manifest.left_out.iter().any(|name| name.starts_with("telemetry/20")), "{manifest:?}");
    let place = write(there.path(), &bytes);
    verify(&place).unwrap();
    let data = there.path().join("restored");
    let report = restore_to(&place, &data, None).unwrap();
    let consumer = open(&data, NOW_MS + 70_000);
    let shared = consumer.shared();
    let left = samples(&shared.telemetry, 1) as u64;
    assert_eq!(report.samples_missing, 530 - left);
    assert!(report.samples_missing > 0, "the inbox kept everything");
    let counters = shared.telemetry.counters(1, Lane::Telemetry).unwrap();
    assert_eq!((counters.stored, counters.lost), (left, 530 - left));
    let told =
        shared.state().events(crate::store::state::EventFilter { limit: 9, ..Default::default() }).unwrap();
    assert!(told.iter().any(|(_, row)| row.event.message.contains("without --telemetry")), "{told:?}");
}

#[test]
fn damage_is_found_wherever_it_is_and_no_hub_is_made_of_it() {
    let (hub, there) = (hub(), tempfile::tempdir().unwrap());
    let (bytes, _) = back_up(hub.path(), &Ask::default());
    let data = there.path().join("restored");
    let unpacked = |bytes: &[u8]| zstd::decode_all(bytes).unwrap();
    // What is packed may say the same bytes in another way, by a place that has the like: that is no damage.
    let same =
        |bad: &[u8], what: &str| assert!(unpacked(bad) == unpacked(&bytes), "{what} of {}", bytes.len());
    for at in (0..bytes.len()).step_by(3) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x40;
        if verify(&write(there.path(), &bad)).is_ok() {
            same(&bad, &format!("byte {at}"));
        }
    }
    let mut state = 12_345_u64;
    for turn in 0..60 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (state >> 33) as usize % bytes.len();
        let mut bad = bytes.clone();
        match turn % 3 {
            0 => bad.truncate(at),
            1 => bad[at] ^= 0x40,
            _ => drop(bad.splice(at..at, [1, 2, 3])),
        }
        let place = write(there.path(), &bad);
        if verify(&place).is_ok() {
            same(&bad, &format!("turn {turn}, byte {at}"));
            continue;
        }
        if turn % 10 == 0 {
            assert!(restore_to(&place, &data, None).is_err());
            assert!(restore::is_unfinished(&data), "no hub may start on it");
        }
    }
    // The same folder is taken once there is a good one.
    restore_to(&write(there.path(), &bytes), &data, None).unwrap();
    let again = restore_to(&write(there.path(), &bytes), &data, None);
    assert!(matches!(again, Err(Error::NotEmpty(_))), "{again:?}");
    open(&data, NOW_MS + 70_000);
}

/// The hub was told another place for its revocations, as the operator's guide has it: the file of before lies there yet.
#[test]
fn revocations_that_lie_elsewhere_are_taken_once() {
    let (hub, elsewhere) = (hub(), tempfile::tempdir().unwrap());
    let newer = elsewhere.path().join("revocations.jsonl");
    let older = hub.path().join(trail::FILE);
    fs::write(&newer, [fs::read(&older).unwrap(), b"\n".to_vec()].concat()).unwrap();
    assert_eq!(make::trail_elsewhere(hub.path(), &older), None);
    assert_eq!(make::trail_elsewhere(hub.path(), &newer), Some(newer.clone()));
    let (bytes, manifest) = back_up_with(hub.path(), &Ask::default(), Some(newer.clone()));
    assert_eq!(manifest.files.iter().filter(|file| file.path == trail::FILE).count(), 1);
    let place = write(elsewhere.path(), &bytes);
    verify(&place).unwrap();
    let data = tempfile::tempdir().unwrap();
    let data = data.path().join("hub");
    restore_to(&place, &data, None).unwrap();
    assert!(fs::read(data.join(trail::FILE)).unwrap().starts_with(&fs::read(&newer).unwrap()));
}

/// What cannot be read is the backup's fault, and not that of the disk that it goes to.
#[test]
fn a_backup_that_was_cut_is_called_broken() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let (bytes, _) = back_up(hub.path(), &Ask::default());
    for part in [3, 2] {
        let place = write(folder.path(), &bytes[..bytes.len() * (part - 1) / part]);
        let file = place.file.display().to_string();
        let told =
            [verify(&place).unwrap_err(), restore_to(&place, &folder.path().join("hub"), None).unwrap_err()];
        assert!(told.iter().all(|error| matches!(error, Error::Broken { .. })), "{told:?}");
        assert!(told.iter().all(|error| error.to_string().contains(&file)), "{told:?}");
        fs::remove_dir_all(folder.path().join("hub")).unwrap();
    }
}

#[test]
fn the_newest_of_a_folder_is_told_by_when_it_was_made() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let (bytes, _) = back_up(hub.path(), &Ask::default());
    let file = |name: &str| folder.path().join(format!("{name}{SUFFIX}"));
    fs::write(file("monday"), &bytes).unwrap();
    let later = Sources { now_ms: NOW_MS + 86_400_000, ..sources(hub.path(), None) };
    let mut newer = Vec::new();
    make::write(later, &Ask::default(), &mut newer, &|| true).unwrap();
    fs::write(file("2026-11-30T031500Z"), &newer).unwrap();
    assert_eq!(read::find(folder.path()).unwrap().file, file("2026-11-30T031500Z"));
    fs::write(file("before-upgrade"), &newer).unwrap();
    fs::write(file("2026-11-30T031500Z"), &bytes).unwrap();
    assert_eq!(read::find(folder.path()).unwrap().file, file("before-upgrade"));
}

#[test]
fn what_was_taken_back_after_the_backup_stays_so_when_its_file_survives() {
    let (hub, there) = (hub(), tempfile::tempdir().unwrap());
    let (bytes, _) = back_up(hub.path(), &Ask::default());
    // After the backup: one joins by a token, and is shut out; the other token goes.
    let mut consumer = open(hub.path(), NOW_MS);
    let path = hub.path().join(trail::FILE);
    consumer.keep_trail(&path, now(NOW_MS)).unwrap();
    let certificate = crate::core::identity::Certificate {
        der: vec![1],
        issued_ms: NOW_MS,
        not_after_ms: NOW_MS + WEEK_MS,
        ca: [9; 32],
    };
    let ask = crate::core::identity::Ask {
        token: "one".to_owned(),
        secret: [1; 32],
        node: node("late"),
        key: [3; 32],
        certificate: Some(certificate),
    };
    let reason = "stolen".to_owned();
    for change in [
        Change::Enrol(ask),
        Change::Revoke { node: node("late"), reason },
        Change::RemoveToken("two".to_owned()),
    ] {
        let order = Order { by: "operator ann".to_owned(), intent: Intent::Identity(change) };
        let spoken = consumer.consume(std::iter::empty(), vec![order], CREDIT, now(NOW_MS + 5_000)).unwrap();
        assert_eq!(spoken.outcomes, [Ok(())]);
    }
    drop(consumer);
    let survived = there.path().join("survived.jsonl");
    fs::copy(&path, &survived).unwrap();
    let data = there.path().join("restored");
    let report = restore_to(&write(there.path(), &bytes), &data, Some(&survived)).unwrap();
    assert_eq!((report.shut_out, report.tokens_ended), (2, 0));
    let known = StateStore::open(&Folder::new(&data), ID).unwrap().identities().unwrap();
    let late: &Enrolment = &known.enrolments[&node("late")];
    assert!(matches!(&late.standing, Standing::Revoked { reason, .. } if reason == "stolen"));
    assert_eq!(known.tokens["one"].used_by, [node("late")], "a used token stays used");
    assert!(!known.tokens.contains_key("two"));
    assert_eq!(fs::read(data.join(trail::FILE)).unwrap(), fs::read(&survived).unwrap(), "it goes on there");
}

#[test]
fn what_is_there_already_does_not_come_again() {
    let hub = hub();
    let ask = Ask { telemetry: true, objects: true, have: BTreeSet::new() };
    let (bytes, manifest) = back_up(hub.path(), &ask);
    let all: BTreeSet<String> = manifest.elsewhere.iter().map(|one| one.tag.clone()).collect();
    assert!(all.len() >= 2, "a week and an artifact: {manifest:?}");
    let count = |bytes: &[u8]| {
        let mut archive = tar::Archive::new(zstd::Decoder::new(Cursor::new(bytes)).unwrap());
        let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
        names.filter(|name| name.starts_with(OBJECTS)).count()
    };
    assert_eq!(count(&bytes), all.len());
    let (again, listed) = back_up(hub.path(), &Ask { have: all.clone(), ..ask });
    assert_eq!(count(&again), 0);
    assert_eq!(listed.elsewhere, manifest.elsewhere, "they are listed all the same");
    // A week that grew comes again.
    let consumer = open(hub.path(), NOW_MS);
    measure(&consumer.shared().telemetry, 1, NOW_MS + 1, 5_000);
    while consumer.shared().telemetry.seal(NOW_MS + 3_600_000).unwrap().more {}
    drop(consumer);
    let (grown, _) = back_up(hub.path(), &Ask { have: all, ..ask });
    assert_eq!(count(&grown), 1);
}

/// A hub's folder as release 0.1.0 left it: today's build opens it, and restores it as the backup that it is, too.
/// `FLEET_BLESS=1` writes it anew, which is right only before a release.
#[test]
fn a_folder_of_each_release_opens_with_todays_build() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/0.1.0.fleet-backup");
    if std::env::var_os("FLEET_BLESS").is_some() {
        let hub = hub();
        let (bytes, _) = back_up(hub.path(), &Ask { telemetry: true, ..Ask::default() });
        fs::create_dir_all(golden.parent().unwrap()).unwrap();
        fs::write(&golden, bytes).unwrap();
    }
    assert!(fs::metadata(&golden).unwrap().len() < 300_000, "it is kept small");
    let there = tempfile::tempdir().unwrap();
    let place = Place { file: golden, objects: there.path().join(OBJECTS) };
    verify(&place).unwrap();
    // As it lies there, without what a restore changes.
    let data = there.path().join("as-it-was");
    let mut told = |_: &str, _: u64| {};
    read::read(&place, None, &mut read::Unpack::new(&data, false, &mut told)).unwrap();
    let outcomes = crate::store::upgrade::upgrade(&Folder::new(&data), &mut |_| {}).unwrap();
    assert!(outcomes.len() >= 3, "{outcomes:?}");
    let consumer = open(&data, NOW_MS + 1_000);
    let shared = consumer.shared();
    assert_eq!(consumer.store_id(), ID);
    assert_eq!((samples(&shared.telemetry, 1), samples(&shared.telemetry, 2)), (530, 7));
    assert_eq!(shared.identities().tokens.len(), 2);
    assert_eq!(shared.fleet().commands.waiting().executions, 2);
    drop(consumer);
    Pki::open(&data, &[], std::sync::Arc::new(|| (now(NOW_MS), false))).unwrap();
    assert_eq!(releases(&data, NOW_MS).artifacts().all().len(), 1);
    let restored = there.path().join("restored");
    assert_eq!(restore_to(&place, &restored, None).unwrap().held, 1);
    open(&restored, NOW_MS + 70_000);
}
