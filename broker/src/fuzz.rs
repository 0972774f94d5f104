//! Doors for the fuzzer (`broker/fuzz`): the readers of bytes from strangers. Built for it only.
//!
//! Each must be total: no panic, no endless loop, and no more memory held than the limits allow.

use std::time::Duration;

use fleet_schemas::{NodeId, limits};

use crate::{
    clock,
    gate::{
        connect,
        frame::FrameReader,
        session::{Effects, Party, Session, Terms},
        wire::{self, Version},
    },
};

/// A stream of bytes after CONNECT, cut into pieces: the first byte chooses the version, the second the pieces.
pub fn frames(bytes: &[u8]) {
    let [version, piece, stream @ ..] = bytes else { return };
    let version = version_of(*version);
    let mut session = node_session(version);
    let mut reader = FrameReader::default();
    let now = clock::now();
    for piece in stream.chunks(usize::from(*piece).max(1)) {
        let mut input = piece;
        loop {
            let mut effects = Effects::default();
            match reader.next(&mut input, limits::PACKET_BYTES) {
                Ok(None) => break,
                Ok(Some(frame)) => session.handle_packet(frame.first, frame.body, now, &mut effects),
                Err(error) => session.handle_broken_stream(error, &mut effects),
            }
            if effects.end.is_some() {
                return;
            }
        }
    }
}

/// A stream of bytes of a device at an agent's front, after CONNECT.
pub fn devices(bytes: &[u8]) {
    crate::local::fuzz::devices(bytes);
}

/// The body of a CONNECT.
pub fn connect(bytes: &[u8]) {
    if let Ok(connect) = connect::decode(bytes) {
        assert!(connect.client_id.len() <= bytes.len());
    }
}

/// The body of a SUBSCRIBE, and what a node's session answers.
pub fn subscribe(bytes: &[u8]) {
    let [version, body @ ..] = bytes else { return };
    let version = version_of(*version);
    if wire::decode(version, 0x82, body).is_err() {
        return;
    }
    let mut effects = Effects::default();
    node_session(version).handle_packet(0x82, body, clock::now(), &mut effects);
    assert!(effects.end.is_some() || effects.write.first() == Some(&0x90), "neither answered nor ended");
    assert!(effects.publish.is_empty());
}

fn version_of(byte: u8) -> Version {
    if byte & 1 == 0 { Version::V4 } else { Version::V5 }
}

fn node_session(version: Version) -> Session {
    let node = NodeId::parse("fuzz").expect("the id keeps to the grammar");
    let terms = Terms {
        version,
        keepalive: Duration::from_secs(60),
        will: None,
        keeps: false,
        receive_max: 16,
        packet_max: u32::MAX,
    };
    Session::new(Party::Node(node), terms, clock::now())
}
