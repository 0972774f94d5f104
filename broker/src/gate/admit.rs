//! Decides on a CONNECT: a session with its terms, or the refusal in the words of the client's version.
//!
//! Pure but for the question to the [`Directory`]. Sessions that exist already are none of its business.

use std::{net::SocketAddr, time::Duration};

use fleet_schemas::NodeId;

use crate::{
    gate::{
        connect::{self, Connect, ConnectError},
        encode::{self, code},
        session::{
            Effects, Terms, Will,
            tool::{self, ToolKey},
        },
        wire::{self, Unreadable, Version},
    },
    identity::{Credentials, Directory, Grants, Identity, Refusal, Verdict},
    policy::{self, Denial},
    router::{pipe::Parcel, saying::Said},
    stats::Reason,
};

/// Someone who may open a session.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) guest: Guest,
    pub(crate) terms: Terms,
    /// Told to an MQTT 5 client that asked for none or for too long a keepalive, in seconds.
    pub(crate) server_keepalive: Option<u16>,
}

/// Whose session it will be.
#[derive(Debug)]
pub(crate) enum Guest {
    Node(NodeId),
    /// The client id may be empty: the tool wants one to be given.
    Tool(ToolKey, Grants),
}

/// A CONNECT that opens nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    /// The CONNACK, empty when nothing can be said.
    pub(crate) answer: Vec<u8>,
}

impl Refused {
    /// Ends the connection with it.
    pub(crate) fn say(self, effects: &mut Effects) {
        effects.write.extend_from_slice(&self.answer);
        effects.end = Some(Some(self.reason));
    }
}

/// Longest keepalive, and the one of a client that wants none: a session whose peer vanished ends after one and a
/// half of these (a server may, MQTT 3.1.1 §3.1.2.10), or half-open sockets would stay for ever.
const KEEPALIVE_MAX: u16 = 3_600;

/// Longest client id of a tool, in bytes: a key that is logged.
const CLIENT_ID_BYTES: usize = 128;

/// Smallest packet that a client has to take, in bytes: a CONNACK, or a SUBACK for some filters.
const PACKET_MIN: u32 = 64;

/// What the connection tells beside the packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) encrypted: bool,
    /// DER.
    pub(crate) certificate: Option<&'a [u8]>,
}

/// Reads the body of a CONNECT and asks who that is.
pub(crate) fn ask(body: &[u8], origin: Origin<'_>, directory: &dyn Directory) -> Result<Verdict, Refused> {
    let connect = connect::decode(body).map_err(unreadable)?;
    if connect.extended_auth {
        return Err(refused(connect.version, Reason::NotOffered, 0x05, code::BAD_AUTH_METHOD));
    }
    let Origin { peer, encrypted, certificate } = origin;
    let Connect { client_id, user, password, .. } = connect;
    Ok(directory.authenticate(&Credentials { client_id, user, password, certificate, encrypted, peer }))
}

/// Judges the body of a CONNECT whose sender is known; `full` says whether there is no room for a session of this
/// guest.
pub(crate) fn admit(
    body: &[u8],
    identity: Result<Identity, Refusal>,
    full: impl Fn(&Guest) -> bool,
) -> Result<Admitted, Refused> {
    let connect = connect::decode(body).map_err(unreadable)?;
    let version = connect.version;
    let identity = identity.map_err(|refusal| turned_away(version, refusal))?;
    let guest = guest(identity, &connect).map_err(|refusal| turned_away(version, refusal))?;
    if full(&guest) {
        return Err(turned_away(version, Refusal::Busy));
    }
    if connect.packet_max < PACKET_MIN {
        return Err(refused(version, Reason::TooLarge, 0, code::TOO_LARGE));
    }
    // Not to be remembered, and to believe otherwise, would be worse than not to be let in. MQTT 5 has words for it.
    if version == Version::V4 && connect.keeps && matches!(guest, Guest::Tool(..)) {
        return Err(refused(version, Reason::Persistent, 0x05, code::NOT_AUTHORIZED));
    }
    let will = will(&guest, &connect)?;
    let asked = connect.keepalive;
    let keepalive = if asked == 0 { KEEPALIVE_MAX } else { asked.min(KEEPALIVE_MAX) };
    // A 3.1.1 client cannot be told another keepalive and keeps to its own.
    let silence = if version == Version::V4 { asked.max(keepalive) } else { keepalive };
    Ok(Admitted {
        guest,
        terms: Terms {
            version,
            keepalive: Duration::from_secs(u64::from(silence)),
            will,
            keeps: connect.keeps,
            receive_max: connect.receive_max,
            packet_max: connect.packet_max,
        },
        server_keepalive: (asked != keepalive).then_some(keepalive),
    })
}

