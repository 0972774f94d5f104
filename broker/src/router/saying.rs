//! What a tool says, or the hub outside `fleet/`: one message as it travels through the router.
//!
//! All of them have one topic there, because the router keeps every topic it has seen for ever and compares a new one
//! with every filter. What they are really about is inside, and is read where they are heard.

use bytes::{BufMut, Bytes, BytesMut};

use crate::router::pipe::{Carry, OVERHEAD};

/// The topic in the router; outside `fleet/`, and none that a session could publish.
pub(crate) const SAYINGS: &str = "gate/sayings";

/// A message as it travels: topic and envelope in one allocation of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Saying(Bytes);

/// A message as it is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    /// 0 or 1.
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Seconds for which it is worth delivering.
    pub(crate) expiry: Option<u32>,
    /// What of its properties travels as it is (MQTT 5 §3.3.2.3).
    pub(crate) properties: &'a [u8],
    /// The tool's name and client id; `None` for the hub.
    pub(crate) sender: Option<(&'a str, &'a str)>,
}

const QOS: u8 = 1;
const RETAIN: u8 = 2;
const EXPIRY: u8 = 4;
const SENDER: u8 = 8;

impl Saying {
    pub(crate) fn new(said: &Said<'_>) -> Self {
        let (name, client) = said.sender.unwrap_or_default();
        let texts = [name, client, said.topic];
        let length = texts.iter().map(|text| text.len() + 2).sum::<usize>() + 9;
        let length = SAYINGS.len() + length + said.properties.len() + said.payload.len();
        let mut bytes = BytesMut::with_capacity(length);
        bytes.put_slice(SAYINGS.as_bytes());
        let flag = |on: bool, flag| if on { flag } else { 0 };
        let flags = flag(said.qos > 0, QOS) | flag(said.retain, RETAIN);
        bytes.put_u8(flags | flag(said.expiry.is_some(), EXPIRY) | flag(said.sender.is_some(), SENDER));
        bytes.put_u32(said.expiry.unwrap_or(0));
        for text in texts {
            // Shorter than a packet's own length fields, where they came from.
            bytes.put_u16(u16::try_from(text.len()).unwrap_or(0));
            bytes.put_slice(text.as_bytes());
        }
        bytes.put_u32(u32::try_from(said.properties.len()).unwrap_or(0));
        bytes.put_slice(said.properties);
        bytes.put_slice(said.payload);
        Self(bytes.freeze())
    }

    /// What it says.
    pub(crate) fn said(&self) -> Said<'_> {
        open(&self.0[SAYINGS.len()..]).expect("it was written by `new`")
    }
}

impl Carry for Saying {
    fn carried(&self) -> (Bytes, Bytes) {
        (self.0.slice(..SAYINGS.len()), self.0.slice(SAYINGS.len()..))
    }

    fn cost(&self) -> usize {
        self.0.len() + OVERHEAD
    }

    fn address(&self) -> usize {
        self.0.as_ptr().addr()
    }
}

/// Reads what came out of the router as the payload of [`SAYINGS`]; `None` for what [`Saying::new`] did not write.
pub(crate) fn open(envelope: &[u8]) -> Option<Said<'_>> {
    let (&flags, rest) = envelope.split_first()?;
    let (expiry, mut rest) = number(rest)?;
    let mut texts = [""; 3];
    for text in &mut texts {
        let (length, tail) = rest.split_first_chunk()?;
        let (bytes, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        (*text, rest) = (str::from_utf8(bytes).ok()?, tail);
    }
    let (length, rest) = number(rest)?;
    let (properties, payload) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let [name, client, topic] = texts;
    Some(Said {
        topic,
        payload,
        qos: u8::from(flags & QOS != 0),
        retain: flags & RETAIN != 0,
        expiry: (flags & EXPIRY != 0).then_some(expiry),
        properties,
        sender: (flags & SENDER != 0).then_some((name, client)),
    })
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_said_comes_out_as_it_went_in_and_no_bytes_are_a_surprise(
            topic in ".{1,40}", payload in proptest::collection::vec(any::<u8>(), 0..100),
            properties in proptest::collection::vec(any::<u8>(), 0..100), one: bool, retain: bool,
            expiry in proptest::option::of(any::<u32>()), sender in proptest::option::of((".{0,9}", ".{0,9}")),
            cut in 0_usize..100,
        ) {
            let sender = sender.as_ref().map(|(name, client)| (&name[..], &client[..]));
            let (payload, properties) = (&payload[..], &properties[..]);
            let said = Said { topic: &topic, payload, qos: u8::from(one), retain, expiry, properties, sender };
            let saying = Saying::new(&said);
            prop_assert_eq!(saying.said(), said);
            let (text, envelope) = saying.carried();
            prop_assert_eq!((&text[..], text.as_ptr().addr()), (SAYINGS.as_bytes(), saying.address()));
            prop_assert_eq!(open(&envelope), Some(said));
            let _ = open(&envelope[..cut.min(envelope.len())]);
        }
    }
}
