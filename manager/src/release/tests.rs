//! Releases on a real disk: what is taken, what is refused, and what a crash leaves.

use sha2::{Digest as _, Sha256};

use super::*;
use crate::artifact::Pushed;

const START: i64 = 1_796_000_000_000;
const DAY: i64 = 86_400_000;

struct Site {
    folder: tempfile::TempDir,
    artifacts: Arc<artifact::Store>,
    releases: Releases,
    now_ms: Arc<Mutex<i64>>,
    root: Vec<Key>,
    targets: Key,
}

fn open(folder: &Path, artifacts: &Arc<artifact::Store>, now_ms: &Arc<Mutex<i64>>) -> Releases {
    let now_ms = now_ms.clone();
    let clock: Clock = Arc::new(move || {
        let now = Now { wall_ms: *now_ms.lock().unwrap(), mono: Duration::ZERO };
        (now, false)
    });
    Releases::open(folder, artifacts.clone(), clock).unwrap()
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Arc::new(artifact::Store::open(folder.path(), START).unwrap());
        let now_ms = Arc::new(Mutex::new(START));
        let releases = open(folder.path(), &artifacts, &now_ms);
        let root = vec![Key::generate().unwrap()];
        Self { folder, artifacts, releases, now_ms, root, targets: Key::generate().unwrap() }
    }

    fn started() -> Self {
        let site = Self::new();
        let root = site.root_text(1, &[&site.root[0]]);
        site.releases.publish(Some(&root), Some(&site.targets_text(1, &BTreeMap::new()))).unwrap();
        site
    }

    fn signers(&self) -> Signers {
        let (snapshot, timestamp) = self.releases.online_keys();
        let root = self.root.iter().map(Key::public).collect();
        Signers { root, targets: vec![self.targets.public()], snapshot, timestamp }
    }

    fn root_text(&self, version: u64, keys: &[&Key]) -> String {
        make::sign(make::root(version, &self.signers(), self.now()).unwrap(), keys).unwrap()
    }

    fn targets_text(&self, version: u64, entries: &BTreeMap<Target, Entry>) -> String {
        make::sign(make::targets(version, entries, self.now()).unwrap(), &[&self.targets]).unwrap()
    }

    fn now(&self) -> i64 {
        *self.now_ms.lock().unwrap()
    }

    fn push(&self, bytes: &[u8], target: &str) -> Artifact {
        let digest = Digest(Sha256::digest(bytes).into());
        let target = target.parse().unwrap();
        let pushed =
            Pushed { target, at_ms: 1, by: "operator test".into(), min_from: None, device_kind: None };
        self.artifacts.begin(digest, bytes.len() as u64, pushed).unwrap();
        let upload = self.artifacts.upload(&digest).unwrap();
        upload.append(0, bytes).unwrap();
        self.artifacts.complete(&upload).unwrap()
    }

    fn entry(&self, bytes: &[u8], target: &str) -> (Target, Entry) {
        let artifact = self.push(bytes, target);
        let custom = Custom { epoch: 2, signed_ms: START, ..Custom::default() };
        (target.parse().unwrap(), Entry { length: artifact.length, digest: artifact.digest, custom })
    }

    /// What a node trusts that reads all of it now.
    fn node(&self) -> Result<tuf::Trusted, TufError> {
        verify(&self.releases.state().files, self.now())
    }
}

fn refused(result: Result<(), Error>) -> String {
    result.expect_err("it was taken").to_string()
}

#[test]
fn what_is_signed_is_what_nodes_may_run() {
    let site = Site::started();
    assert!(site.releases.all().is_empty());
    assert_eq!(site.node().unwrap().seen().targets, 1);
    let entries: BTreeMap<_, _> = [
        site.entry(b"one", "skill/greeter/1.0.0/any"),
        site.entry(b"arm", "agent/fleet-agent/1.0.0/aarch64"),
        site.entry(b"x86", "agent/fleet-agent/1.0.0/x86_64"),
    ]
    .into();
    site.releases.publish(None, Some(&site.targets_text(2, &entries))).unwrap();
    let all: Vec<_> = site.releases.all().iter().map(|one| (one.name.clone(), one.targets.len())).collect();
    assert_eq!(all, [("greeter".to_owned(), 1), ("fleet-agent".to_owned(), 2)]);
    let target = "skill/greeter/1.0.0/any".parse().unwrap();
    let node = site.node().unwrap();
    let signed = node.target(&target).unwrap();
    assert_eq!((signed.length, signed.digest), (3, entries[&target].digest));
    assert_eq!(signed.custom, entries[&target].custom);
    // Named ones stay, and the others may go.
    let named = site.releases.remove_artifact(&signed.digest);
    assert!(matches!(named, Err(Error::Named { .. })));
    let loose = site.push(b"loose", "skill/greeter/1.0.1/any");
    site.releases.remove_artifact(&loose.digest).unwrap();
}

