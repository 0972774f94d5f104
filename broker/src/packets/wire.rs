//! Reads the packets a client may send, MQTT 3.1.1 and 5, without copying. CONNECT has its own room.
//!
//! Every function is total: any bytes give a packet or an [`Unreadable`]. Nothing here judges rights.

use std::str;

/// The protocol of a session, told apart by CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// MQTT 3.1.1.
    V4,
    /// MQTT 5.
    V5,
}

/// Why bytes are no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Malformed Packet (MQTT 5 §1.2).
    Malformed,
    /// Protocol Error (MQTT 5 §1.2).
    Protocol,
}

/// A packet of a client after CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Connect,
    Publish(Publish<'a>),
    PubAck {
        id: u16,
    },
    Subscribe {
        id: u16,
        filters: Vec<Ask<'a>>,
        /// The subscription identifier (MQTT 5 §3.8.2.1.2).
        identifier: Option<u32>,
    },
    Unsubscribe {
        id: u16,
        filters: Vec<&'a str>,
    },
    Ping,
    Disconnect {
        reason: u8,
        /// It asks for its session to be kept.
        keeps: bool,
    },
    /// Packets that a client sends to a server only after something this server never does.
    Unexpected,
}

/// A PUBLISH.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) id: u16,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// It uses a topic alias, which is not offered.
    pub(crate) alias: bool,
    /// Seconds for which it is worth delivering (MQTT 5 §3.3.2.3.3).
    pub(crate) expiry: Option<u32>,
    /// All its properties, as they came.
    pub(crate) properties: &'a [u8],
}

/// One filter of a SUBSCRIBE with its options (MQTT 5 §3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask<'a> {
    pub(crate) filter: &'a str,
    pub(crate) qos: u8,
    /// What the session itself says it does not want to hear.
    pub(crate) no_local: bool,
    /// The retain flag is to stay as it was published.
    pub(crate) as_published: bool,
    pub(crate) replay: Replay,
}

/// When a subscription is answered with retained messages: the retain handling of MQTT 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replay {
    Always,
    /// Only where there was no such subscription.
    New,
    Never,
}

/// Most filters in one SUBSCRIBE or UNSUBSCRIBE. A node has five to choose from, and Home Assistant asks for up to
/// 500 at once.
const FILTERS: usize = 512;

/// Reads one packet.
pub(crate) fn decode(version: Version, first: u8, body: &[u8]) -> Result<Packet<'_>, Unreadable> {
    let mut take = Take(body);
    let packet = match first >> 4 {
        1 => return Ok(Packet::Connect),
        3 => return publish(version, first, take).map(Packet::Publish),
        4 => {
            let id = take.id()?;
            if version == Version::V5 && !take.0.is_empty() {
                take.u8()?;
                if !take.0.is_empty() {
                    properties(&mut take, ACK, |_, _| ())?;
                }
            }
            Packet::PubAck { id }
        }
        8 => return subscribe(version, take),
        10 => return unsubscribe(version, take),
        12 => Packet::Ping,
        14 => {
            let (mut reason, mut keeps) = (0, false);
            if version == Version::V5 && !take.0.is_empty() {
                reason = take.u8()?;
                if !take.0.is_empty() {
                    properties(&mut take, DISCONNECT, |id, number| keeps |= id == 0x11 && number > 0)?;
                }
            }
            Packet::Disconnect { reason, keeps }
        }
        _ => return Ok(Packet::Unexpected),
    };
    take.end()?;
    Ok(packet)
}