fn guest(identity: Identity, connect: &Connect<'_>) -> Result<Guest, Refusal> {
    match identity {
        Identity::Node(node) if connect.client_id == node.as_str() => Ok(Guest::Node(node)),
        Identity::Node(_) => Err(Refusal::ClientId),
        Identity::Tool { grants, .. } if grants == Grants::default() => Err(Refusal::NotAuthorized),
        Identity::Tool { name, grants } => {
            let id = connect.client_id;
            // MQTT 3.1.1 §3.1.3.1: whoever wants to be remembered has to have a name.
            let nameless = id.is_empty() && connect.version == Version::V4 && !connect.clean;
            if nameless || id.len() > CLIENT_ID_BYTES {
                return Err(Refusal::ClientId);
            }
            Ok(Guest::Tool(ToolKey { user: name, client_id: id.to_owned() }, grants))
        }
    }
}

fn will(guest: &Guest, connect: &Connect<'_>) -> Result<Option<Will>, Refused> {
    let Some(will) = &connect.will else { return Ok(None) };
    let judged = match guest {
        Guest::Node(node) => policy::node_publish(node, will.topic, will.qos, will.retain)
            .map(|topic| Will::Node(Parcel::new(topic, will.topic, will.payload, will.qos))),
        Guest::Tool(key, grants) => {
            let mut properties = Vec::new();
            wire::forwarded(will.properties, &mut properties);
            let said = Said {
                topic: will.topic,
                payload: will.payload,
                qos: will.qos,
                retain: will.retain,
                expiry: will.expiry,
                properties: &properties,
                sender: Some((&key.user, &key.client_id)),
            };
            let identity = Identity::Tool { name: key.user.clone(), grants: grants.clone() };
            tool::say(&identity, &said).map(Will::Tool)
        }
    };
    match judged {
        Ok(will) => Ok(Some(will)),
        Err(denial) => {
            let code = match denial {
                Denial::Qos => code::QOS,
                Denial::Retain => code::RETAIN,
                Denial::Form => code::TOPIC_NAME,
                Denial::NotYours | Denial::Shared => code::NOT_AUTHORIZED,
            };
            Err(refused(connect.version, Reason::WillDenied, 0x05, code))
        }
    }
}

fn unreadable(error: ConnectError) -> Refused {
    match error {
        ConnectError::Mute => Refused { reason: Reason::Malformed, answer: vec![] },
        // The client's version is unknown: the 3.1.1 form is what they all understand (MQTT 5 §3.1.2.2).
        ConnectError::Version => refused(Version::V4, Reason::Version, 0x01, 0x01),
        ConnectError::Unreadable(Unreadable::Malformed) => {
            refused(Version::V5, Reason::Malformed, 0, code::MALFORMED)
        }
        ConnectError::Unreadable(Unreadable::Protocol) => {
            refused(Version::V5, Reason::Protocol, 0, code::PROTOCOL)
        }
    }
}

/// The node's sessions took each other over too often: as if there were no room for this one.
pub(crate) fn held_off(version: Version) -> Refused {
    Refused { reason: Reason::TakeoverBackoff, ..turned_away(version, Refusal::Busy) }
}

fn turned_away(version: Version, refusal: Refusal) -> Refused {
    refused(version, Reason::from(refusal), refusal.v4(), refusal.v5())
}

fn refused(version: Version, reason: Reason, v4: u8, v5: u8) -> Refused {
    let mut answer = vec![];
    encode::refuse(&mut answer, version, if version == Version::V4 { v4 } else { v5 });
    Refused { reason, answer }
}