#[test]
fn what_is_not_rightly_signed_or_not_here_is_refused() {
    let site = Site::new();
    let nothing = BTreeMap::new();
    let early = site.releases.publish(None, Some(&site.targets_text(1, &nothing)));
    assert!(matches!(early, Err(Error::NoRoot)));
    let stranger = Key::generate().unwrap();
    let wrong = site.releases.publish(Some(&site.root_text(1, &[&stranger])), None);
    assert!(refused(wrong).contains("its own"));
    let other = Site::new();
    let foreign = make::sign(make::root(1, &other.signers(), START).unwrap(), &[&other.root[0]]).unwrap();
    assert!(refused(site.releases.publish(Some(&foreign), None)).contains("this hub's key"));
    let site = Site::started();
    let unsigned = make::sign(make::targets(2, &nothing, START).unwrap(), &[&stranger]).unwrap();
    assert!(refused(site.releases.publish(None, Some(&unsigned))).contains("targets.json"));
    for version in [1, 3] {
        let skipped = site.releases.publish(None, Some(&site.targets_text(version, &nothing)));
        assert!(matches!(skipped, Err(Error::Version { wanted: 2, .. })), "{version}");
    }
    let old = make::sign(make::targets(2, &nothing, START - 366 * DAY).unwrap(), &[&site.targets]).unwrap();
    assert!(refused(site.releases.publish(None, Some(&old))).contains("expired"));
    let (target, entry) = site.entry(b"bytes", "skill/a/1.0.0/any");
    let wrongs = [
        ("skill/a/1.0.0/any", Entry { length: 6, ..entry.clone() }, "6 bytes"),
        ("skill/a/1.0.0/any", Entry { digest: Digest([0; 32]), ..entry.clone() }, "not here"),
        ("skill/a/one/any", entry.clone(), "semantic versioning"),
    ];
    for (target, entry, why) in wrongs {
        let entries = [(target.parse().unwrap(), entry)].into();
        let said = refused(site.releases.publish(None, Some(&site.targets_text(2, &entries))));
        assert!(said.contains(why), "{said}");
    }
    let twice =
        [(target.clone(), entry.clone()), ("firmware/a/1/any".parse().unwrap(), entry.clone())].into();
    assert!(refused(site.releases.publish(None, Some(&site.targets_text(2, &twice)))).contains("two kinds"));
    site.releases.publish(None, Some(&site.targets_text(2, &[(target.clone(), entry)].into()))).unwrap();
    let (_, changed) = site.entry(b"others", "skill/a/1.0.0/any");
    let changed = site.releases.publish(None, Some(&site.targets_text(3, &[(target, changed)].into())));
    assert!(refused(changed).contains("other bytes"));
    assert!(refused(site.releases.publish(Some("{}"), None)).contains("root.json"));
    assert!(refused(site.releases.publish(None, Some("nonsense"))).contains("targets.json"));
    assert_eq!(site.node().unwrap().seen().targets, 2, "nothing of it was taken");
}

#[test]
fn keys_change_hands() {
    let mut site = Site::started();
    let trusted = site.node().unwrap();
    let (old_root, old_targets) =
        (site.root.remove(0), std::mem::replace(&mut site.targets, Key::generate().unwrap()));
    site.root.push(Key::generate().unwrap());
    let by_new = site.root_text(2, &[&site.root[0]]);
    assert!(refused(site.releases.publish(Some(&by_new), None)).contains("the root before"));
    let by_both = site.root_text(2, &[&site.root[0], &old_root]);
    assert!(refused(site.releases.publish(Some(&by_both), None)).contains("the same request"));
    let nothing = BTreeMap::new();
    let stale = make::sign(make::targets(2, &nothing, START).unwrap(), &[&old_targets]).unwrap();
    assert!(site.releases.publish(Some(&by_both), Some(&stale)).is_err());
    site.releases.publish(Some(&by_both), Some(&site.targets_text(2, &nothing))).unwrap();
    assert_eq!(site.node().unwrap().seen(), tuf::Seen { root: 2, timestamp: 2, snapshot: 2, targets: 2 });
    assert_eq!(trusted.seen().root, 1);
    // Many roots, more than one look follows.
    for version in 3..=tuf::ROOTS as u64 + 5 {
        site.releases.publish(Some(&site.root_text(version, &[&site.root[0]])), None).unwrap();
    }
    assert_eq!(site.node().unwrap().seen().root, tuf::ROOTS as u64 + 5);
}

