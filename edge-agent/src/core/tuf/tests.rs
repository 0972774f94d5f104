//! Repositories made by `tough` and hostile ones, before the verifier.

use std::collections::BTreeMap;

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};
use tough::schema::{self, Role as _};

use super::{json::Json, *};

const NOW_MS: i64 = 1_796_000_000_000;
const LATER: &str = "2027-06-01T00:00:00Z";
const TARGET: &str = "skill/greeter/1.2.0/any";

type Files = BTreeMap<String, Vec<u8>>;

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

/// A key and the JSON of its public half.
struct Signer {
    pair: Pair,
    public: Value,
    id: String,
}

impl Signer {
    fn ed25519() -> Self {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(der.as_ref()).unwrap();
        let public = digits(pair.public_key().as_ref());
        let public = json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": public}});
        Self { id: id(&public), public, pair: Pair::Ed25519(pair) }
    }

    fn p256() -> Self {
        let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let der = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(kind, der.as_ref(), &random).unwrap();
        let prefix = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
        let mut spki = key::hex(prefix).unwrap();
        spki.extend(pair.public_key().as_ref());
        let pem = base64_text(&spki);
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n");
        let public = json!({"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": pem}});
        Self { id: id(&public), public, pair: Pair::P256(pair) }
    }

    fn sign(&self, message: &[u8]) -> Value {
        let signature = match &self.pair {
            Pair::Ed25519(pair) => digits(pair.sign(message).as_ref()),
            Pair::P256(pair) => digits(pair.sign(&SystemRandom::new(), message).unwrap().as_ref()),
        };
        json!({"keyid": self.id, "sig": signature})
    }
}

