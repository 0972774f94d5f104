//! Bodies that change the registry, parsed once: a JSON merge patch (RFC 7386) of a node, and CSV of many.
//!
//! Pure. Finds every fault, not only the first; what values mean is the registry's business.

use std::{collections::BTreeSet, io};

use fleet_schemas::NodeId;
use serde_json::{Map, Value};

use super::{problem::Refusal, selector::FIELDS};
use crate::core::{fleet::Location, registry::NodePatch};

/// Most nodes in one import: one transaction.
pub(super) const IMPORT_LINES: usize = 10_000;

/// Reads a merge patch of `{name, site, location:{lat,lon}, labels:{key: value}}`.
///
/// # Errors
/// [`Refusal::Invalid`] with a pointer per fault, [`Refusal::BadRequest`] when it is no JSON object.
pub(super) fn merge_patch(body: &[u8]) -> Result<NodePatch, Refusal> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::BadRequest(format!("the body is not JSON: {error}")))?;
    let Value::Object(members) = value else {
        return Err(Refusal::BadRequest("the body is not a JSON object".to_owned()));
    };
    let mut patch = NodePatch::default();
    let mut faults = Vec::new();
    for (name, value) in members {
        let pointer = format!("/{}", escape(&name));
        match name.as_str() {
            "name" => patch.name = text(value, &pointer, &mut faults),
            "site" => patch.site = text(value, &pointer, &mut faults),
            "location" => patch.location = location(value, &pointer, &mut faults),
            "labels" => match value {
                Value::Object(labels) => read_labels(labels, &mut patch, &mut faults),
                Value::Null => faults.push((pointer, "take labels away one by one: {\"key\": null}".into())),
                _ => faults.push((pointer, "expected an object of strings".to_owned())),
            },
            _ => {
                faults.push((pointer, "cannot be changed; name, site, location and labels can".to_owned()));
            }
        }
    }
    if faults.is_empty() {
        Ok(patch)
    } else {
        Err(Refusal::Invalid { detail: "the node was not changed".to_owned(), faults })
    }
}

fn text(value: Value, pointer: &str, faults: &mut Vec<(String, String)>) -> Option<Option<String>> {
    match value {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(text)),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            faults.push((pointer.to_owned(), "expected a string, or null to clear it".to_owned()));
            None
        }
    }
}

fn location(value: Value, pointer: &str, faults: &mut Vec<(String, String)>) -> Option<Option<Location>> {
    match value {
        Value::Null => Some(None),
        Value::Object(members) => {
            let mut degrees = |key: &str, limit: f64| {
                let found = members.get(key).and_then(Value::as_f64).filter(|found| found.abs() <= limit);
                if found.is_none() {
                    let why = format!("expected degrees within -{limit} to {limit}");
                    faults.push((format!("{pointer}/{key}"), why));
                }
                found
            };
            let (lat, lon) = (degrees("lat", 90.0), degrees("lon", 180.0));
            for key in members.keys().filter(|key| !["lat", "lon"].contains(&key.as_str())) {
                faults.push((format!("{pointer}/{}", escape(key)), "only lat and lon are known".to_owned()));
            }
            Some(Some(Location { lat: lat?, lon: lon? }))
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::String(_) => {
            faults.push((pointer.to_owned(), "expected {lat, lon}, or null to clear it".to_owned()));
            None
        }
    }
}

fn read_labels(labels: Map<String, Value>, patch: &mut NodePatch, faults: &mut Vec<(String, String)>) {
    for (key, value) in labels {
        let pointer = format!("/labels/{}", escape(&key));
        if let Err(why) = label_key(&key) {
            faults.push((pointer, why));
            continue;
        }
        match value {
            Value::Null => drop(patch.labels.insert(key, None)),
            Value::String(text) => drop(patch.labels.insert(key, Some(text))),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                faults.push((pointer, "expected a string, or null to take it away".to_owned()));
            }
        }
    }
}

