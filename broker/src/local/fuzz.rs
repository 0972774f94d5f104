//! The door for the fuzzer to a device's session. Built for it only.

use std::time::Duration;

use fleet_schemas::{DeviceId, limits};

use super::session::{Effects, Session, Word};
use crate::{clock, packets::frame::FrameReader};

/// A stream of bytes after CONNECT, cut into pieces: the first byte says whether the device is known by its password,
/// the second how long the pieces are.
pub(crate) fn devices(bytes: &[u8]) {
    let [known, piece, stream @ ..] = bytes else { return };
    let device = (known & 1 == 1).then(|| DeviceId::parse("fuzz").expect("the id keeps to the grammar"));
    let now = clock::now();
    let mut session = Session::new(device.clone(), "fuzz", Duration::from_secs(60), now);
    let mut reader = FrameReader::default();
    for piece in stream.chunks(usize::from(*piece).max(1)) {
        let mut input = piece;
        loop {
            let mut out = Effects::default();
            match reader.next(&mut input, limits::DEVICE_PACKET_BYTES) {
                Ok(None) => break,
                Ok(Some(frame)) => session.handle_packet(frame.first, frame.body, now, &mut out),
                Err(error) => session.handle_broken_stream(error, &mut out),
            }
            for word in &out.words {
                match word {
                    Word::Bound(to) => {
                        assert!(device.is_none() && session.device() == Some(to), "bound twice")
                    }
                    Word::Said { payload, .. } => {
                        assert!(session.device().is_some() && payload.len() <= limits::DEVICE_PACKET_BYTES);
                    }
                    Word::Hears(hears) => {
                        assert_eq!(session.handle_command(b"{}", &mut Vec::new()), *hears);
                    }
                }
            }
            if out.end.is_some() {
                return;
            }
        }
    }
}
