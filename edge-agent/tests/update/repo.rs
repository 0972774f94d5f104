//! Releases as a hub serves them: TUF metadata signed by one key, and artifacts with ranges, as slow and as broken as a
//! test wants.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use fleet_schemas::update::{ARTIFACT_PATH, Digest, TUF_PATH};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Response,
    body::{Bytes, Frame},
    header,
    http::request::Parts,
};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::site::{Body, Releases};

const LATER: &str = "2036-01-01T00:00:00Z";
const LONG_AGO: &str = "2020-01-01T00:00:00Z";
/// Bytes that are served in one part.
const PART: usize = 64 * 1024;

/// Served at most so far, until told to go on.
#[derive(Clone)]
struct Hold {
    prefix: String,
    from: usize,
    go: watch::Receiver<bool>,
}

#[derive(Default)]
struct Served {
    files: BTreeMap<String, Bytes>,
    // What was asked for, and from which byte on.
    asked: Vec<(String, u64)>,
    // The next answer with an artifact breaks off after so many bytes.
    cuts: Vec<usize>,
    hold: Option<Hold>,
    // What begins with this path never ends.
    endless: Option<String>,
    // Bytes that were taken off our hands of what never ends.
    endless_bytes: Arc<AtomicU64>,
}

/// Releases and the key that signs them.
pub(crate) struct Repo {
    key: Ed25519KeyPair,
    served: Arc<Mutex<Served>>,
    targets: Mutex<(u64, BTreeMap<String, Value>)>,
}

