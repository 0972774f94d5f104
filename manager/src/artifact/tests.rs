//! Artifacts on a real disk: whole or not there, whatever happens.

use std::{collections::BTreeSet, mem, ops::Range};

use bytes::Bytes;
use fleet_schemas::update::Digest;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::core::time::millis;

fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

fn pushed(target: &str) -> Pushed {
    Pushed {
        target: target.parse().unwrap(),
        at_ms: 1,
        by: "operator test".to_owned(),
        min_from: None,
        device_kind: None,
    }
}

fn now_ms() -> i64 {
    crate::clock::HubClock::default().now().wall_ms
}

fn open(folder: &tempfile::TempDir) -> Store {
    Store::open(folder.path(), now_ms()).unwrap()
}

fn push(store: &Store, bytes: &[u8], name: &str) -> Artifact {
    let digest = digest(bytes);
    let stands = store.begin(digest, bytes.len() as u64, pushed(name)).unwrap();
    assert!(!stands.complete);
    let upload = store.upload(&digest).unwrap();
    upload.append(stands.offset, &bytes[stands.offset as usize..]).unwrap();
    store.complete(&upload).unwrap()
}

fn whole(store: &Store, digest: &Digest) -> Vec<u8> {
    let reader = store.reader(digest).unwrap();
    let length = reader.length();
    let mut pieces = reader.pieces(0..length);
    let mut bytes = Vec::new();
    while !pieces.is_empty() {
        bytes.extend(pieces.read().unwrap());
    }
    bytes
}

#[test]
fn bytes_are_kept_once_under_all_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let bytes = vec![7; file::PIECE * 2 + 5];
    let artifact = push(&store, &bytes, "skill/a/1.0.0/any");
    let again = store.begin(artifact.digest, bytes.len() as u64, pushed("skill/b/2.0.0/any")).unwrap();
    assert!(again.complete);
    assert!(matches!(
        store.begin(artifact.digest, 3, pushed("skill/b/2.0.0/any")),
        Err(Error::OtherLength { .. })
    ));
    drop(store);
    let store = open(&folder);
    let found = store.get(&artifact.digest).unwrap();
    let names: Vec<String> = found.pushed.iter().map(|pushed| pushed.target.to_string()).collect();
    assert_eq!(names, ["skill/a/1.0.0/any", "skill/b/2.0.0/any"]);
    assert_eq!(whole(&store, &artifact.digest), bytes);
    let reader = store.reader(&artifact.digest).unwrap();
    store.remove(&artifact.digest).unwrap();
    assert_eq!(reader.pieces(0..4).read().unwrap()[..], [7; 4], "what is being read stays");
    assert!(matches!(store.remove(&artifact.digest), Err(Error::Unknown(_))));
    drop(store);
    assert!(open(&folder).all().is_empty());
}

#[test]
fn any_part_is_read_into_two_buffers_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let bytes: Vec<u8> = (0..file::PIECE as u32 * 2 + 9).flat_map(u32::to_be_bytes).collect();
    let artifact = push(&store, &bytes, "skill/a/1.0.0/any");
    let pieces_of = |part: Range<usize>| {
        store.reader(&artifact.digest).unwrap().pieces(part.start as u64..part.end as u64)
    };
    for part in [0..bytes.len(), 5..bytes.len() + 7, 1..4, 4..4, bytes.len()..bytes.len() + 1] {
        let mut pieces = pieces_of(part.clone());
        let mut got = Vec::new();
        for turn in 0.. {
            // What is in memory may be any part of a piece, and the disk has the rest.
            let ready = if turn % 3 == 0 { None } else { pieces.ready() };
            let piece = ready.unwrap_or_else(|| pieces.read().unwrap());
            if piece.is_empty() {
                break;
            }
            got.extend_from_slice(&piece);
        }
        assert!(got == bytes[part.start..part.end.min(bytes.len())], "{part:?}");
        assert!(pieces.is_empty() && pieces.ready().is_none());
    }
    // As a connection does it: what was sent is gone when the next but one is asked for.
    let mut pieces = pieces_of(0..8 * file::PIECE);
    let (mut buffers, mut sending) = (BTreeSet::new(), Bytes::new());
    while !pieces.is_empty() {
        let piece = pieces.read().unwrap();
        buffers.insert(piece.as_ptr());
        drop(mem::replace(&mut sending, piece));
    }
    assert_eq!(buffers.len(), 2, "of 8 pieces");
}

