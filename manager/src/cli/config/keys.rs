//! `KEY.PATH=VALUE` as people write it. Pure.

use serde_json::{Map, Value};

/// Reads `key.path=value`: the value as JSON, or else as text.
///
/// # Errors
/// A sentence that says how it is written.
pub(super) fn setting(text: &str) -> Result<(Vec<String>, Value), String> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(format!("{text:?} is no KEY=VALUE, such as node.heartbeat_s=10 or upload.every_s=30"));
    };
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((path(key)?, value))
}

/// Reads `key.path`, or a JSON pointer such as `/key/path`; a dot inside of a key is written `\.`.
///
/// # Errors
/// A sentence that says what is wrong.
pub(super) fn path(text: &str) -> Result<Vec<String>, String> {
    if let Some(pointer) = text.strip_prefix('/') {
        return Ok(pointer.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect());
    }
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '.' => parts.push(String::new()),
            '\\' => parts.last_mut().expect("there is always one").push(chars.next().unwrap_or('\\')),
            c => parts.last_mut().expect("there is always one").push(c),
        }
    }
    if parts.iter().any(String::is_empty) {
        return Err(format!("{text:?} has an empty key; write keys as a.b.c"));
    }
    Ok(parts)
}

/// Puts a value where its path says, making objects on the way.
pub(super) fn put(doc: &mut Value, path: &[String], value: Value) {
    let Some((first, rest)) = path.split_first() else {
        *doc = value;
        return;
    };
    if !doc.is_object() {
        *doc = Value::Object(Map::new());
    }
    if let Value::Object(members) = doc {
        put(members.entry(first.clone()).or_insert(Value::Null), rest, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_read_as_json_or_as_text() {
        let mut doc = json!({"a": 1});
        for text in [
            "upload_s=30",
            "drivers.dht22.every_s=2.5",
            "a.b=x=y",
            r"c\.d=true",
            "/e~1f/g=[1]",
            "h=\"7\"",
            "i=null",
        ] {
            let (path, value) = setting(text).unwrap();
            put(&mut doc, &path, value);
        }
        let expected = json!({
            "upload_s": 30, "drivers": {"dht22": {"every_s": 2.5}}, "a": {"b": "x=y"}, "c.d": true,
            "e/f": {"g": [1]}, "h": "7", "i": null,
        });
        assert_eq!(doc, expected);
        for bad in ["upload_s", "a..b=1", "=1", ".a=1"] {
            assert!(setting(bad).is_err(), "{bad}");
        }
    }
}
