//! Writes the packets the gate sends, in the version of the session.
//!
//! Only bytes: which packet is due is decided in `session` and `admit`.

use fleet_schemas::limits;

use crate::packets::wire::Version;

/// The MQTT 5 DISCONNECT reason codes the gate uses (§3.14.2.1).
pub(crate) mod code {
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL: u8 = 0x82;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const SHUTDOWN: u8 = 0x8B;
    pub(crate) const BAD_AUTH_METHOD: u8 = 0x8C;
    pub(crate) const KEEP_ALIVE: u8 = 0x8D;
    pub(crate) const TAKEN_OVER: u8 = 0x8E;
    pub(crate) const SERVER_BUSY: u8 = 0x89;
    pub(crate) const TOPIC_NAME: u8 = 0x90;
    pub(crate) const QUOTA: u8 = 0x97;
    /// SUBACK: no filter at all.
    pub(crate) const FILTER: u8 = 0x8F;
    pub(crate) const ALIAS: u8 = 0x94;
    pub(crate) const TOO_LARGE: u8 = 0x95;
    pub(crate) const ADMINISTRATIVE: u8 = 0x98;
    pub(crate) const RETAIN: u8 = 0x9A;
    pub(crate) const QOS: u8 = 0x9B;
    pub(crate) const SHARED: u8 = 0x9E;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0xA1;
    /// UNSUBACK: there was no such subscription.
    pub(crate) const NO_SUBSCRIPTION: u8 = 0x11;
}

/// A remaining length (MQTT 5 §1.5.5); at most four bytes because no packet exceeds the limits.
pub(crate) fn length(out: &mut Vec<u8>, mut n: usize) {
    loop {
        let byte = n.to_le_bytes()[0] & 0x7F;
        n >>= 7;
        if n == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

/// What a CONNACK says beside that it is one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Welcome<'a> {
    /// In seconds; unless the client's own is kept.
    pub(crate) keepalive: Option<u16>,
    /// The client id given to a client that brought none.
    pub(crate) assigned: Option<&'a str>,
    /// Retained messages and subscription identifiers are for tools.
    pub(crate) tool: bool,
}

/// CONNACK of an opened session: never a session present, and what is not offered (MQTT 5 §3.2.2.3).
pub(crate) fn welcome(out: &mut Vec<u8>, version: Version, welcome: Welcome<'_>) {
    if version == Version::V4 {
        return out.extend_from_slice(&[0x20, 2, 0, 0]);
    }
    let offered = u8::from(welcome.tool);
    let mut properties = vec![
        0x11, 0, 0, 0, 0, // session expiry interval 0: clean sessions only
        0x24, 1, // maximum QoS 1
        0x25, offered, // retain available
        0x22, 0, 0, // topic alias maximum 0
        0x29, offered, // subscription identifiers available
        0x2A, 0,    // shared subscriptions not available
        0x27, // maximum packet size
    ];
    properties.extend_from_slice(&u32::try_from(limits::PACKET_BYTES).unwrap_or(u32::MAX).to_be_bytes());
    if let Some(seconds) = welcome.keepalive {
        properties.push(0x13);
        properties.extend_from_slice(&seconds.to_be_bytes());
    }
    if let Some(id) = welcome.assigned {
        properties.push(0x12);
        properties.extend_from_slice(&u16::try_from(id.len()).unwrap_or(0).to_be_bytes());
        properties.extend_from_slice(id.as_bytes());
    }
    out.push(0x20);
    // The properties stay below 128 bytes, so their length is one byte.
    length(out, 3 + properties.len());
    out.extend_from_slice(&[0, 0]);
    length(out, properties.len());
    out.extend_from_slice(&properties);
}

/// CONNACK of a refusal.
pub(crate) fn refuse(out: &mut Vec<u8>, version: Version, code: u8) {
    match version {
        Version::V4 => out.extend_from_slice(&[0x20, 2, 0, code]),
        Version::V5 => out.extend_from_slice(&[0x20, 3, 0, code, 0]),
    }
}

/// PUBACK; MQTT 3.1.1 has no reason code.
pub(crate) fn puback(out: &mut Vec<u8>, version: Version, id: u16, code: u8) {
    let [high, low] = id.to_be_bytes();
    if version == Version::V4 || code == 0 {
        out.extend_from_slice(&[0x40, 2, high, low]);
    } else {
        out.extend_from_slice(&[0x40, 3, high, low, code]);
    }
}

/// SUBACK or UNSUBACK, by its first byte.
pub(crate) fn suback(out: &mut Vec<u8>, version: Version, first: u8, id: u16, codes: &[u8]) {
    out.push(first);
    let properties = usize::from(version == Version::V5);
    length(out, 2 + properties + codes.len());
    out.extend_from_slice(&id.to_be_bytes());
    if version == Version::V5 {
        out.push(0);
    }
    out.extend_from_slice(codes);
}

/// PINGRESP.
pub(crate) fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xD0, 0]);
}

/// DISCONNECT; a server says it in MQTT 5 only.
pub(crate) fn disconnect(out: &mut Vec<u8>, version: Version, code: u8) {
    if version == Version::V5 {
        out.extend_from_slice(&[0xE0, 1, code]);
    }
}

/// A PUBLISH for a subscriber, first delivery.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Forward<'a> {
    pub(crate) topic: &'a [u8],
    pub(crate) payload: &'a [u8],
    /// 0 or 1.
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// The packet identifier, if `qos` is 1.
    pub(crate) id: u16,
    /// Seconds that are left of it.
    pub(crate) expiry: Option<u32>,
    /// The identifiers of the subscriptions it is for.
    pub(crate) subscriptions: &'a [u32],
    /// Properties that travel as they are.
    pub(crate) properties: &'a [u8],
}