fn base64_text(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word =
            three.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn canonical(value: &Value) -> Vec<u8> {
    Json::read(value.to_string().as_bytes()).unwrap().canonical()
}

fn id(public: &Value) -> String {
    digits(&Sha256::digest(canonical(public)))
}

fn signed(value: &Value, signers: &[&Signer]) -> Vec<u8> {
    let message = canonical(value);
    let signatures: Vec<Value> = signers.iter().map(|signer| signer.sign(&message)).collect();
    json!({"signed": value, "signatures": signatures}).to_string().into_bytes()
}

/// A repository and its keys.
struct Forge {
    root: Vec<Signer>,
    timestamp: Signer,
    snapshot: Signer,
    targets: Signer,
    files: Files,
}

fn role(signers: &[&Signer], threshold: usize) -> Value {
    json!({"keyids": signers.iter().map(|signer| &signer.id).collect::<Vec<_>>(), "threshold": threshold})
}

impl Forge {
    fn new() -> Self {
        let mut forge = Self {
            root: vec![Signer::ed25519(), Signer::p256(), Signer::ed25519()],
            timestamp: Signer::p256(),
            // Its signatures all have one length.
            snapshot: Signer::ed25519(),
            targets: Signer::ed25519(),
            files: Files::new(),
        };
        let root = forge.root_of(1);
        forge.put_root(1, &root);
        forge.publish(1, &json!({}));
        forge
    }

    fn root_of(&self, version: u64) -> Value {
        let root: Vec<&Signer> = self.root.iter().collect();
        let all = root.iter().copied().chain([&self.timestamp, &self.snapshot, &self.targets]);
        let keys: serde_json::Map<String, Value> =
            all.map(|signer| (signer.id.clone(), signer.public.clone())).collect();
        json!({
            "_type": "root", "spec_version": "1.0.31", "version": version, "expires": LATER,
            "consistent_snapshot": true, "keys": keys,
            "roles": {
                "root": role(&root, 2), "timestamp": role(&[&self.timestamp], 1),
                "snapshot": role(&[&self.snapshot], 1), "targets": role(&[&self.targets], 1),
            },
        })
    }

    fn put_root(&mut self, version: u64, root: &Value) {
        let signers: Vec<&Signer> = self.root.iter().take(2).collect();
        let bytes = signed(root, &signers);
        self.files.insert(format!("{version}.root.json"), bytes);
    }

    /// Targets, snapshot and timestamp, all of one version.
    fn publish(&mut self, version: u64, more: &Value) {
        let mut targets = json!({
            "_type": "targets", "spec_version": "1.0.31", "version": version, "expires": LATER,
            "targets": {TARGET: {
                "length": 20, "hashes": {"sha256": "ab".repeat(32)},
                "custom": {"epoch": 3, "min_from": "1.0.0", "signed_ms": 5, "later": [1]},
            }},
        });
        for (key, value) in more.as_object().unwrap() {
            targets[key] = value.clone();
        }
        self.put_targets(version, &targets);
        self.put_snapshot(version, version);
        self.put_timestamp(version, version, LATER);
    }

    fn put_targets(&mut self, version: u64, targets: &Value) {
        let bytes = signed(targets, &[&self.targets]);
        self.files.insert(format!("{version}.targets.json"), bytes);
    }

    fn listed(&self, name: &str, version: u64) -> Value {
        let bytes = &self.files[name];
        json!({"version": version, "length": bytes.len(), "hashes": {"sha256": digits(&Sha256::digest(bytes))}})
    }

    fn put_snapshot(&mut self, version: u64, targets: u64) {
        let snapshot = json!({
            "_type": "snapshot", "spec_version": "1.0.31", "version": version, "expires": LATER,
            "meta": {"targets.json": self.listed(&format!("{targets}.targets.json"), targets)},
        });
        let bytes = signed(&snapshot, &[&self.snapshot]);
        self.files.insert(format!("{version}.snapshot.json"), bytes);
    }

    fn put_timestamp(&mut self, version: u64, snapshot: u64, expires: &str) {
        let timestamp = json!({
            "_type": "timestamp", "spec_version": "1.0.31", "version": version, "expires": expires,
            "meta": {"snapshot.json": self.listed(&format!("{snapshot}.snapshot.json"), snapshot)},
        });
        let bytes = signed(&timestamp, &[&self.timestamp]);
        self.files.insert("timestamp.json".to_owned(), bytes);
    }

    fn pin(&self) -> Trusted {
        Trusted::pin(&self.files["1.root.json"]).unwrap()
    }

    fn value(&self, name: &str) -> Value {
        serde_json::from_slice(&self.files[name]).unwrap()
    }
}

/// Runs an update to its end, or to its error; tells which files it asked for.
fn run(trusted: Trusted, files: &Files, now_ms: i64) -> (Trusted, Result<(), TufError>, Vec<String>) {
    let mut update = Update::new(trusted, now_ms).unwrap();
    let mut asked = Vec::new();
    while let Some(want) = update.wants() {
        asked.push(want.name.clone());
        let bytes = files.get(&want.name).map(|bytes| &bytes[..bytes.len().min(want.limit as usize + 1)]);
        if let Err(error) = update.take(bytes) {
            assert!(!update.is_done() && update.wants().is_none());
            assert_eq!(update.take(None), Err(TufError::Over));
            return (update.finish(), Err(error), asked);
        }
    }
    assert!(update.is_done());
    (update.finish(), Ok(()), asked)
}

fn good(trusted: Trusted, files: &Files) -> Trusted {
    let (trusted, end, asked) = run(trusted, files, NOW_MS);
    end.unwrap_or_else(|error| panic!("{error} after {asked:?}"));
    trusted
}

fn bad(trusted: Trusted, files: &Files) -> &'static str {
    run(trusted, files, NOW_MS).1.unwrap_err().code()
}

fn target() -> Target {
    TARGET.parse().unwrap()
}

#[test]
fn a_sound_repository_says_what_may_run() {
    let forge = Forge::new();
    let (trusted, end, asked) = run(forge.pin(), &forge.files, NOW_MS);
    assert_eq!(end, Ok(()));
    assert_eq!(asked, ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]);
    assert_eq!(trusted.seen(), Seen { root: 1, timestamp: 1, snapshot: 1, targets: 1 });
    let found = trusted.target(&target()).unwrap();
    assert_eq!((found.length, found.digest), (20, Digest([0xab; 32])));
    assert_eq!((found.custom.epoch, found.custom.min_from.as_deref()), (3, Some("1.0.0")));
    let other = "skill/greeter/1.2.0/x86_64".parse().unwrap();
    assert_eq!(trusted.target(&other).unwrap_err().code(), "unknown_target");
    assert_eq!(forge.pin().target(&target()).unwrap_err().code(), "unknown_target");
    // Nothing new: only what may have changed is asked for.
    let kept = serde_json::to_string(&trusted).unwrap();
    let (again, end, asked) = run(serde_json::from_str(&kept).unwrap(), &forge.files, NOW_MS);
    assert_eq!((end, asked), (Ok(()), vec!["2.root.json".to_owned(), "timestamp.json".to_owned()]));
    assert_eq!(again, trusted);
}