#[test]
fn the_hub_renews_what_is_its_own_and_removes_what_is_old() {
    let site = Site::started();
    assert!(!site.releases.renew().unwrap(), "nothing is due");
    for _ in 0..40 {
        *site.now_ms.lock().unwrap() += DAY / 2 + 60_000;
        assert!(site.releases.renew().unwrap());
        site.node().unwrap();
    }
    let seen = site.node().unwrap().seen();
    assert_eq!((seen.timestamp, seen.targets), (41, 1));
    let snapshots = site.releases.state().files.keys().filter(|name| name.contains("snapshot")).count();
    assert_eq!(snapshots as u64, KEPT);
    // A hub that was off for a month has nothing to show that nodes would take, and renews it when it starts.
    *site.now_ms.lock().unwrap() += 30 * DAY;
    assert_eq!(site.node().unwrap_err().code(), "expired");
    let again = open(site.folder.path(), &site.artifacts, &site.now_ms);
    verify(&again.state().files, site.now()).unwrap();
    assert_eq!(again.online_keys().0, site.releases.online_keys().0);
    assert_eq!(again.standings().len(), 4);
}

#[test]
fn a_hub_that_lost_its_keys_signs_nothing_with_others_until_a_root_names_them() {
    let site = Site::started();
    let served = site.releases.file("timestamp.json");
    std::fs::remove_file(site.folder.path().join(FOLDER).join("online.json")).unwrap();
    *site.now_ms.lock().unwrap() += DAY / 2 + 60_000;
    let again = open(site.folder.path(), &site.artifacts, &site.now_ms);
    assert_eq!(again.file("timestamp.json"), served, "what is there is good for a while yet");
    assert!(refused(again.renew().map(drop)).contains("rotate --renew"));
    let (snapshot, timestamp) = again.online_keys();
    let signers = Signers { snapshot, timestamp, ..site.signers() };
    let root = make::sign(make::root(2, &signers, site.now()).unwrap(), &[&site.root[0]]).unwrap();
    again.publish(Some(&root), None).unwrap();
    verify(&again.state().files, site.now()).unwrap();
}

#[test]
fn a_change_that_a_crash_cuts_short_is_made_or_not_begun() {
    let site = Site::started();
    let (target, entry) = site.entry(b"bytes", "skill/a/1.0.0/any");
    let text = site.targets_text(2, &[(target, entry)].into());
    let before = site.releases.state();
    let mut next = Next::default();
    next.write.insert("2.targets.json".to_owned(), text);
    site.releases.make_online(&before, &mut next, (true, 0), START).unwrap();
    next.remove.insert("1.targets.json".to_owned());
    let steps = next.steps();
    assert!(steps.len() > 4);
    for cut in 0..=steps.len() {
        // The folder as the first change left it.
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(FOLDER)).unwrap();
        for (name, bytes) in &before.files {
            std::fs::write(folder.path().join(FOLDER).join(name), bytes).unwrap();
        }
        let online = site.folder.path().join(FOLDER).join("online.json");
        std::fs::copy(&online, folder.path().join(FOLDER).join("online.json")).unwrap();
        let broken = Folder::open(folder.path()).unwrap();
        for step in &steps[..cut] {
            broken.step(&next, step).unwrap();
        }
        let again = open(folder.path(), &site.artifacts, &site.now_ms);
        let seen = verify(&again.state().files, START).unwrap().seen();
        assert_eq!(seen.targets, if cut == 0 { 1 } else { 2 }, "{cut}");
        assert!(!folder.path().join(FOLDER).join("next.json").exists(), "{cut}");
    }
}