/// A label's key must be readable in a selector, and must not hide a field.
fn label_key(key: &str) -> Result<(), String> {
    if FIELDS.contains(&key) {
        return Err(format!("{key} is a field of every node; name the label otherwise"));
    }
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if !key.starts_with(|c: char| c.is_ascii_alphanumeric()) || !key.chars().all(inner) {
        return Err("expected letters and digits, then also - _ . /".to_owned());
    }
    if ["in", "notin"].contains(&key) {
        return Err(format!("{key} is a word of selectors; name the label otherwise"));
    }
    Ok(())
}

/// A key as it stands in a JSON pointer (RFC 6901).
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// One line of an import: its number in the file, the id as written, and what it asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// Counted from 1, the header included.
    pub number: u64,
    /// The first column.
    pub id: String,
    /// The node and its change, or why not.
    pub asked: Result<(NodeId, NodePatch), String>,
}

/// Reads `id,name,site,lat,lon,LABEL…`; the header names the columns, in any order, `id` is needed. An empty cell
/// changes nothing.
///
/// # Errors
/// [`Refusal::Invalid`] when the header is wrong or there are too many lines; faults of lines are in the lines.
pub(super) fn import(body: &[u8]) -> Result<Vec<Line>, Refusal> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(body);
    let bad = |why: String| Refusal::Invalid {
        detail: "nothing was imported".to_owned(),
        faults: vec![("line 1".to_owned(), why)],
    };
    let header = reader.headers().map_err(|error| bad(told(&error)))?.clone();
    let columns: Vec<&str> = header.iter().map(|name| name.trim_start_matches('\u{feff}')).collect();
    let mut seen = BTreeSet::new();
    for column in &columns {
        if !seen.insert(*column) {
            return Err(bad(format!("column {column:?} is there twice")));
        }
        if !["id", "name", "site", "lat", "lon"].contains(column) {
            label_key(column).map_err(|why| bad(format!("column {column:?}: {why}")))?;
        }
    }
    if !seen.contains("id") {
        return Err(bad("no column is called id; write id,name,site,lat,lon and then labels".to_owned()));
    }
    let mut lines = Vec::new();
    let mut ids = BTreeSet::new();
    for (at, record) in reader.records().enumerate() {
        if lines.len() == IMPORT_LINES {
            return Err(bad(format!("more than {IMPORT_LINES} lines; split the file")));
        }
        let (number, id, mut asked) = match record {
            Ok(record) => {
                let number = record.position().map_or(0, csv::Position::line);
                let id = columns.iter().position(|column| *column == "id").and_then(|at| record.get(at));
                (number, id.unwrap_or_default().to_owned(), line(&columns, &record))
            }
            Err(error) => (at as u64 + 2, String::new(), Err(told(&error))),
        };
        if let Ok((node, _)) = &asked
            && !ids.insert(node.clone())
        {
            asked = Err("this node is in an earlier line; keep one".to_owned());
        }
        lines.push(Line { number, id, asked });
    }
    Ok(lines)
}

/// The library's text names bytes and records; the line is told beside it.
fn told(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "is not UTF-8; save the file as UTF-8".to_owned(),
        csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "ends too early".to_owned()
        }
        _ => error.to_string(),
    }
}