#[tokio::test]
async fn tough_reads_and_signs_the_same() {
    let mut forge = Forge::new();
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in &forge.files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let url = || format!("file://{}/", folder.path().display()).parse().unwrap();
    let loader = tough::RepositoryLoader::new(&forge.files["1.root.json"], url(), url());
    let read = loader.expiration_enforcement(tough::ExpirationEnforcement::Unsafe).load().await.unwrap();
    assert_eq!(read.targets().signed.targets.len(), 1);
    // What tough writes and puts in canonical form, this signs and reads.
    let mut root: schema::Signed<schema::Root> = serde_json::from_slice(&forge.files["1.root.json"]).unwrap();
    root.signed._extra.insert("note".to_owned(), json!("a \"quoted\" \\ text,\n\u{fc}\u{1f600}"));
    root.signed.version = 2.try_into().unwrap();
    let message = root.signed.canonical_form().unwrap();
    let sign = |signer: &Signer| serde_json::from_value(signer.sign(&message)).unwrap();
    root.signatures = forge.root.iter().skip(1).map(sign).collect();
    root.signed.verify_role(&root).unwrap();
    forge.files.insert("2.root.json".to_owned(), serde_json::to_vec_pretty(&root).unwrap());
    assert_eq!(good(forge.pin(), &forge.files).seen().root, 2);
}

#[test]
fn versions_never_go_back_and_files_belong_together() {
    let mut forge = Forge::new();
    let old = forge.files.clone();
    let pinned = forge.pin();
    forge.publish(2, &json!({}));
    let trusted = good(pinned, &forge.files);
    assert_eq!(trusted.seen().timestamp, 2);
    let mut files = forge.files.clone();
    files.insert("timestamp.json".to_owned(), old["timestamp.json"].clone());
    assert_eq!(bad(trusted.clone(), &files), "rollback");
    // A new timestamp that names an old snapshot, and a new snapshot that names old targets.
    forge.put_timestamp(3, 1, LATER);
    assert_eq!(bad(trusted.clone(), &forge.files), "rollback");
    forge.put_snapshot(3, 1);
    forge.put_timestamp(4, 3, LATER);
    let (kept, end, _) = run(trusted.clone(), &forge.files, NOW_MS);
    assert_eq!(end.unwrap_err().code(), "rollback");
    assert_eq!(kept.seen(), Seen { root: 1, timestamp: 4, snapshot: 2, targets: 2 }, "what was seen is kept");
    // A snapshot of another moment under the name of the one that is listed.
    forge.publish(5, &json!({}));
    let mut files = forge.files.clone();
    files.insert("5.snapshot.json".to_owned(), old["1.snapshot.json"].clone());
    assert_eq!(bad(trusted.clone(), &files), "mix_and_match");
    let mut files = forge.files.clone();
    files.insert("5.targets.json".to_owned(), old["1.targets.json"].clone());
    assert_eq!(bad(trusted.clone(), &files), "mix_and_match");
    files.remove("5.targets.json");
    assert_eq!(bad(trusted.clone(), &files), "missing_metadata");
    // One that lists no digests: the version decides.
    let mut bare = forge.value("5.snapshot.json")["signed"].clone();
    bare["version"] = json!(6);
    bare["meta"]["targets.json"] = json!({"version": 6});
    forge.files.insert("6.snapshot.json".to_owned(), signed(&bare, &[&forge.snapshot]));
    forge.put_timestamp(6, 6, LATER);
    let targets = forge.files["5.targets.json"].clone();
    forge.files.insert("6.targets.json".to_owned(), targets);
    assert_eq!(bad(trusted, &forge.files), "mix_and_match");
}

