//! A whole agent before a hostile hub: real HTTPS, real orders, and metadata and bytes that were tampered with in every
//! way that TUF names. Nothing of it is ever installed, and the report that goes up says why.
//!
//! The verifier alone meets many more of these in `.ci/interop/releases.py`, made by another implementation.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use fleet_edge_agent::run::{self, Handle};
use fleet_schemas::{
    CommandId, command,
    update::{ARTIFACT_PATH, Report, State, TUF_PATH},
};
use serde_json::json;
use tar::{EntryType, Header};

use crate::{
    Field,
    repo::{self, Repo},
    until,
};

/// Bits of metadata and of artifacts that are flipped.
const METADATA_FLIPS: usize = 192;
const ARTIFACT_FLIPS: usize = 8;
/// What may be read beyond a limit before the connection is closed: buffers of sockets and of TLS.
const BUFFERS: u64 = 8 * 1024 * 1024;

const REJECTED: State = State::Rejected;

/// A node that runs a sound release, 1.0.0, and a hub that went bad.
struct Siege {
    field: Field,
    agent: Handle,
    /// Made by any release that is ever let run.
    witness: PathBuf,
    orders: u64,
    reasons: BTreeMap<String, usize>,
}

impl Siege {
    async fn new(node: &str) -> Self {
        let field = Field::new(node).await;
        let agent = run::start(field.config.clone()).await.unwrap();
        field.repo.skill("1.0.0", "", &[]);
        let (_, result) = field.end(field.order(1, "1.0.0", |_| ())).await;
        assert_eq!(result.state, State::Confirmed);
        let witness = field.config.data.join("witness");
        Self { field, agent, witness, orders: 1, reasons: BTreeMap::new() }
    }

    fn repo(&self) -> &Repo {
        &self.field.repo
    }

    /// Signs the next version: one that leaves a mark when it runs. Gives its version.
    fn next(&self, more: &[(String, Vec<u8>)]) -> String {
        let version = format!("2.{}.0", self.repo().version());
        let hook = format!("#!/bin/sh\ntouch {}\n", self.witness.display()).into_bytes();
        let mut files = vec![("hook".to_owned(), hook)];
        files.extend_from_slice(more);
        self.repo().skill(&version, "[hooks]\nstarted = [\"./hook\"]\n", &files);
        version
    }

    /// Has the node see the latest metadata: it is told to run what nobody signed.
    async fn sees_the_latest(&mut self) {
        self.orders += 1;
        let unknown = "skill/greeter/9.9.9/any".parse().unwrap();
        let id = self.field.order(self.orders, "1.0.0", |order| order.target = unknown);
        self.ended("a release that nobody signed", id, State::Rejected, &["unknown_target"]).await;
    }

    /// Orders it. The order must end in this state, for one of these reasons, and what ran runs on.
    async fn refused(&mut self, what: &str, version: &str, state: State, codes: &[&str]) {
        self.orders += 1;
        let id = self.field.order(self.orders, version, |order| order.probation_ms = Some(0));
        self.ended(what, id, state, codes).await;
    }

    async fn ended(&mut self, what: &str, id: CommandId, state: State, codes: &[&str]) {
        let (report, result) = self.field.end(id).await;
        let reason = result.reason.as_ref().unwrap_or_else(|| panic!("{what}: {result:?}"));
        assert_eq!(result.state, state, "{what}: {reason:?}");
        assert_ne!(report.state, command::State::Succeeded, "{what}");
        assert!(codes.contains(&reason.code.as_str()), "{what}: {reason:?}");
        assert!(!reason.message.is_empty(), "{what}");
        // The event tells it as the command's end does.
        let heard = async || {
            let events = self.field.site.hub.events();
            events.iter().filter_map(Report::of).find(|told| told.command == id && told.state == state)
        };
        let event = until("its event", heard, Option::is_some).await.unwrap();
        assert_eq!(event.reason.as_ref(), Some(reason), "{what}");
        self.is_as_before(what);
        *self.reasons.entry(reason.code.to_string()).or_default() += 1;
    }

