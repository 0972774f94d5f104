//! JSON as signed metadata has it: read strictly, and written in the one form that signatures are made over (OLPC
//! canonical JSON, as TUF 1.0 §4.2 asks for).
//!
//! A map that has a key twice, a number that is no integer, and what is nested too deeply are refused: two readers
//! must never see two things in the same bytes.

use std::{collections::BTreeMap, fmt};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Deepest nesting; metadata of roles needs six, and what is added to a target a few more.
const DEPTH: usize = 16;

/// A map by its keys, in the order of their bytes.
pub(super) type Map = BTreeMap<String, Json>;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(i128),
    Text(String),
    List(Vec<Self>),
    Map(Map),
}

/// Why bytes are no metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Wrong(pub String);

pub(super) fn wrong(why: impl Into<String>) -> Wrong {
    Wrong(why.into())
}

impl Json {
    /// Reads all of the bytes.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Wrong> {
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let value = Depth(DEPTH).deserialize(&mut reader).map_err(|error| wrong(error.to_string()))?;
        reader.end().map_err(|error| wrong(error.to_string()))?;
        Ok(value)
    }

    /// The bytes that are signed.
    pub(super) fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend(b"null"),
            Self::Bool(true) => out.extend(b"true"),
            Self::Bool(false) => out.extend(b"false"),
            Self::Number(number) => out.extend(number.to_string().bytes()),
            Self::Text(text) => write_text(text, out),
            Self::List(items) => {
                out.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            Self::Map(map) => {
                out.push(b'{');
                for (at, (key, value)) in map.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    write_text(key, out);
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
        }
    }

    /// The same for `serde`, to be read into a type.
    pub(super) fn to_value(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(truth) => (*truth).into(),
            Self::Number(number) => match (i64::try_from(*number), u64::try_from(*number)) {
                (Ok(number), _) => number.into(),
                (Err(_), Ok(number)) => number.into(),
                (Err(_), Err(_)) => serde_json::Value::Null,
            },
            Self::Text(text) => text.as_str().into(),
            Self::List(items) => items.iter().map(Self::to_value).collect(),
            Self::Map(map) => map.iter().map(|(key, value)| (key.clone(), value.to_value())).collect(),
        }
    }

    pub(super) fn map(&self) -> Result<&Map, Wrong> {
        match self {
            Self::Map(map) => Ok(map),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::List(_) => {
                Err(wrong("there is no object where one belongs"))
            }
        }
    }

    pub(super) fn text(&self) -> Result<&str, Wrong> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Map(_) => {
                Err(wrong("there is no text where one belongs"))
            }
        }
    }

    pub(super) fn list(&self) -> Result<&[Self], Wrong> {
        match self {
            Self::List(items) => Ok(items),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::Map(_) => {
                Err(wrong("there is no list where one belongs"))
            }
        }
    }

    /// A number that is not negative.
    pub(super) fn count(&self) -> Result<u64, Wrong> {
        match self {
            Self::Number(number) => u64::try_from(*number).map_err(|_| wrong("a number is below zero")),
            Self::Null | Self::Bool(_) | Self::Text(_) | Self::List(_) | Self::Map(_) => {
                Err(wrong("there is no number where one belongs"))
            }
        }
    }

    pub(super) fn truth(&self) -> Result<bool, Wrong> {
        match self {
            Self::Bool(truth) => Ok(*truth),
            Self::Null | Self::Number(_) | Self::Text(_) | Self::List(_) | Self::Map(_) => {
                Err(wrong("there is neither true nor false where one belongs"))
            }
        }
    }
}

/// What stands under a key.
pub(super) fn field<'a>(map: &'a Map, key: &str) -> Result<&'a Json, Wrong> {
    map.get(key).ok_or_else(|| wrong(format!("{key:?} is missing")))
}

/// Only quotes and backslashes are escaped.
fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// Reads a value that may be nested so deeply.
#[derive(Clone, Copy)]
struct Depth(usize);

impl Depth {
    fn below<E: Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom("it is nested too deeply"))
    }
}

impl<'de> DeserializeSeed<'de> for Depth {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Depth {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("metadata")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Json, E> {
        Ok(Json::Bool(truth))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Json, E> {
        Err(E::custom("a number is no integer"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let below = self.below()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(below)? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let below = self.below()?;
        let mut map = Map::new();
        while let Some(Key(key)) = entries.next_key()? {
            let value = entries.next_value_seed(below)?;
            if map.insert(key, value).is_some() {
                return Err(A::Error::custom("a key stands there twice"));
            }
        }
        Ok(Json::Map(map))
    }
}

struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_one_form() {
        let text =
            r#" {"b": [1, -2, 18446744073709551615], "a": {"x\n\u00e4\"\\": null}, "a!": true, "A": ""} "#;
        let json = Json::read(text.as_bytes()).unwrap();
        let canonical = json.canonical();
        let wanted =
            "{\"A\":\"\",\"a\":{\"x\n\u{e4}\\\"\\\\\":null},\"a!\":true,\"b\":[1,-2,18446744073709551615]}";
        assert_eq!(String::from_utf8(canonical).unwrap(), wanted);
    }

    #[test]
    fn what_two_readers_may_see_differently_is_refused() {
        let deep = format!("{}1{}", "[".repeat(DEPTH + 1), "]".repeat(DEPTH + 1));
        let far = "[".repeat(100_000);
        for bad in [
            "",
            "{",
            "{} {}",
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            "1.0",
            "1e2",
            "-0",
            "18446744073709551616",
            "NaN",
            "\"\\ud800\"",
            &deep,
            &far,
        ] {
            assert!(Json::read(bad.as_bytes()).is_err(), "{bad:.40}");
        }
        assert!(Json::read(b"\"\xff\"").is_err());
        let fits = format!("{}1{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
        assert!(Json::read(fits.as_bytes()).is_ok());
    }
}
