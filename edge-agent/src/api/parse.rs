//! JSON bodies into types: 400 when it is no JSON, 422 with a pointer to the field that is wrong.

use axum::http::StatusCode;
use serde::Deserialize;
use serde_path_to_error::{Path, Segment};

use super::problem::Problem;

/// Reads a body: an object.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    // Serde would also read a list, in the order in which the fields happen to stand.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(Problem::field("", "give an object here"));
    }
    read(body)
}

/// Reads a body of any shape.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (path, error) = (pointer(error.path()), error.into_inner());
        if error.is_data() { Problem::field(below(path, &error), error.to_string()) } else { no_json(&error) }
    })?;
    json.end().map_err(|error| no_json(&error))?;
    Ok(read)
}

fn no_json(error: &serde_json::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))
}

/// A JSON pointer (RFC 6901).
fn pointer(path: &Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => pointer += &format!("/{index}"),
            Segment::Map { key } => pointer += &format!("/{}", key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { .. } | Segment::Unknown => break,
        }
    }
    pointer
}

/// The path of a field that is missing, or there twice, ends at what has it; its name is only in serde's text.
fn below(mut path: String, error: &serde_json::Error) -> String {
    let text = error.to_string();
    let begins = ["missing field `", "duplicate field `"];
    let rest = begins.iter().find_map(|begin| text.strip_prefix(begin));
    if let Some(field) = rest.and_then(|rest| rest.split('`').next()) {
        path.push('/');
        path += field;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[expect(dead_code, reason = "read, not looked at")]
        name: String,
        #[serde(default)]
        #[expect(dead_code, reason = "read, not looked at")]
        list: Vec<u8>,
    }

    #[test]
    fn the_field_that_is_wrong_is_pointed_at() {
        for (body, status, pointer) in [
            (r#"{"name":"a","list":[1,2]}"#, 200, None),
            (r#"{"name":1}"#, 422, Some("/name")),
            (r#"{"list":[]}"#, 422, Some("/name")),
            (r#"{"name":"a","name":"b"}"#, 422, Some("/name")),
            (r#"{"name":"a","list":[1,"x"]}"#, 422, Some("/list/1")),
            (r#"{"name":"a","list":[300]}"#, 422, Some("/list/0")),
            (r#"{"name":"a","a/b~":1}"#, 422, Some("/a~1b~0")),
            ("3", 422, Some("")),
            (r#"{"name":"a"} x"#, 400, None),
            (r#"{"name":"#, 400, None),
            (r#"["a",[]]"#, 422, Some("")),
            (&r#"{"a":"#.repeat(10_000), 422, Some("/a")),
        ] {
            let told = parse::<Body>(body.as_bytes()).map_or_else(
                |problem| serde_json::to_value(&problem).unwrap(),
                |_| serde_json::json!({"status": 200}),
            );
            assert_eq!(
                (told["status"].as_u64(), told["pointer"].as_str()),
                (Some(status), pointer),
                "{}: {told}",
                body.split_at(body.len().min(40)).0
            );
        }
    }
}