    fn is_as_before(&self, what: &str) {
        assert_eq!(self.field.runs().as_deref(), Some("1.0.0"), "{what}");
        assert!(!self.witness.exists(), "{what}: something of it ran");
        let entries = fs::read_dir(self.field.skill()).unwrap().map(|entry| entry.unwrap().path());
        let folders: Vec<_> = entries.filter(|path| path.is_dir() && !path.is_symlink()).collect();
        assert_eq!(folders.len(), 1, "{what}: {folders:?}");
    }

    /// After all of it, what is sound is taken: it was not the siege that kept it out.
    async fn lift(mut self) -> BTreeMap<String, usize> {
        let version = self.next(&[]);
        self.orders += 1;
        let id = self.field.order(self.orders, &version, |order| order.probation_ms = Some(0));
        let (_, result) = self.field.end(id).await;
        assert_eq!((result.state, self.field.runs()), (State::Confirmed, Some(version)), "{result:?}");
        assert!(self.witness.exists(), "it would have been seen");
        self.agent.stop().await;
        self.reasons
    }
}

/// Which bytes are changed: the same at every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        // An LCG (Knuth, MMIX); its upper bits are good enough to choose places.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % limit as u64).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_and_cut_files_are_refused() {
    let mut siege = Siege::new("siege-1").await;
    let mut draw = Draw(7);
    let changed = ["malformed", "bad_signature", "wrong_root"];
    for at in 0..METADATA_FLIPS + 24 {
        let version = siege.next(&[]);
        let number = siege.repo().version();
        let names = [
            "2.root.json".to_owned(),
            "timestamp.json".to_owned(),
            format!("{number}.snapshot.json"),
            format!("{number}.targets.json"),
        ];
        let name = &names[at % 4];
        // A sound one would be followed, and not asked for again.
        if at % 4 == 0 {
            siege.repo().root(2);
        }
        let mut sound = siege.repo().metadata();
        let path = format!("{TUF_PATH}/{name}");
        let mut bytes = sound[&path].to_vec();
        let place = draw.below(bytes.len());
        let what = if at < METADATA_FLIPS {
            let bit = draw.below(8);
            bytes[place] ^= 1 << bit;
            format!("bit {bit} of byte {place} of {name}")
        } else {
            bytes.truncate(place);
            format!("{name} ends at {place}")
        };
        siege.repo().spoil(&path, bytes.into());
        siege.refused(&what, &version, State::Rejected, &changed).await;
        sound.remove(&format!("{TUF_PATH}/2.root.json"));
        siege.repo().show(sound);
    }
    for _ in 0..ARTIFACT_FLIPS {
        let version = siege.next(&[]);
        let path = siege.repo().artifact_path(&format!("skill/greeter/{version}/any"));
        let mut bytes = siege.repo().artifact(&path).to_vec();
        let (place, bit) = (draw.below(bytes.len()), draw.below(8));
        bytes[place] ^= 1 << bit;
        siege.repo().spoil(&path, bytes.into());
        let what = format!("bit {bit} of byte {place} of the artifact");
        siege.refused(&what, &version, State::Failed, &["digest_mismatch"]).await;
    }
    let reasons = siege.lift().await;
    assert_eq!(reasons.values().sum::<usize>(), METADATA_FLIPS + 24 + ARTIFACT_FLIPS);
    assert!(reasons.len() >= 4, "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_and_foreign_files_are_refused() {
    let mut siege = Siege::new("siege-2").await;
    let (first, before) = (siege.repo().metadata(), siege.repo().version());
    let version = siege.next(&[]);
    siege.sees_the_latest().await;
    let sound = siege.repo().metadata();
    siege.repo().show(first.clone());
    siege.refused("all files of before", &version, REJECTED, &["rollback"]).await;
    let timestamp = format!("{TUF_PATH}/timestamp.json");
    let mixed = sound.clone().into_iter().chain([(timestamp.clone(), first[&timestamp].clone())]);
    siege.repo().show(mixed.collect());
    siege.refused("the timestamp of before", &version, REJECTED, &["rollback"]).await;
    siege.repo().show(sound);

    let version = siege.next(&[]);
    let now = siege.repo().version();
    siege.repo().timestamp(now, before, false);
    siege.refused("a new timestamp of an old snapshot", &version, REJECTED, &["rollback"]).await;
    siege.repo().snapshot(now, before);
    siege.repo().timestamp(now, now, false);
    siege.refused("a new snapshot of old targets", &version, REJECTED, &["rollback"]).await;

    let other = Repo::new();
    other.skill(&version, "", &[]);
    let version = siege.next(&[]);
    let mut sound = siege.repo().metadata();
    siege.repo().spoil(&timestamp, other.served_file("timestamp.json"));
    siege.refused("the timestamp of another fleet", &version, REJECTED, &["bad_signature"]).await;
    siege.repo().show(sound.clone());
    other.root(2);
    sound.insert(format!("{TUF_PATH}/2.root.json"), other.served_file("2.root.json"));
    siege.repo().show(sound.clone());
    siege.refused("the root of another fleet", &version, REJECTED, &["wrong_root"]).await;
    sound.remove(&format!("{TUF_PATH}/2.root.json"));
    siege.repo().show(sound);

    // Signed, but for something else.
    siege.orders += 1;
    let digest = siege.repo().digest("skill/greeter/1.0.0/any").parse().unwrap();
    let id = siege.field.order(siege.orders, &version, |order| order.digest = digest);
    siege.ended("the digest of another release", id, REJECTED, &["digest_mismatch"]).await;
    let larger = siege.next(&[("noise".to_owned(), repo::noise(2_000))]);
    let version = siege.next(&[]);
    let path = |version: &str| siege.repo().artifact_path(&format!("skill/greeter/{version}/any"));
    let bytes = siege.repo().artifact(&path(&larger));
    siege.repo().spoil(&path(&version), bytes);
    siege.refused("the bytes of a larger release", &version, State::Failed, &["length_mismatch"]).await;
    siege.lift().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_looked_at_again_and_refused_in_the_end() {
    // Each takes about a minute, and so they go side by side.
    let expired = async {
        let mut siege = Siege::new("siege-3").await;
        let version = siege.next(&[]);
        let number = siege.repo().version();
        siege.repo().timestamp(number, number, true);
        siege.refused("an expired timestamp", &version, REJECTED, &["expired"]).await;
        siege.lift().await;
    };
    let swapped = async {
        let mut siege = Siege::new("siege-4").await;
        let number = siege.repo().version();
        let old = siege.repo().served_file(&format!("{number}.targets.json"));
        let version = siege.next(&[]);
        siege.repo().spoil(&format!("{TUF_PATH}/{}.targets.json", number + 1), old);
        siege.refused("the targets of before", &version, REJECTED, &["mix_and_match"]).await;
        siege.lift().await;
    };
    let missing = async {
        let mut siege = Siege::new("siege-5").await;
        let version = siege.next(&[]);
        siege.repo().remove(&format!("{TUF_PATH}/{}.snapshot.json", siege.repo().version()));
        siege.refused("no snapshot", &version, REJECTED, &["missing_metadata"]).await;
        siege.lift().await;
    };
    let cut = async {
        let mut siege = Siege::new("siege-6").await;
        let version = siege.next(&[]);
        // A hub that always ends early: what came is kept and asked for on, until the order's time is over.
        siege.repo().cut(&[0; 1_000]);
        siege.orders += 1;
        let id = siege.field.order_within(siege.orders, &version, 12_000);
        siege.ended("an artifact without its end", id, State::TimedOut, &["timed_out"]).await;
        assert!(siege.repo().ranges().len() >= 3, "it was tried again");
        siege.repo().cut(&[]);
        siege.lift().await;
    };
    tokio::join!(expired, swapped, missing, cut);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_without_end_is_not_read_to_its_end() {
    let mut siege = Siege::new("siege-7").await;
    for (file, limit) in [
        ("2.root.json", 128 * 1024),
        ("timestamp.json", 16 * 1024),
        ("{}.snapshot.json", 64 * 1024),
        ("{}.targets.json", 2 * 1024 * 1024),
    ] {
        let version = siege.next(&[]);
        let file = file.replace("{}", &siege.repo().version().to_string());
        if file == "2.root.json" {
            siege.repo().root(2);
        }
        let taken = siege.repo().endless(Some(&format!("{TUF_PATH}/{file}")));
        siege.refused(&format!("{file} without end"), &version, REJECTED, &["too_large"]).await;
        is_bounded(&taken, limit);
        siege.repo().endless(None);
        siege.repo().remove(&format!("{TUF_PATH}/2.root.json"));
    }
    let version = siege.next(&[]);
    let length = siege.repo().length(&format!("skill/greeter/{version}/any"));
    let taken = siege.repo().endless(Some(ARTIFACT_PATH));
    siege.refused("bytes without end", &version, State::Failed, &["length_mismatch"]).await;
    // It is fetched anew once.
    is_bounded(&taken, 2 * length);
    siege.repo().endless(None);
    siege.lift().await;
}

fn is_bounded(taken: &AtomicU64, limit: u64) {
    let taken = taken.load(Ordering::Relaxed);
    assert!((1..limit + BUFFERS).contains(&taken), "{taken} bytes of {limit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_that_leave_their_folder_or_never_end_are_refused() {
    let mut siege = Siege::new("siege-8").await;
    let witness = siege.witness.clone();
    let absolute = witness.to_str().unwrap().to_owned();
    let (file, link, hard) = (EntryType::Regular, EntryType::Symlink, EntryType::Link);
    let bomb = {
        let mut header = header(file, b"zeros", "");
        header.set_size(10 << 30);
        header.set_cksum();
        let zeros = std::io::Read::chain(header.as_bytes().as_slice(), std::io::repeat(0));
        zstd::stream::encode_all(std::io::Read::take(zeros, 70 << 20), 1).unwrap()
    };
    let entries = header(EntryType::Directory, b"d", "").as_bytes().repeat(60_000);
    let many = zstd::stream::encode_all(entries.as_slice(), 1).unwrap();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a path that goes up", tar(&[(file, b"../../witness", "x")])),
        ("a path that goes up far", tar(&[(file, b"a/../../../../../witness", "x")])),
        ("an absolute path", tar(&[(file, absolute.as_bytes(), "x")])),
        ("an absolute link", tar(&[(link, b"up", "/"), (file, b"up/tmp/witness", "x")])),
        ("a link that goes up", tar(&[(link, b"up", "../../.."), (file, b"up/witness", "x")])),
        ("a link in a folder that goes up", tar(&[(link, b"a/b", "../../..")])),
        ("a file through a link within", tar(&[(link, b"in", "."), (file, b"in/x", "x")])),
        ("a file over a link", tar(&[(link, b"x", "y"), (file, b"x", "x")])),
        ("a hard link out", tar(&[(hard, b"x", "../../../identity/key.pem")])),
        ("a hard link to what is not there", tar(&[(hard, b"x", "y")])),
        ("a device", tar(&[(EntryType::Char, b"x", "")])),
        ("a pipe", tar(&[(EntryType::Fifo, b"x", "")])),
        ("10 GiB of zeros", bomb),
        ("60,000 entries", many),
        ("no archive", b"hello".to_vec()),
        ("an empty one", vec![0; 1_024]),
    ];
    for (what, bytes) in cases {
        let version = format!("2.{}.0", siege.repo().version());
        siege.repo().release(&format!("skill/greeter/{version}/any"), bytes, &json!({}));
        siege.refused(what, &version, State::Failed, &["bad_archive"]).await;
        assert!(!siege.field.config.data.join("releases/witness").exists(), "{what}");
    }
    assert_eq!(siege.lift().await, [("bad_archive".to_owned(), 16)].into());
}

fn header(kind: EntryType, path: &[u8], link: &str) -> Header {
    let mut header = Header::new_ustar();
    // Byte by byte: the crate refuses to write what these tests are about.
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(0);
    header.set_cksum();
    header
}

fn tar(entries: &[(EntryType, &[u8], &str)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (kind, path, content) in entries {
        let is_file = *kind == EntryType::Regular;
        let mut header = header(*kind, path, if is_file { "" } else { content });
        if is_file {
            header.set_size(content.len() as u64);
            header.set_cksum();
        }
        all.extend_from_slice(header.as_bytes());
        if is_file {
            let mut data = content.as_bytes().to_vec();
            data.resize(content.len().next_multiple_of(512), 0);
            all.extend_from_slice(&data);
        }
    }
    all.resize(all.len() + 1_024, 0);
    all
}
