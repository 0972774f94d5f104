//! What a node gets of releases and artifacts on the port for nodes, over TLS: all that it is to have, and nothing else.

use std::{collections::BTreeMap, time::Duration};

use ciborium::Value;
use fleet_edge_agent::core::tuf::{Trusted, Update};
use fleet_manager::{
    artifact::Pushed,
    clock,
    core::{command::Wanted, identity::Change, registry::Intent},
    release::{Entry, Key, Signers, make},
};
use fleet_schemas::{
    CommandId, MetricName, NodeId,
    update::{self, ARTIFACT_PATH, Custom, Digest, Order, TUF_PATH, Target},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time,
};

use crate::given::{Holds, PATIENCE, Site, dial};

const TARGET: &str = "skill/greeter/1.2.0/any";

/// An answer with its head and its bytes.
struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

async fn ask(site: &Site, shows: Option<&Holds>, method: &str, path: &str, more: &str) -> Got {
    let mut tls = dial(site.running.addresses.node_https.unwrap(), &site.ca(), shows).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: hub\r\nconnection: close\r\n{more}\r\n");
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    time::timeout(PATIENCE, tls.read_to_end(&mut text)).await.unwrap().unwrap();
    let end = text.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(text[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Got { status, head, body: text[end + 4..].to_vec() }
}

/// Pushes and signs bytes; gives their digest.
fn release(site: &Site, bytes: &[u8]) -> Digest {
    let releases = site.running.hub.releases().unwrap();
    let digest = Digest(Sha256::digest(bytes).into());
    let target: Target = TARGET.parse().unwrap();
    let pushed = Pushed {
        target: target.clone(),
        at_ms: 1,
        by: "operator test".into(),
        min_from: None,
        device_kind: None,
    };
    releases.artifacts().begin(digest, bytes.len() as u64, pushed).unwrap();
    let upload = releases.artifacts().upload(&digest).unwrap();
    upload.append(0, bytes).unwrap();
    releases.artifacts().complete(&upload).unwrap();
    let (root, targets) = (Key::generate().unwrap(), Key::generate().unwrap());
    let (snapshot, timestamp) = releases.online_keys();
    let signers = Signers { root: vec![root.public()], targets: vec![targets.public()], snapshot, timestamp };
    let now_ms = clock::wall_ms();
    let entry = Entry { length: bytes.len() as u64, digest, custom: Custom::default() };
    let root_text = make::sign(make::root(1, &signers, now_ms).unwrap(), &[&root]).unwrap();
    let listed = make::targets(1, &BTreeMap::from([(target, entry)]), now_ms).unwrap();
    let targets_text = make::sign(listed, &[&targets]).unwrap();
    releases.publish(Some(&root_text), Some(&targets_text)).unwrap();
    digest
}

/// Orders a node to run what was signed.
async fn order(site: &Site, node: &str, digest: Digest) {
    let order = Order {
        target: TARGET.parse().unwrap(),
        digest,
        rollout: None,
        device: None,
        back: false,
        probation_ms: None,
        window: None,
        offline_ok: false,
    };
    let word = |text: &str| MetricName::parse(text).unwrap();
    let wanted = Wanted {
        id: CommandId(clock::random()),
        by: "operator test".to_owned(),
        nodes: vec![NodeId::parse(node).unwrap()],
        kind: word(update::COMMAND),
        params: Value::serialized(&order).unwrap(),
        queue: word(update::QUEUE),
        priority: 0,
        idempotent: true,
        supersedes: None,
        ttl: Duration::from_secs(600),
        timeout: Duration::from_secs(600),
        not_before_ms: None,
        rate: None,
        selector: None,
    };
    site.running.hub.intend("operator test", Intent::Command(Box::new(wanted))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_what_it_is_ordered_and_can_go_on_anywhere_in_it() {
    let site = Site::start().await;
    let bytes: Vec<u8> = (0..700_001_u32).map(|at| (at * 31 / 7) as u8).collect();
    let digest = release(&site, &bytes);
    let (one, two) = (site.joined("edge-1").await, site.joined("edge-2").await);
    let path = format!("{ARTIFACT_PATH}/{digest}");
    let early = ask(&site, Some(&one), "GET", &path, "").await;
    assert_eq!(early.status, 403, "nobody ordered it");
    order(&site, "edge-1", digest).await;
    let whole = ask(&site, Some(&one), "GET", &path, "").await;
    assert_eq!((whole.status, whole.body == bytes), (200, true));
    let tag = whole.header("etag").unwrap().to_owned();
    assert_eq!(whole.header("content-length"), Some("700001"));
    let part =
        ask(&site, Some(&one), "GET", &path, &format!("range: bytes=300000-\r\nif-range: {tag}\r\n")).await;
    assert_eq!((part.status, part.body == bytes[300_000..]), (206, true));
    assert_eq!(part.header("content-range"), Some("bytes 300000-700000/700001"));
    let changed =
        ask(&site, Some(&one), "GET", &path, "range: bytes=300000-\r\nif-range: \"other\"\r\n").await;
    assert_eq!((changed.status, changed.body.len()), (200, 700_001));
    let beyond = ask(&site, Some(&one), "GET", &path, "range: bytes=700001-\r\n").await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */700001")));
    let head = ask(&site, Some(&one), "HEAD", &path, "").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("700001"), 0));
    // Another node, a stranger, another artifact, what is no digest.
    assert_eq!(ask(&site, Some(&two), "GET", &path, "").await.status, 403);
    assert_eq!(ask(&site, None, "GET", &path, "").await.status, 403);
    let other = format!("{ARTIFACT_PATH}/{}", Digest([7; 32]));
    assert_eq!(ask(&site, Some(&one), "GET", &other, "").await.status, 403);
    for nothing in ["online.json", "..%2f..%2fstate.redb", "x"] {
        let path = format!("{ARTIFACT_PATH}/{nothing}");
        assert_eq!(ask(&site, Some(&one), "GET", &path, "").await.status, 404, "{nothing}");
    }
    site.intend(Change::Revoke { node: NodeId::parse("edge-1").unwrap(), reason: "lost".to_owned() }).await;
    assert_eq!(ask(&site, Some(&one), "GET", &path, "").await.status, 403, "it is shut out");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_verifies_what_may_run_by_what_the_port_says() {
    let site = Site::start().await;
    let none = site.joined("edge-1").await;
    assert_eq!(ask(&site, Some(&none), "GET", &format!("{TUF_PATH}/timestamp.json"), "").await.status, 404);
    let digest = release(&site, b"some bytes");
    let node = site.joined("edge-2").await;
    let get = async |name: &str| {
        let got = ask(&site, Some(&node), "GET", &format!("{TUF_PATH}/{name}"), "").await;
        (got.status == 200).then_some(got.body)
    };
    let mut update =
        Update::new(Trusted::pin(&get("1.root.json").await.unwrap()).unwrap(), clock::wall_ms()).unwrap();
    while let Some(want) = update.wants() {
        update.take(get(&want.name).await.as_deref()).unwrap();
    }
    assert!(update.is_done());
    let signed = update.finish().target(&TARGET.parse().unwrap()).unwrap();
    assert_eq!((signed.length, signed.digest), (10, digest));
    assert_eq!(get("online.json").await, None);
    assert_eq!(ask(&site, None, "GET", &format!("{TUF_PATH}/timestamp.json"), "").await.status, 403);
    site.stop().await;
}