#[test]
fn whatever_is_out_of_date_is_refused() {
    let forge = Forge::new();
    let late = 1_900_000_000_000;
    let trusted = good(forge.pin(), &forge.files);
    for trusted in [forge.pin(), trusted] {
        assert_eq!(run(trusted, &forge.files, late).1.unwrap_err().code(), "expired");
    }
    for (stale, at) in [("timestamp", 0), ("1.snapshot", 1), ("1.targets", 2)] {
        let mut forge = Forge::new();
        let name = format!("{stale}.json");
        let mut file = forge.value(&name)["signed"].clone();
        file["expires"] = json!("2020-01-01T00:00:00Z");
        let signer = [&forge.timestamp, &forge.snapshot, &forge.targets][at];
        let bytes = signed(&file, &[signer]);
        forge.files.insert(name, bytes);
        if at > 1 {
            forge.put_snapshot(1, 1);
        }
        if at > 0 {
            forge.put_timestamp(1, 1, LATER);
        }
        assert_eq!(bad(forge.pin(), &forge.files), "expired", "{stale}");
    }
    // The same timestamp again and again: a freeze ends when it expires.
    let mut forge = Forge::new();
    forge.put_timestamp(1, 1, "2026-12-02T00:00:00Z");
    let trusted = good(forge.pin(), &forge.files);
    assert_eq!(run(trusted, &forge.files, 1_796_300_000_000).1.unwrap_err().code(), "expired");
}

#[test]
fn a_root_follows_the_root_before() {
    let mut forge = Forge::new();
    let pinned = forge.pin();
    let first = forge.files.clone();
    let trusted = good(pinned.clone(), &forge.files);
    // Not the next one.
    let third = forge.root_of(3);
    forge.put_root(2, &third);
    assert_eq!(bad(pinned.clone(), &forge.files), "wrong_root");
    // Of somebody else's keys.
    let stranger = Forge::new();
    let second = stranger.root_of(2);
    let signers: Vec<&Signer> = stranger.root.iter().collect();
    forge.files.insert("2.root.json".to_owned(), signed(&second, &signers));
    assert_eq!(bad(pinned.clone(), &forge.files), "wrong_root");
    // Signed by the old keys, and not by its own.
    let signers: Vec<&Signer> = forge.root.iter().collect();
    forge.files.insert("2.root.json".to_owned(), signed(&second, &signers));
    assert_eq!(bad(pinned, &forge.files), "bad_signature");
    // Signed by both: all keys change hands, and versions may begin anew.
    let all: Vec<&Signer> = forge.root.iter().chain(&stranger.root).collect();
    let mut files = stranger.files.clone();
    files.insert("2.root.json".to_owned(), signed(&second, &all));
    files.insert("1.root.json".to_owned(), first["1.root.json"].clone());
    assert_eq!(good(trusted.clone(), &files).seen().root, 2);
    forge.files = first;
    forge.publish(9, &json!({}));
    let ahead = good(trusted, &forge.files);
    assert_eq!(ahead.seen().timestamp, 9);
    assert_eq!(good(ahead.clone(), &files).seen(), Seen { root: 2, timestamp: 1, snapshot: 1, targets: 1 });
    // While the same keys sign, they may not.
    files.remove("2.root.json");
    assert_eq!(bad(ahead, &files), "bad_signature");
}

#[test]
fn an_expired_root_is_passed_through_but_not_stayed_at() {
    let mut forge = Forge::new();
    let mut root = forge.root_of(1);
    root["expires"] = json!("2020-01-01T00:00:00Z");
    forge.put_root(1, &root);
    let pinned = forge.pin();
    assert_eq!(bad(pinned.clone(), &forge.files), "expired");
    let second = forge.root_of(2);
    forge.put_root(2, &second);
    assert_eq!(good(pinned, &forge.files).seen().root, 2);
}

#[test]
fn thresholds_count_keys_and_not_signatures() {
    let forge = Forge::new();
    let root = forge.root_of(1);
    let one = signed(&root, &[&forge.root[0]]);
    let (code, pin) = (|error: TufError| error.code(), |bytes: &[u8]| Trusted::pin(bytes).map(drop));
    assert_eq!(pin(&one).map_err(code), Err("bad_signature"));
    let twice = signed(&root, &[&forge.root[0], &forge.root[0]]);
    assert_eq!(pin(&twice).map_err(code), Err("malformed"));
    // The same key under a second id, by a field that nobody reads.
    let mut public = forge.root[0].public.clone();
    public["note"] = json!("another");
    let mut twin = Signer { id: id(&public), public, ..Signer::ed25519() };
    let mut root = root;
    root["keys"][&twin.id] = twin.public.clone();
    root["roles"]["root"] = role(&[&forge.root[0], &twin, &forge.root[1]], 2);
    let mut file: Value = serde_json::from_slice(&signed(&root, &[&forge.root[0]])).unwrap();
    let mut copy = file["signatures"][0].clone();
    copy["keyid"] = json!(twin.id);
    file["signatures"].as_array_mut().unwrap().push(copy);
    assert_eq!(pin(file.to_string().as_bytes()).map_err(code), Err("bad_signature"));
    // A role that asks for more keys than it has, or for none.
    for threshold in [0, 4] {
        let mut root = forge.root_of(1);
        root["roles"]["root"]["threshold"] = json!(threshold);
        let signers: Vec<&Signer> = forge.root.iter().collect();
        assert_eq!(pin(&signed(&root, &signers)).map_err(code), Err("malformed"));
    }
    // A key under an id that is not its own.
    twin.public["note"] = json!("changed");
    root["keys"][&twin.id] = twin.public.clone();
    assert_eq!(pin(&signed(&root, &[&forge.root[0], &forge.root[1]])).map_err(code), Err("malformed"));
}

