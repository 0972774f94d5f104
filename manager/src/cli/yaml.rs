//! Writes JSON values as YAML 1.2, block style. Pure; writes only, reads nothing.

use serde_json::Value;

/// The document, with a line feed at its end.
#[must_use]
pub(super) fn text(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

fn write(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (at, (key, value)) in map.iter().enumerate() {
                // The first key of a map inside a list stands behind the dash.
                if at > 0 || !out.ends_with("- ") {
                    out.push_str(&" ".repeat(indent));
                }
                out.push_str(&scalar(key));
                out.push(':');
                member(value, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                if at > 0 || !out.ends_with("- ") {
                    out.push_str(&" ".repeat(indent));
                }
                out.push_str("- ");
                write(item, indent + 2, out);
            }
        }
        leaf => {
            out.push_str(&leaf_text(leaf));
            out.push('\n');
        }
    }
}

/// What follows `key:`.
fn member(value: &Value, indent: usize, out: &mut String) {
    let nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    out.push(if nested { '\n' } else { ' ' });
    write(value, indent + 2, out);
}

fn leaf_text(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Plain where no reader can take it for anything else, else in the double quotes of JSON, which YAML shares.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./ ".contains(c))
        && !text.ends_with(' ')
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_become_blocks() {
        let value = json!({
            "items": [{"id": "edge-1", "labels": {"rack": "12"}, "list": []}, {"id": "no", "points": [[1, 2.5]]}],
            "next": null,
            "empty": {},
            "text": "a: b # c\n",
        });
        insta::assert_snapshot!(text(&value), @r#"
        empty: {}
        items:
          - id: edge-1
            labels:
              rack: "12"
            list: []
          - id: "no"
            points:
              - - 1
                - 2.5
        next: null
        text: "a: b # c\n"
        "#);
    }

    #[test]
    fn scalars_stand_alone() {
        assert_eq!(text(&json!("x")), "x\n");
        assert_eq!(text(&json!([])), "[]\n");
    }
}