impl Forward<'_> {
    /// Its size, whole, in bytes.
    pub(crate) fn size(&self, version: Version) -> usize {
        let body = self.body(version);
        1 + length_size(body) + body
    }

    /// Appends it. MQTT 3.1.1 knows no properties.
    pub(crate) fn write(&self, out: &mut Vec<u8>, version: Version) {
        out.push(0x30 | (self.qos << 1) | u8::from(self.retain));
        length(out, self.body(version));
        out.extend_from_slice(&u16::try_from(self.topic.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(self.topic);
        if self.qos > 0 {
            out.extend_from_slice(&self.id.to_be_bytes());
        }
        if version == Version::V5 {
            length(out, self.properties_size());
            // First of all: its place has to be found again when it is sent.
            if let Some(seconds) = self.expiry {
                out.push(EXPIRY);
                out.extend_from_slice(&seconds.to_be_bytes());
            }
            for identifier in self.subscriptions {
                out.push(0x0B);
                length(out, usize::try_from(*identifier).unwrap_or(0));
            }
            out.extend_from_slice(self.properties);
        }
        out.extend_from_slice(self.payload);
    }

    fn body(&self, version: Version) -> usize {
        let id = if self.qos > 0 { 2 } else { 0 };
        let properties = match version {
            Version::V4 => 0,
            Version::V5 => length_size(self.properties_size()) + self.properties_size(),
        };
        2 + self.topic.len() + id + properties + self.payload.len()
    }

    fn properties_size(&self) -> usize {
        let expiry = if self.expiry.is_some() { 5 } else { 0 };
        let of = |identifier: &u32| 1 + length_size(usize::try_from(*identifier).unwrap_or(0));
        expiry + self.subscriptions.iter().map(of).sum::<usize>() + self.properties.len()
    }
}

/// The property for the seconds that are left of a message.
const EXPIRY: u8 = 0x02;

/// How many bytes [`length`] takes for `n`.
fn length_size(n: usize) -> usize {
    match n {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// A PUBLISH that [`Forward::write`] wrote, among others: what is left to fill in when it is sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Its size, whole.
    pub(crate) size: usize,
    /// Where its packet identifier is, if it has one.
    pub(crate) id: Option<usize>,
    /// Where the seconds that are left of it are, if it has any.
    pub(crate) expiry: Option<usize>,
}

/// Finds the places in the packet that `bytes` begin with; `None` when they do not begin with one.
pub(crate) fn written(version: Version, bytes: &[u8]) -> Option<Written> {
    let (body, head) = read_length(bytes.get(1..)?)?;
    let topic_at = 1 + head;
    let topic = u16::from_be_bytes([*bytes.get(topic_at)?, *bytes.get(topic_at + 1)?]);
    let mut at = topic_at + 2 + usize::from(topic);
    let id = (bytes[0] & 6 != 0).then_some(at);
    at += if id.is_some() { 2 } else { 0 };
    let mut expiry = None;
    if version == Version::V5 {
        let (properties, head) = read_length(bytes.get(at..)?)?;
        at += head;
        expiry = (properties > 0 && bytes.get(at) == Some(&EXPIRY)).then_some(at + 1);
    }
    let size = topic_at + body;
    (size <= bytes.len()).then_some(Written { size, id, expiry })
}

/// The number that [`length`] wrote, and its size.
fn read_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packets::wire::{self, Packet};

    proptest! {
        #[test]
        fn a_written_publish_is_read_as_it_was_meant_and_its_places_are_found(
            topic in "[a-z/]{1,40}", payload in proptest::collection::vec(any::<u8>(), 0..300),
            qos in 0_u8..2, retain: bool, id in 1_u16.., five: bool, tail in 0_usize..9,
            expiry in proptest::option::of(any::<u32>()), user in "[a-z]{0,200}",
        ) {
            let version = if five { Version::V5 } else { Version::V4 };
            let mut properties = vec![];
            for text in ["name", &user] {
                properties.extend(if properties.is_empty() { vec![0x26] } else { vec![] });
                properties.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
                properties.extend(text.bytes());
            }
            let (topic, payload) = (topic.as_bytes(), &payload[..]);
            let all =
                Forward { topic, payload, qos, retain, id, expiry, subscriptions: &[], properties: &properties };
            let mut bytes = vec![];
            all.write(&mut bytes, version);
            prop_assert_eq!(bytes.len(), all.size(version));
            let (_, head) = read_length(&bytes[1..]).unwrap();
            let Ok(Packet::Publish(publish)) = wire::decode(version, bytes[0], &bytes[1 + head..]) else {
                return Err(TestCaseError::fail("unreadable"));
            };
            prop_assert_eq!((publish.topic.as_bytes(), publish.payload), (topic, payload));
            prop_assert_eq!((publish.qos, publish.retain), (qos, retain));
            prop_assert_eq!(publish.expiry, expiry.filter(|_| five));
            let mut forwarded = vec![];
            wire::forwarded(publish.properties, &mut forwarded);
            prop_assert_eq!(forwarded, if five { properties.clone() } else { vec![] });
            let size = bytes.len();
            bytes.resize(size + tail, 0x30);
            let places = written(version, &bytes).unwrap();
            prop_assert_eq!((places.size, places.id.is_some()), (size, qos > 0));
            prop_assert_eq!(places.expiry.is_some(), five && expiry.is_some());
            if let Some(at) = places.id {
                prop_assert_eq!(&bytes[at..at + 2], &id.to_be_bytes());
            }
            if let (Some(at), Some(seconds)) = (places.expiry, expiry) {
                prop_assert_eq!(&bytes[at..at + 4], &seconds.to_be_bytes());
            }
        }
    }
}