fn line(columns: &[&str], record: &csv::StringRecord) -> Result<(NodeId, NodePatch), String> {
    if record.len() > columns.len() {
        return Err(format!("has {} cells, the header has {}", record.len(), columns.len()));
    }
    let mut node = None;
    let (mut lat, mut lon) = (None, None);
    let mut patch = NodePatch::default();
    for (column, cell) in columns.iter().zip(record).filter(|(_, cell)| !cell.is_empty()) {
        let degrees = |limit: f64| match cell.parse::<f64>() {
            Ok(degrees) if degrees.abs() <= limit => Ok(Some(degrees)),
            Ok(_) | Err(_) => Err(format!("{column} {cell:?} is not degrees within -{limit} to {limit}")),
        };
        match *column {
            "id" => node = Some(NodeId::parse(cell).map_err(|error| error.to_string())?),
            "name" => patch.name = Some(Some(cell.to_owned())),
            "site" => patch.site = Some(Some(cell.to_owned())),
            "lat" => lat = degrees(90.0)?,
            "lon" => lon = degrees(180.0)?,
            label => drop(patch.labels.insert(label.to_owned(), Some(cell.to_owned()))),
        }
    }
    match (lat, lon) {
        (Some(lat), Some(lon)) => patch.location = Some(Some(Location { lat, lon })),
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => return Err("lat and lon go together".to_owned()),
    }
    Ok((node.ok_or("the id is empty")?, patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(body: &str) -> Vec<String> {
        match merge_patch(body.as_bytes()) {
            Err(Refusal::Invalid { faults, .. }) => faults.into_iter().map(|(pointer, _)| pointer).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_merge_patch_sets_clears_and_leaves_alone() {
        let patch = merge_patch(
            br#"{"name": null, "location": {"lat": -1.5, "lon": 180},
            "labels": {"rack": "12", "old": null}}"#,
        );
        let expected = NodePatch {
            name: Some(None),
            location: Some(Some(Location { lat: -1.5, lon: 180.0 })),
            labels: [("rack".to_owned(), Some("12".to_owned())), ("old".to_owned(), None)].into(),
            ..NodePatch::default()
        };
        assert_eq!(patch, Ok(expected));
        assert_eq!(merge_patch(b"{}"), Ok(NodePatch::default()));
    }

    #[test]
    fn every_fault_is_told_with_its_pointer() {
        let body = r#"{"id": "x", "name": 5, "location": {"lat": 91, "alt": 3}, "labels": {"a/b~": 1, "state": "x", "in": "y"}}"#;
        let mut found = faults(body);
        found.sort();
        assert_eq!(
            found,
            [
                "/id",
                "/labels/a~1b~0",
                "/labels/in",
                "/labels/state",
                "/location/alt",
                "/location/lat",
                "/location/lon",
                "/name"
            ]
        );
        assert_eq!(faults(r#"{"labels": null}"#), ["/labels"]);
        assert!(matches!(merge_patch(b"[]"), Err(Refusal::BadRequest(_))));
        assert!(matches!(merge_patch(b"{"), Err(Refusal::BadRequest(_))));
    }

    #[test]
    fn lines_are_read_by_their_header() {
        let lines = import(b"site,id,rack,lat,lon\nberlin,edge-1,12,52.5,13.4\n,edge-2,,,\n").unwrap();
        let (id, patch) = lines[0].asked.clone().unwrap();
        assert_eq!((lines[0].number, id.as_str()), (2, "edge-1"));
        assert_eq!(patch.site, Some(Some("berlin".to_owned())));
        assert_eq!(patch.location, Some(Some(Location { lat: 52.5, lon: 13.4 })));
        assert_eq!(patch.labels["rack"].as_deref(), Some("12"));
        assert_eq!(lines[1].asked.clone().unwrap().1, NodePatch::default());
    }

    #[test]
    fn a_bad_line_does_not_hide_the_others() {
        let text = "id,lat,lon\nEDGE,,\nedge-1,5,\nedge-2,95,0\nedge-3,1,2,3\nedge-4,,\nedge-4,,\n";
        let lines = import(text.as_bytes()).unwrap();
        let wrong: Vec<_> = lines.iter().filter(|line| line.asked.is_err()).map(|line| line.number).collect();
        assert_eq!(wrong, [2, 3, 4, 5, 7]);
        for header in ["", "name\nx", "id,id\n", "id,state\n", "id,r k\n"] {
            assert!(import(header.as_bytes()).is_err(), "{header:?}");
        }
    }
}
