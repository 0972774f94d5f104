//! Identifiers, parsed once at the edge of the program; the cores see only valid ones.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("the {0} is empty")]
    Empty(&'static str),
    /// More bytes than the limit.
    #[error("the {what} has {len} bytes, at most {max} are allowed")]
    Long {
        /// Which identifier.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A character that is not allowed, with its position in bytes.
    #[error("the {what} has {found:?} at byte {at}; allowed are {allowed}")]
    Character {
        /// Which identifier.
        what: &'static str,
        /// The offending character.
        found: char,
        /// Its position in bytes.
        at: usize,
        /// What would be allowed, in words.
        allowed: &'static str,
    },
    /// `hub` names the hub's own topics.
    #[error("`hub` is reserved for the hub's own topics; choose another node id")]
    Reserved,
    /// Wrong number of bytes or not hexadecimal.
    #[error("the {what} is not {bytes} bytes in hexadecimal")]
    Hex {
        /// Which identifier.
        what: &'static str,
        /// How many bytes it has.
        bytes: usize,
    },
}

/// A node's name for ever: `[a-z0-9][a-z0-9._-]{0,62}`, never `hub`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Checks the grammar above.
    ///
    /// # Errors
    /// [`IdError`] says what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        const WHAT: &str = "node id";
        length(text, WHAT, limits::NODE_ID_BYTES)?;
        for (at, found) in text.char_indices() {
            let inner = at > 0 && matches!(found, '.' | '_' | '-');
            if !(found.is_ascii_lowercase() || found.is_ascii_digit() || inner) {
                let allowed = "a-z and 0-9, then also . _ -";
                return Err(IdError::Character { what: WHAT, found, at, allowed });
            }
        }
        if text == "hub" {
            return Err(IdError::Reserved);
        }
        Ok(Self(text.into()))
    }

    /// The hub itself, where an event says whom it is about. Never a node's: [`NodeId::parse`] refuses it.
    #[must_use]
    pub fn hub() -> Self {
        Self("hub".into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for NodeId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

fn length(text: &str, what: &'static str, max: usize) -> Result<(), IdError> {
    match text.len() {
        0 => Err(IdError::Empty(what)),
        len if len > max => Err(IdError::Long { what, len, max }),
        _ => Ok(()),
    }
}

fn printable(text: &str, what: &'static str) -> Result<(), IdError> {
    match text.char_indices().find(|(_, c)| c.is_control()) {
        None => Ok(()),
        Some((at, found)) => Err(IdError::Character { what, found, at, allowed: "printable characters" }),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $may_be_empty:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks length and characters.
            ///
            /// # Errors
            /// [`IdError`] says what is wrong and where.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                if !($may_be_empty && text.is_empty()) {
                    length(text, $what, limits::LABEL_BYTES)?;
                }
                printable(text, $what)?;
                Ok(Self(text.into()))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// A device behind a node; empty for the node itself. At most 63 bytes, no control characters.
    DeviceId, "device id", true
);
text_id!(
    /// The name of a metric, such as `cpu_percent`. 1 to 63 bytes, no control characters.
    MetricName, "metric name", false
);

impl DeviceId {
    /// The node itself.
    #[must_use]
    pub fn node() -> Self {
        Self("".into())
    }

    /// Whether this is the node itself.
    #[must_use]
    pub fn is_node(&self) -> bool {
        self.0.is_empty()
    }
}

macro_rules! text_traits {
    ($($name:ident)*) => { $(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }
    )* };
}
text_traits!(NodeId DeviceId MetricName);

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let wrong = IdError::Hex { what: $what, bytes: $bytes };
                if text.len() != 2 * $bytes || !text.is_ascii() {
                    return Err(wrong);
                }
                let mut bytes = [0; $bytes];
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let pair = std::str::from_utf8(pair).map_err(|_| wrong.clone())?;
                    *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong.clone())?;
                }
                Ok(Self(bytes))
            }
        }
        byte_id_traits!($name, $bytes);
    };
}