#[test]
fn one_role_cannot_speak_for_another() {
    let mut forge = Forge::new();
    let timestamp = forge.value("timestamp.json")["signed"].clone();
    let bytes = signed(&timestamp, &[&forge.snapshot]);
    forge.files.insert("timestamp.json".to_owned(), bytes);
    assert_eq!(bad(forge.pin(), &forge.files), "bad_signature");
    // Signed rightly, and of another role.
    let mut forge = Forge::new();
    let mut file = forge.value("1.targets.json")["signed"].clone();
    file["meta"] = json!({"snapshot.json": {"version": 1}});
    let bytes = signed(&file, &[&forge.timestamp]);
    forge.files.insert("timestamp.json".to_owned(), bytes);
    assert_eq!(bad(forge.pin(), &forge.files), "malformed");
}

#[test]
fn what_is_too_much_is_not_read() {
    let forge = Forge::new();
    for (name, limit) in
        [("2.root.json", ROOT_BYTES), ("timestamp.json", TIMESTAMP_BYTES), ("1.snapshot.json", 0)]
    {
        let mut files = forge.files.clone();
        let length = (limit as usize).max(files.get(name).map_or(0, Vec::len)) + 1;
        let mut bytes = files.get(name).cloned().unwrap_or_default();
        bytes.resize(length, b' ');
        files.insert(name.to_owned(), bytes);
        assert_eq!(bad(forge.pin(), &files), "too_large", "{name}");
    }
    assert_eq!(Trusted::pin(&vec![b' '; ROOT_BYTES as usize + 1]).unwrap_err().code(), "too_large");
    // A chain without an end is followed so far, and further the next time.
    let mut forge = Forge::new();
    for version in 2..=ROOTS as u64 + 11 {
        let root = forge.root_of(version);
        forge.put_root(version, &root);
    }
    let trusted = good(forge.pin(), &forge.files);
    assert_eq!(trusted.seen().root, ROOTS as u64 + 1);
    assert_eq!(good(trusted, &forge.files).seen().root, ROOTS as u64 + 11);
}

#[test]
fn no_flipped_bit_and_no_cut_passes() {
    let forge = Forge::new();
    for name in ["1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"] {
        let bytes = &forge.files[name];
        // A prime, so that every kind of place is met.
        for at in (0..bytes.len()).step_by(7) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let mut cut = bytes.clone();
            cut.truncate(at);
            for changed in [flipped, cut] {
                if name == "1.root.json" {
                    // Another spelling of the same text would be no forgery; there is none by one bit here.
                    assert!(Trusted::pin(&changed).is_err(), "{name} at {at}");
                    continue;
                }
                let mut files = forge.files.clone();
                files.insert(name.to_owned(), changed);
                let (_, end, _) = run(forge.pin(), &files, NOW_MS);
                let code = end.expect_err(&format!("{name} at {at}")).code();
                let right = ["malformed", "bad_signature", "mix_and_match", "too_large"];
                assert!(right.contains(&code), "{name} at {at}: {code}");
            }
        }
    }
}

#[test]
fn what_was_damaged_on_disk_is_told_or_fetched_anew() {
    let forge = Forge::new();
    let trusted = good(forge.pin(), &forge.files);
    let mut value = serde_json::to_value(&trusted).unwrap();
    value["targets"] = json!("{}");
    value["snapshot"] = json!("?");
    let damaged: Trusted = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(good(damaged, &forge.files), trusted);
    value["root"] = json!("{");
    let damaged: Trusted = serde_json::from_value(value).unwrap();
    assert_eq!(Update::new(damaged, NOW_MS).map(drop).unwrap_err().code(), "malformed");
}
