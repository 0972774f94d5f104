//! Writes the packets the gate sends, in the version of the session.
//!
//! Only bytes: which packet is due is decided in `session` and `admit`.

use fleet_schemas::limits;

use crate::gate::wire::Version;

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

/// CONNACK of an opened session: never a session present, and what is not offered (MQTT 5 §3.2.2.3). `assigned` is
/// the client id given to a client that brought none.
pub(crate) fn welcome(
    out: &mut Vec<u8>,
    version: Version,
    server_keepalive: Option<u16>,
    assigned: Option<&str>,
) {
    if version == Version::V4 {
        return out.extend_from_slice(&[0x20, 2, 0, 0]);
    }
    let mut properties = vec![
        0x11, 0, 0, 0, 0, // session expiry interval 0: clean sessions only
        0x24, 1, // maximum QoS 1
        0x25, 0, // retain not available
        0x22, 0, 0, // topic alias maximum 0
        0x29, 0, // subscription identifiers not available
        0x2A, 0,    // shared subscriptions not available
        0x27, // maximum packet size
    ];
    properties.extend_from_slice(&u32::try_from(limits::PACKET_BYTES).unwrap_or(u32::MAX).to_be_bytes());
    if let Some(seconds) = server_keepalive {
        properties.push(0x13);
        properties.extend_from_slice(&seconds.to_be_bytes());
    }
    if let Some(id) = assigned {
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

/// The size of a PUBLISH, whole, in bytes.
pub(crate) fn publish_size(version: Version, topic: &[u8], payload: &[u8], qos: u8) -> usize {
    let body = publish_body(version, topic, payload, qos);
    let head = match body {
        0..=0x7F => 2,
        0x80..=0x3FFF => 3,
        0x4000..=0x1F_FFFF => 4,
        _ => 5,
    };
    head + body
}

fn publish_body(version: Version, topic: &[u8], payload: &[u8], qos: u8) -> usize {
    let id = if qos > 0 { 2 } else { 0 };
    2 + topic.len() + id + usize::from(version == Version::V5) + payload.len()
}

/// PUBLISH, not retained, first delivery; `id` is used when `qos` is 1.
pub(crate) fn publish(out: &mut Vec<u8>, version: Version, topic: &[u8], payload: &[u8], qos: u8, id: u16) {
    out.push(0x30 | (qos << 1));
    length(out, publish_body(version, topic, payload, qos));
    out.extend_from_slice(&u16::try_from(topic.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(topic);
    if qos > 0 {
        out.extend_from_slice(&id.to_be_bytes());
    }
    if version == Version::V5 {
        out.push(0);
    }
    out.extend_from_slice(payload);
}