/// Lets what is held go on; also when it is dropped.
pub(crate) struct Go(#[expect(dead_code, reason = "dropping it is the word")] watch::Sender<bool>);

impl Repo {
    pub(crate) fn new() -> Self {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(der.as_ref()).unwrap();
        let repo = Self { key, served: Arc::default(), targets: Mutex::default() };
        repo.root(1);
        repo
    }

    /// A root of this version, of the same key.
    pub(crate) fn root(&self, version: u64) {
        let id = self.key_id();
        let role = json!({"keyids": [id], "threshold": 1});
        let root = json!({
            "_type": "root", "spec_version": "1.0.31", "version": version, "expires": LATER,
            "consistent_snapshot": true, "keys": {id: self.public()},
            "roles": {"root": role, "targets": role, "snapshot": role, "timestamp": role},
        });
        self.put(&format!("{version}.root.json"), &root);
    }

    fn public(&self) -> Value {
        let public = hex(self.key.public_key().as_ref());
        json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": public}})
    }

    fn key_id(&self) -> String {
        hex(&Sha256::digest(canonical(&self.public())))
    }

    fn put(&self, name: &str, signed: &Value) -> Vec<u8> {
        let sig = hex(self.key.sign(&canonical(signed)).as_ref());
        let file = json!({"signed": signed, "signatures": [{"keyid": self.key_id(), "sig": sig}]});
        let bytes = file.to_string().into_bytes();
        self.served().files.insert(format!("{TUF_PATH}/{name}"), bytes.clone().into());
        bytes
    }

    pub(crate) fn served_file(&self, name: &str) -> Bytes {
        self.served().files[&format!("{TUF_PATH}/{name}")].clone()
    }

    /// Shows something else than was signed.
    pub(crate) fn spoil(&self, path: &str, bytes: Bytes) {
        *self.served().files.get_mut(path).unwrap() = bytes;
    }

    pub(crate) fn artifact(&self, path: &str) -> Bytes {
        self.served().files[path].clone()
    }

    /// Serves a file no more.
    pub(crate) fn remove(&self, path: &str) {
        self.served().files.remove(path);
    }

    pub(crate) fn artifact_path(&self, target: &str) -> String {
        format!("{ARTIFACT_PATH}/{}", self.digest(target))
    }

    /// Signs a release.
    pub(crate) fn release(&self, target: &str, bytes: Vec<u8>, custom: &Value) {
        let digest = Digest(Sha256::digest(&bytes).into());
        let (version, all) = {
            let mut targets = self.targets.lock().unwrap();
            let entry =
                json!({"length": bytes.len(), "hashes": {"sha256": digest.to_string()}, "custom": custom});
            targets.1.insert(target.to_owned(), entry);
            targets.0 += 1;
            targets.clone()
        };
        self.served().files.insert(format!("{ARTIFACT_PATH}/{digest}"), bytes.into());
        let targets = with(head("targets", version), "targets", json!(all));
        self.put(&format!("{version}.targets.json"), &targets);
        self.snapshot(version, version);
        self.timestamp(version, version, false);
    }

    /// The version of what was signed last.
    pub(crate) fn version(&self) -> u64 {
        self.targets.lock().unwrap().0
    }

    /// Signs a snapshot that names targets of some version.
    pub(crate) fn snapshot(&self, version: u64, targets: u64) {
        let meta = json!({"targets.json": {"version": targets}});
        self.put(&format!("{version}.snapshot.json"), &with(head("snapshot", version), "meta", meta));
    }

    /// Signs a timestamp that names a snapshot of some version.
    pub(crate) fn timestamp(&self, version: u64, snapshot: u64, expired: bool) {
        let meta = json!({"snapshot.json": {"version": snapshot}});
        let mut timestamp = with(head("timestamp", version), "meta", meta);
        if expired {
            timestamp["expires"] = LONG_AGO.into();
        }
        self.put("timestamp.json", &timestamp);
    }

    /// Every file of metadata as it is.
    pub(crate) fn metadata(&self) -> BTreeMap<String, Bytes> {
        let served = self.served();
        let all = served.files.iter().filter(|(path, _)| path.starts_with(TUF_PATH));
        all.map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
    }

    /// Serves these files of metadata and no others.
    pub(crate) fn show(&self, metadata: BTreeMap<String, Bytes>) {
        let mut served = self.served();
        served.files.retain(|path, _| !path.starts_with(TUF_PATH));
        served.files.extend(metadata);
    }

    /// What begins with this path never ends; gives how many bytes of it were taken.
    pub(crate) fn endless(&self, prefix: Option<&str>) -> Arc<AtomicU64> {
        let mut served = self.served();
        served.endless = prefix.map(str::to_owned);
        served.endless_bytes = Arc::default();
        served.endless_bytes.clone()
    }

    /// Signs a skill that says which version it is.
    pub(crate) fn skill(&self, version: &str, manifest: &str, more: &[(String, Vec<u8>)]) {
        let mut files = vec![
            ("version".to_owned(), version.as_bytes().to_vec()),
            ("data".to_owned(), data(version)),
            ("skill.toml".to_owned(), manifest.as_bytes().to_vec()),
        ];
        files.extend(more.iter().cloned());
        self.release(&format!("skill/greeter/{version}/any"), archive(&files), &json!({}));
    }

    pub(crate) fn digest(&self, target: &str) -> String {
        self.targets.lock().unwrap().1[target]["hashes"]["sha256"].as_str().unwrap().to_owned()
    }

    pub(crate) fn length(&self, target: &str) -> u64 {
        self.targets.lock().unwrap().1[target]["length"].as_u64().unwrap()
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap()
    }

    /// The bytes from which on artifacts were asked for.
    pub(crate) fn ranges(&self) -> Vec<u64> {
        let served = self.served();
        let artifacts = served.asked.iter().filter(|(path, _)| path.starts_with(ARTIFACT_PATH));
        artifacts.map(|(_, from)| *from).collect()
    }

    /// The next answers with an artifact break off after so many bytes each.
    pub(crate) fn cut(&self, after: &[usize]) {
        self.served().cuts = after.to_vec();
    }

    /// What begins with this path is served up to a byte, until it may go on.
    pub(crate) fn hold(&self, prefix: &str, from: usize) -> Go {
        let (word, go) = watch::channel(false);
        self.served().hold = Some(Hold { prefix: prefix.to_owned(), from, go });
        Go(word)
    }

    pub(crate) fn serve(&self) -> Releases {
        let served = self.served.clone();
        Arc::new(move |head: &Parts| served.lock().unwrap().answer(head))
    }
}

fn head(kind: &str, version: u64) -> Value {
    json!({"_type": kind, "spec_version": "1.0.31", "version": version, "expires": LATER})
}

fn with(mut value: Value, key: &str, more: Value) -> Value {
    value[key] = more;
    value
}

impl Served {
    fn answer(&mut self, head: &Parts) -> Response<Body> {
        let path = head.uri.path().to_owned();
        let range = head.headers.get(header::RANGE).and_then(|range| range.to_str().ok());
        let from: usize = range
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
            .unwrap_or(0);
        let Some(bytes) = self.files.get(&path).cloned() else {
            let empty = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
            return Response::builder().status(404).body(empty).unwrap();
        };
        self.asked.push((path.clone(), from as u64));
        if self.endless.as_ref().is_some_and(|prefix| path.starts_with(prefix)) {
            return Response::new(endless(bytes, self.endless_bytes.clone()));
        }
        let cut = (path.starts_with(ARTIFACT_PATH) && !self.cuts.is_empty()).then(|| self.cuts.remove(0));
        let hold = self.hold.clone().filter(|hold| path.starts_with(&hold.prefix));
        let length = bytes.len();
        let mut answer = Response::builder().header(header::ETAG, format!("\"{path}\""));
        if range.is_some() {
            let value = format!("bytes {from}-{}/{length}", length.saturating_sub(1));
            answer = answer.status(206).header(header::CONTENT_RANGE, value);
        }
        answer.body(body(bytes, from, cut, hold)).unwrap()
    }
}

/// The bytes, and zeros after them for ever.
fn endless(bytes: Bytes, taken: Arc<AtomicU64>) -> Body {
    let first = stream::iter([bytes]);
    let parts = first.chain(stream::repeat_with(|| Bytes::from_static(&[0; PART])));
    let parts = parts.map(move |part| {
        taken.fetch_add(part.len() as u64, Ordering::Relaxed);
        Ok(Frame::data(part))
    });
    StreamBody::new(parts).boxed_unsync()
}

fn body(bytes: Bytes, from: usize, cut: Option<usize>, hold: Option<Hold>) -> Body {
    let parts: Vec<_> = (from..bytes.len()).step_by(PART).collect();
    let parts = stream::iter(parts).then(move |at| {
        let part = bytes.slice(at..bytes.len().min(at + PART));
        let hold = hold.clone();
        async move {
            if cut.is_some_and(|cut| at - from >= cut) {
                return Err(io::Error::other("the link is gone"));
            }
            if let Some(mut hold) = hold.filter(|hold| at + PART > hold.from) {
                // An error says that it may go on.
                let _ = hold.go.wait_for(|go| *go).await;
            }
            Ok(Frame::data(part))
        }
    });
    StreamBody::new(parts).boxed_unsync()
}

/// What a release of this version has in its largest file.
pub(crate) fn data(version: &str) -> Vec<u8> {
    let mut state = Sha256::digest(version).to_vec();
    let mut data = Vec::new();
    while data.len() < 100_000 {
        state = Sha256::digest(&state).to_vec();
        data.extend_from_slice(&state);
    }
    data
}

/// A file of the given length that does not pack.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(length + 32);
    let mut number = 0_u64;
    while data.len() < length {
        data.extend_from_slice(&Sha256::digest(number.to_le_bytes()));
        number += 1;
    }
    data.truncate(length);
    data
}

pub(crate) fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    zstd::stream::encode_all(builder.into_inner().unwrap().as_slice(), 1).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Canonical JSON of what is signed here: keys in order, no space between.
fn canonical(value: &Value) -> Vec<u8> {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Object(map) => {
                let sorted: BTreeMap<_, _> = map.iter().collect();
                out.push('{');
                for (at, (key, value)) in sorted.into_iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    out.push_str(&Value::from(key.as_str()).to_string());
                    out.push(':');
                    write(value, out);
                }
                out.push('}');
            }
            Value::Array(list) => {
                out.push('[');
                for (at, value) in list.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    write(value, out);
                }
                out.push(']');
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                out.push_str(&value.to_string());
            }
        }
    }
    let mut out = String::new();
    write(value, &mut out);
    out.into_bytes()
}