fn publish(version: Version, first: u8, mut take: Take<'_>) -> Result<Publish<'_>, Unreadable> {
    let qos = (first >> 1) & 3;
    if qos == 3 || (qos == 0 && first & 8 != 0) {
        return Err(Unreadable::Malformed);
    }
    let topic = take.text()?;
    if topic.contains(['+', '#']) {
        return Err(Unreadable::Malformed);
    }
    let id = if qos > 0 { take.id()? } else { 0 };
    let (mut alias, mut expiry, mut identified) = (false, None, false);
    let mut raw: &[u8] = &[];
    if version == Version::V5 {
        let before = take.0;
        properties(&mut take, PUBLISH, |id, number| match id {
            0x02 => expiry = Some(number),
            0x0B => identified = true,
            0x23 => alias = true,
            _ => {}
        })?;
        raw = &before[..before.len() - take.0.len()];
    }
    // Only a server says whose subscription it is (MQTT 5 §3.3.4), and only an alias stands for a topic.
    if identified || (topic.is_empty() && !alias) {
        return Err(Unreadable::Protocol);
    }
    Ok(Publish { topic, payload: take.0, id, qos, retain: first & 1 != 0, alias, expiry, properties: raw })
}

fn subscribe(version: Version, mut take: Take<'_>) -> Result<Packet<'_>, Unreadable> {
    let id = take.id()?;
    let mut identifier = None;
    if version == Version::V5 {
        properties(&mut take, SUBSCRIBE, |_, number| identifier = Some(number))?;
        if identifier == Some(0) {
            return Err(Unreadable::Protocol);
        }
    }
    let mut filters = Vec::new();
    while !take.0.is_empty() {
        let filter = take.text()?;
        let options = take.u8()?;
        filters.push(ask(version, filter, options)?);
        if filters.len() > FILTERS {
            return Err(Unreadable::Protocol);
        }
    }
    if filters.is_empty() {
        Err(Unreadable::Protocol)
    } else {
        Ok(Packet::Subscribe { id, filters, identifier })
    }
}

fn ask(version: Version, filter: &str, options: u8) -> Result<Ask<'_>, Unreadable> {
    let reserved = if version == Version::V4 { 0xFC } else { 0xC0 };
    if options & reserved != 0 {
        return Err(Unreadable::Malformed);
    }
    let no_local = options & 4 != 0;
    let replay = match (options >> 4) & 3 {
        0 => Replay::Always,
        1 => Replay::New,
        2 => Replay::Never,
        _ => return Err(Unreadable::Protocol),
    };
    // A group's members do not hear each other anyway (MQTT 5 §3.8.3.1).
    let shared = no_local && filter.starts_with("$share/");
    if options & 3 == 3 || filter.is_empty() || shared {
        return Err(Unreadable::Protocol);
    }
    Ok(Ask { filter, qos: options & 3, no_local, as_published: options & 8 != 0, replay })
}

fn unsubscribe(version: Version, mut take: Take<'_>) -> Result<Packet<'_>, Unreadable> {
    let id = take.id()?;
    if version == Version::V5 {
        properties(&mut take, USER, |_, _| ())?;
    }
    let mut filters = Vec::new();
    while !take.0.is_empty() {
        filters.push(take.text()?);
        if filters.len() > FILTERS {
            return Err(Unreadable::Protocol);
        }
    }
    if filters.is_empty() { Err(Unreadable::Protocol) } else { Ok(Packet::Unsubscribe { id, filters }) }
}

/// A cursor over a packet's body.
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Unreadable::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Unreadable> {
        Ok(self.bytes(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Unreadable> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Unreadable> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A packet identifier, which is never 0 (MQTT 5 §2.2.1).
    fn id(&mut self) -> Result<u16, Unreadable> {
        match self.u16()? {
            0 => Err(Unreadable::Protocol),
            id => Ok(id),
        }
    }

    /// A variable byte integer (MQTT 5 §1.5.5).
    fn varint(&mut self) -> Result<usize, Unreadable> {
        let mut value = 0;
        for at in 0..4 {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7F) << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Unreadable::Malformed)
    }

    /// Length-prefixed binary data.
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], Unreadable> {
        let n = self.u16()?;
        self.bytes(usize::from(n))
    }

    /// A UTF-8 string without U+0000 (MQTT 5 §1.5.4).
    pub(crate) fn text(&mut self) -> Result<&'a str, Unreadable> {
        let bytes = self.binary()?;
        if bytes.contains(&0) {
            return Err(Unreadable::Malformed);
        }
        str::from_utf8(bytes).map_err(|_| Unreadable::Malformed)
    }

    pub(crate) fn end(&self) -> Result<(), Unreadable> {
        if self.0.is_empty() { Ok(()) } else { Err(Unreadable::Malformed) }
    }
}

/// The properties a packet may carry, one bit per identifier (MQTT 5 §2.2.2.2).
pub(crate) type Allowed = u64;

const fn allowed(ids: &[u8]) -> Allowed {
    let mut bits = 1 << 0x26;
    let mut at = 0;
    while at < ids.len() {
        bits |= 1 << ids[at];
        at += 1;
    }
    bits
}

const USER: Allowed = allowed(&[]);
const ACK: Allowed = allowed(&[0x1F]);
const DISCONNECT: Allowed = allowed(&[0x11, 0x1F, 0x1C]);
const PUBLISH: Allowed = allowed(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23]);
const SUBSCRIBE: Allowed = allowed(&[0x0B]);
pub(crate) const CONNECT: Allowed = allowed(&[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x27]);
pub(crate) const WILL: Allowed = allowed(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x18]);

/// Walks a packet's properties; `see` gets each identifier with its value where that is a number.
pub(crate) fn properties(
    take: &mut Take<'_>,
    allowed: Allowed,
    mut see: impl FnMut(u8, u32),
) -> Result<(), Unreadable> {
    let length = take.varint()?;
    let mut take = Take(take.bytes(length)?);
    let mut seen: u64 = 0;
    while !take.0.is_empty() {
        let (id, number) = property(&mut take)?;
        if allowed & (1 << id) == 0 {
            return Err(Unreadable::Malformed);
        }
        if id != 0x26 && seen & (1 << id) != 0 {
            return Err(Unreadable::Protocol);
        }
        seen |= 1 << id;
        see(id, number);
    }
    Ok(())
}