#[test]
fn an_upload_goes_on_where_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..100_000_u32).map(|at| at as u8).collect();
    let digest = digest(&bytes);
    let store = open(&folder);
    store.begin(digest, bytes.len() as u64, pushed("skill/a/1.0.0/any")).unwrap();
    store.upload(&digest).unwrap().append(0, &bytes[..60_000]).unwrap();
    drop(store);
    let store = open(&folder);
    assert_eq!(store.stands(&digest).unwrap(), Offset { offset: 60_000, length: 100_000, complete: false });
    let upload = store.upload(&digest).unwrap();
    let gap = upload.append(70_000, &bytes[70_000..]);
    assert!(matches!(gap, Err(Error::Offset { has: 60_000, asked: 70_000 })));
    assert!(matches!(upload.append(60_000, &[0; 50_000]), Err(Error::TooLong(100_000))));
    upload.append(60_000, &bytes[60_000..]).unwrap();
    {
        let _other = upload.turn().unwrap();
        assert!(matches!(store.complete(&upload), Err(Error::Busy)));
    }
    let artifact = store.complete(&upload).unwrap();
    // Whoever else held its last bytes hears the same.
    assert_eq!(store.complete(&upload).unwrap(), artifact);
    assert_eq!(whole(&store, &digest), bytes);
    assert_eq!(fs::read_dir(folder.path().join(FOLDER).join(UPLOADS)).unwrap().count(), 0);
}

#[test]
fn other_bytes_than_announced_are_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let digest = digest(b"right");
    store.begin(digest, 5, pushed("skill/a/1.0.0/any")).unwrap();
    let upload = store.upload(&digest).unwrap();
    upload.append(0, b"wrong").unwrap();
    assert!(matches!(store.complete(&upload), Err(Error::Digest { .. })));
    assert!(matches!(store.stands(&digest), Err(Error::NoUpload(_))));
    assert!(store.get(&digest).is_none());
    push(&store, b"right", "skill/a/1.0.0/any");
}

#[test]
fn whatever_a_crash_leaves_is_whole_or_gone() {
    let bytes = b"some bytes";
    let digest = digest(bytes);
    // Every state that the steps of an upload and of its end pass through on disk.
    for step in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        store.begin(digest, bytes.len() as u64, pushed("skill/a/1.0.0/any")).unwrap();
        let upload = store.upload(&digest).unwrap();
        let part = folder.path().join(FOLDER).join(UPLOADS).join(format!("{digest}.part"));
        match step {
            // The note alone.
            0 => fs::remove_file(&part).unwrap(),
            // Bytes that nobody counted.
            1 => fs::write(&part, b"some bytes and more").unwrap(),
            2 => drop(upload.append(0, bytes).unwrap()),
            3 => {
                upload.append(0, bytes).unwrap();
                store.keep(&digest, bytes.len() as u64, &upload.pushed()).unwrap();
            }
            _ => {
                upload.append(0, bytes).unwrap();
                store.keep(&digest, bytes.len() as u64, &upload.pushed()).unwrap();
                fs::rename(&part, store.path(&digest)).unwrap();
            }
        }
        drop(store);
        let store = open(&folder);
        if step == 4 {
            assert_eq!(store.get(&digest).unwrap().pushed.len(), 1);
        } else {
            assert!(store.get(&digest).is_none(), "{step}");
            let stands = store.begin(digest, bytes.len() as u64, pushed("skill/a/1.0.0/any")).unwrap();
            let upload = store.upload(&digest).unwrap();
            upload.append(stands.offset, &bytes[stands.offset as usize..]).unwrap();
            store.complete(&upload).unwrap();
        }
        assert_eq!(whole(&store, &digest), bytes, "{step}");
    }
}

#[test]
fn there_is_a_limit_on_everything() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for length in [0, limits::ARTIFACT_BYTES + 1] {
        assert!(matches!(store.begin(digest(b"x"), length, pushed("skill/a/1.0.0/any")), Err(Error::Length)));
    }
    for at in 0..OPEN {
        store.begin(digest(&[at as u8]), 1, pushed("skill/a/1.0.0/any")).unwrap();
    }
    let more = store.begin(digest(b"more"), 1, pushed("skill/a/1.0.0/any"));
    assert!(matches!(more, Err(Error::Full(_))));
    // A day later nobody went on with them.
    store.tidy(now_ms() + millis(REST) - 60_000);
    assert_eq!(store.uploads().len(), OPEN);
    store.tidy(now_ms() + millis(REST) + 60_000);
    assert!(store.uploads().is_empty());
    let artifact = push(&store, b"x", "skill/n/1.0.0/any");
    for at in 1..NAMES {
        store.begin(artifact.digest, 1, pushed(&format!("skill/n{at}/1.0.0/any"))).unwrap();
    }
    assert!(matches!(store.begin(artifact.digest, 1, pushed("skill/z/1.0.0/any")), Err(Error::Full(_))));
}
