//! Reads CONNECT (MQTT 3.1.1 §3.1, MQTT 5 §3.1), which tells the protocol version of all that follows.
//!
//! Judges form only; who it is and what the will may be is decided in `admit`.

use crate::packets::wire::{self, Take, Unreadable, Version};

/// A CONNECT packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Connect<'a> {
    pub(crate) version: Version,
    pub(crate) client_id: &'a str,
    pub(crate) user: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
    /// Whether it wants to start afresh: what it always gets.
    pub(crate) clean: bool,
    /// In seconds; 0 for none.
    pub(crate) keepalive: u16,
    pub(crate) will: Option<Will<'a>>,
    /// Most QoS 1 messages the client takes unacknowledged.
    pub(crate) receive_max: u16,
    /// Largest packet the client takes, in bytes.
    pub(crate) packet_max: u32,
    /// It asks for its session to be kept after the connection.
    pub(crate) keeps: bool,
    /// It asks for an authentication method, which is not offered.
    pub(crate) extended_auth: bool,
}

/// What the client wants said when it is gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Will<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Seconds for which it is worth delivering.
    pub(crate) expiry: Option<u32>,
    /// All its properties, as they came.
    pub(crate) properties: &'a [u8],
}

/// Why a CONNECT cannot be read, and how to say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectError {
    /// Not MQTT, or not readable as 3.1.1: nothing can be answered.
    Mute,
    /// MQTT of another version.
    Version,
    /// MQTT 5, unreadable.
    Unreadable(Unreadable),
}

/// Reads the body of a CONNECT.
pub(crate) fn decode(body: &[u8]) -> Result<Connect<'_>, ConnectError> {
    let mut take = Take(body);
    let name = take.binary().map_err(|_| ConnectError::Mute)?;
    let level = take.u8().map_err(|_| ConnectError::Mute)?;
    let version = match (name, level) {
        (b"MQTT", 4) => Version::V4,
        (b"MQTT", 5) => Version::V5,
        (b"MQTT" | b"MQIsdp", _) => return Err(ConnectError::Version),
        _ => return Err(ConnectError::Mute),
    };
    decode_rest(version, take).map_err(|unreadable| match version {
        Version::V4 => ConnectError::Mute,
        Version::V5 => ConnectError::Unreadable(unreadable),
    })
}

fn decode_rest(version: Version, mut take: Take<'_>) -> Result<Connect<'_>, Unreadable> {
    let flags = take.u8()?;
    let keepalive = take.u16()?;
    let (mut receive_max, mut packet_max, mut extended_auth) = (u16::MAX, u32::MAX, false);
    // A 3.1.1 client that does not start afresh wants to be remembered (§3.1.2.4).
    let mut keeps = version == Version::V4 && flags & 2 == 0;
    if version == Version::V5 {
        let (mut zero, mut data) = (false, false);
        wire::properties(&mut take, wire::CONNECT, |id, number| match id {
            0x21 => {
                zero |= number == 0;
                receive_max = u16::try_from(number).unwrap_or(u16::MAX);
            }
            0x27 => {
                zero |= number == 0;
                packet_max = number;
            }
            0x11 => keeps = number > 0,
            0x15 => extended_auth = true,
            0x16 => data = true,
            _ => {}
        })?;
        if zero || (data && !extended_auth) {
            return Err(Unreadable::Protocol);
        }
    }
    let (will_flag, will_qos, will_retain) = (flags & 4 != 0, (flags >> 3) & 3, flags & 0x20 != 0);
    let (password_flag, user_flag) = (flags & 0x40 != 0, flags & 0x80 != 0);
    let lone_will_bits = !will_flag && (will_qos != 0 || will_retain);
    let lone_password = version == Version::V4 && password_flag && !user_flag;
    if flags & 1 != 0 || will_qos == 3 || lone_will_bits || lone_password {
        return Err(Unreadable::Malformed);
    }
    let client_id = take.text()?;
    let mut will = None;
    if will_flag {
        let (mut expiry, before) = (None, take.0);
        if version == Version::V5 {
            wire::properties(&mut take, wire::WILL, |id, number| {
                if id == 0x02 {
                    expiry = Some(number);
                }
            })?;
        }
        let properties = &before[..before.len() - take.0.len()];
        let (topic, payload) = (take.text()?, take.binary()?);
        will = Some(Will { topic, payload, qos: will_qos, retain: will_retain, expiry, properties });
    }
    let user = if user_flag { Some(take.text()?) } else { None };
    let password = if password_flag { Some(take.binary()?) } else { None };
    take.end()?;
    Ok(Connect {
        version,
        client_id,
        user,
        password,
        clean: flags & 2 != 0,
        keepalive,
        will,
        receive_max,
        packet_max,
        keeps,
        extended_auth,
    })
}