/// Reads one property.
fn property(take: &mut Take<'_>) -> Result<(u8, u32), Unreadable> {
    let id = take.u8()?;
    let mut number = 0;
    match id {
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2A => {
            number = u32::from(take.u8()?);
            if number > 1 {
                return Err(Unreadable::Protocol);
            }
        }
        0x13 | 0x21..=0x23 => number = u32::from(take.u16()?),
        0x02 | 0x11 | 0x18 | 0x27 => number = take.u32()?,
        0x0B => number = u32::try_from(take.varint()?).map_err(|_| Unreadable::Malformed)?,
        0x03 | 0x12 | 0x15 | 0x1A | 0x1C | 0x1F => drop(take.text()?),
        // A response topic is a topic name (MQTT 5 §3.3.2.3.5).
        0x08 => {
            if take.text()?.contains(['+', '#']) {
                return Err(Unreadable::Protocol);
            }
        }
        0x09 | 0x16 => drop(take.binary()?),
        0x26 => {
            take.text()?;
            take.text()?;
        }
        _ => return Err(Unreadable::Malformed),
    }
    Ok((id, number))
}

/// Appends those of a PUBLISH's or a will's properties that subscribers are given as they are (MQTT 5 §3.3.2.3): all
/// but expiry, alias and will delay. `raw` was read by [`properties`].
pub(crate) fn forwarded(raw: &[u8], out: &mut Vec<u8>) {
    let mut take = Take(raw);
    if take.varint().is_err() {
        return;
    }
    while !take.0.is_empty() {
        let before = take.0;
        let Ok((id, _)) = property(&mut take) else { return };
        if matches!(id, 0x01 | 0x03 | 0x08 | 0x09 | 0x26) {
            out.extend_from_slice(&before[..before.len() - take.0.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packet_id_0_and_qos_3_are_refused() {
        let body = [0, 1, b't', 0, 0];
        assert_eq!(decode(Version::V4, 0x32, &body), Err(Unreadable::Protocol));
        assert_eq!(decode(Version::V4, 0x36, &body), Err(Unreadable::Malformed));
        assert_eq!(decode(Version::V4, 0x82, &[0, 0, 0, 1, b't', 0]), Err(Unreadable::Protocol));
        assert_eq!(decode(Version::V4, 0x40, &[0, 0]), Err(Unreadable::Protocol));
    }

    #[test]
    fn options_of_a_subscription_are_read_and_reserved_ones_refused() {
        let asked = |options| ask(Version::V5, "t", options);
        let all = Ask { filter: "t", qos: 1, no_local: true, as_published: true, replay: Replay::Never };
        assert_eq!(asked(0x2D), Ok(all));
        assert_eq!(asked(0x11).map(|ask| ask.replay), Ok(Replay::New));
        assert_eq!(asked(0x30), Err(Unreadable::Protocol));
        assert_eq!(asked(0x03), Err(Unreadable::Protocol));
        assert_eq!(asked(0x40), Err(Unreadable::Malformed));
        assert_eq!(ask(Version::V5, "$share/g/t", 4), Err(Unreadable::Protocol));
        assert_eq!(decode(Version::V4, 0x82, &[0, 1, 0, 1, b't', 4]), Err(Unreadable::Malformed));
    }

    #[test]
    fn of_the_properties_of_a_publish_subscribers_get_what_is_theirs_in_order() {
        let all = [0x26, 0, 1, b'a', 0, 1, b'b', 2, 0, 0, 0, 9, 0x01, 1, 0x23, 0, 4, 0x09, 0, 1, 7];
        let body = [&[0, 1, b't', 21][..], &all].concat();
        let Ok(Packet::Publish(publish)) = decode(Version::V5, 0x30, &body) else { panic!("{body:x?}") };
        assert_eq!((publish.expiry, publish.alias, publish.payload), (Some(9), true, &[][..]));
        let mut theirs = vec![];
        forwarded(publish.properties, &mut theirs);
        assert_eq!(theirs, [0x26, 0, 1, b'a', 0, 1, b'b', 0x01, 1, 0x09, 0, 1, 7]);
    }

    #[test]
    fn foreign_and_repeated_properties_are_refused() {
        let with = |properties: &[u8]| {
            let mut body = vec![0, 1, b't', u8::try_from(properties.len()).unwrap()];
            body.extend_from_slice(properties);
            decode(Version::V5, 0x30, &body).map(|_| ())
        };
        assert_eq!(with(&[0x01, 1]), Ok(()));
        assert_eq!(with(&[0x01, 2]), Err(Unreadable::Protocol));
        assert_eq!(with(&[0x08, 0, 1, b'#']), Err(Unreadable::Protocol));
        assert_eq!(with(&[0x0B, 1]), Err(Unreadable::Protocol));
        assert_eq!(with(&[0x01, 1, 0x01, 1]), Err(Unreadable::Protocol));
        assert_eq!(with(&[0x21, 0, 1]), Err(Unreadable::Malformed));
        assert_eq!(with(&[0x7F]), Err(Unreadable::Malformed));
        assert_eq!(with(&[0x01]), Err(Unreadable::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_packet_or_an_error(first: u8, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(Version::V4, first, &body);
            let _ = decode(Version::V5, first, &body);
            let _ = crate::packets::connect::decode(&body);
        }
    }
}