/// What all ids of bytes share: a byte string in CBOR, text in formats for people.
macro_rules! byte_id_traits {
    ($name:ident, $bytes:literal) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                    text.parse().map_err(de::Error::custom)
                } else {
                    let bytes = serde_bytes::ByteArray::<$bytes>::deserialize(deserializer)?;
                    Ok(Self(bytes.into_array()))
                }
            }
        }
    };
}

/// A command: a UUIDv7 (RFC 9562 §5.7), so that ids sort by the time they were made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub [u8; 16]);

/// Where the hyphens of a UUID stand, in bytes of the text.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let hyphen = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{hyphen}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for CommandId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = IdError::Hex { what: "command id", bytes: 16 };
        let placed = |(at, byte): (usize, u8)| (byte == b'-') == HYPHENS.contains(&at);
        if text.len() != 36 || !text.bytes().enumerate().all(placed) {
            return Err(wrong);
        }
        let plain: String = text.chars().filter(|c| *c != '-').collect();
        plain.parse().map(|StreamId(bytes)| Self(bytes)).map_err(|_| wrong)
    }
}
byte_id_traits!(CommandId, 16);

byte_id!(
    /// One opening of one outbox: 16 random bytes. Numbers of batches and records count within it. One that begins with
    /// `unseq-1:` holds records that came [without a sequence](StreamId::unsequenced).
    StreamId, 16, "stream id"
);
/// Begins the ids of streams without a sequence of their own.
const UNSEQUENCED: [u8; 8] = *b"unseq-1:";

impl StreamId {
    /// A stream of records that came without a sequence (by HTTP, from a board that numbers nothing): whoever received
    /// them numbered and sealed them. What such a sender repeats is another record, and what it lost nobody knows.
    #[must_use]
    pub fn unsequenced(seed: [u8; 8]) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&UNSEQUENCED);
        id[8..].copy_from_slice(&seed);
        Self(id)
    }

    /// Whether its records came without a sequence.
    #[must_use]
    pub fn is_unsequenced(self) -> bool {
        self.0.starts_with(&UNSEQUENCED)
    }
}

byte_id!(
    /// One MQTT session of a node: 8 random bytes, in birth, death and heartbeat.
    SessionId, 8, "session id"
);
byte_id!(
    /// One life of a hub's store: 16 random bytes, made with the store and anew by a restore.
    StoreId, 16, "store id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_without_a_sequence_are_told_by_how_they_begin() {
        let stream = StreamId::unsequenced([7; 8]);
        assert_eq!(stream.to_string(), "756e7365712d313a0707070707070707");
        assert!(stream.is_unsequenced() && !StreamId([7; 16]).is_unsequenced());
    }

    #[test]
    fn node_ids_keep_to_the_grammar() {
        for good in ["a", "0", "dc-rack-a1", "edge.site_3-b", &"a".repeat(63)] {
            assert!(NodeId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a/b", "a+", "a#", "ä", "a b", "hub", &"a".repeat(64)] {
            assert!(NodeId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn command_ids_are_uuids() {
        let text = "0194a3f0-5b6c-7def-8123-456789abcdef";
        let id: CommandId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        for bad in [
            "",
            "0194a3f05b6c7def8123456789abcdef",
            "0194a3f0-5b6c-7def-8123-456789abcde",
            &text.replace('7', "x"),
        ] {
            assert!(bad.parse::<CommandId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn byte_ids_round_trip_as_text() {
        let id = SessionId([0, 1, 2, 3, 0xfc, 0xfd, 0xfe, 0xff]);
        assert_eq!(id.to_string(), "00010203fcfdfeff");
        assert_eq!(id.to_string().parse::<SessionId>(), Ok(id));
        assert!("00".parse::<SessionId>().is_err());
        assert!("zz010203fcfdfeff".parse::<SessionId>().is_err());
        assert!("é0010203fcfdfef".parse::<SessionId>().is_err());
    }
}
