//! Any CBOR as JSON, for people and tools that read no CBOR. Pure.

use ciborium::Value as Cbor;
use serde_json::{Map, Number, Value, json};

/// Bytes as `{"bytes": "hexadecimal"}`, tags as `{"tag": n, "value": …}`, keys as text, and numbers that JSON has not
/// as text.
#[must_use]
pub fn json(value: &Cbor) -> Value {
    match value {
        Cbor::Null => Value::Null,
        Cbor::Bool(bool) => Value::from(*bool),
        Cbor::Integer(integer) => {
            let wide = i128::from(*integer);
            (u64::try_from(wide).map(Value::from))
                .or_else(|_| i64::try_from(wide).map(Value::from))
                .unwrap_or_else(|_| Value::from(wide.to_string()))
        }
        Cbor::Float(float) => {
            Number::from_f64(*float).map_or_else(|| Value::from(float.to_string()), Value::from)
        }
        Cbor::Text(text) => Value::from(text.as_str()),
        Cbor::Bytes(bytes) => json!({ "bytes": hex(bytes) }),
        Cbor::Tag(tag, inner) => json!({ "tag": tag, "value": json(inner) }),
        Cbor::Array(items) => items.iter().map(json).collect(),
        Cbor::Map(pairs) => {
            let pair = |(key, value): &(Cbor, Cbor)| match key {
                Cbor::Text(text) => (text.clone(), json(value)),
                other => (json(other).to_string(), json(value)),
            };
            Value::Object(pairs.iter().map(pair).collect::<Map<_, _>>())
        }
        // ciborium's enum is open.
        other => Value::from(format!("{other:?}")),
    }
}

/// Bytes as hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cbor_has_a_form_in_json() {
        let value = Cbor::Map(vec![
            (Cbor::from(1), Cbor::Tag(69, Box::new(Cbor::Bytes(vec![1, 0])))),
            (Cbor::from("nan"), Cbor::Float(f64::NAN)),
            (Cbor::from("big"), Cbor::from(u64::MAX)),
            (Cbor::from("low"), Cbor::from(-5)),
        ]);
        assert_eq!(
            json(&value),
            json!({"1": {"tag": 69, "value": {"bytes": "0100"}}, "nan": "NaN", "big": u64::MAX, "low": -5})
        );
    }
}
