//! What earlier revisions tell: who set each key of a node's document as it is, and which document a node runs that it
//! was given before. Pure: the store's rows are handed in, newest first.

use std::collections::{BTreeMap, BTreeSet};

use fleet_schemas::config::Hash;
use serde_json::Value;

use super::{Layer, Merged, Place, Revision, empty, encoded, merge};

/// Instants that are tried for a document: a node is seldom further behind.
const INSTANTS: usize = 200;

/// The kept revisions of layers, newest first.
pub type Histories = BTreeMap<Layer, Vec<Revision>>;

/// For each key of a document, the layer that set it and the revision since which it is so.
#[must_use]
pub fn origins<'a>(merged: &Merged, histories: &'a Histories) -> BTreeMap<String, (&'a Layer, &'a Revision)> {
    let origin = |(pointer, layer): (&String, &Layer)| {
        let (layer, revisions) = histories.get_key_value(layer)?;
        let now = revisions.first()?.doc.pointer(pointer);
        let since = revisions.iter().take_while(|revision| revision.doc.pointer(pointer) == now).last()?;
        Some((pointer.clone(), (layer, since)))
    };
    merged.from.iter().filter_map(origin).collect()
}

/// The document with this hash that a node's layers once made, as far as their revisions are kept.
#[must_use]
pub fn once(place: &Place, histories: &Histories, hash: Hash) -> Option<Value> {
    let instants: BTreeSet<i64> = histories.values().flatten().map(|revision| revision.at_ms).collect();
    let instants = instants.into_iter().rev().take(INSTANTS).map(Some).chain([None]);
    let layers: Vec<_> = place.layers().filter_map(|layer| histories.get(&layer)).collect();
    let docs = instants.map(|instant| {
        let mut doc = empty();
        for revisions in &layers {
            let then = revisions.iter().find(|revision| instant.is_some_and(|at| revision.at_ms <= at));
            if let Some(revision) = then {
                merge(&mut doc, &revision.doc);
            }
        }
        doc
    });
    docs.into_iter().find(|doc| encoded(doc).1 == hash)
}

#[cfg(test)]
mod tests {
    use fleet_schemas::NodeId;
    use serde_json::json;

    use super::*;
    use crate::core::config::merge::all;

    fn revision(number: u64, at_ms: i64, doc: Value) -> Revision {
        Revision { number, doc, at_ms, by: format!("operator {number}"), returned_to: None }
    }

    #[test]
    fn a_key_is_as_old_as_its_value_and_what_a_node_runs_is_found_again() {
        let roof = Layer::Site("roof".to_owned());
        let histories: Histories = [
            (
                Layer::Fleet,
                vec![
                    revision(3, 30, json!({"a": 1, "b": 3})),
                    revision(2, 20, json!({"a": 1, "b": 2})),
                    revision(1, 10, json!({"a": 0, "b": 2})),
                ],
            ),
            (roof.clone(), vec![revision(1, 25, json!({"c": 1}))]),
        ]
        .into();
        let newest = histories.iter().map(|(layer, revisions)| (layer.clone(), &revisions[0].doc));
        let merged = all(newest);
        let found: Vec<_> = origins(&merged, &histories)
            .into_iter()
            .map(|(pointer, (layer, revision))| (pointer, layer.clone(), revision.number))
            .collect();
        let expected = [("/a", Layer::Fleet, 2), ("/b", Layer::Fleet, 3), ("/c", roof, 1)]
            .map(|(p, l, n)| (p.to_owned(), l, n));
        assert_eq!(found, expected);
        let node = NodeId::parse("edge-1").unwrap();
        let place =
            Place { node, site: Some("roof".to_owned()), groups: Vec::new(), wanted: None, received: None };
        let known = |doc: Value| once(&place, &histories, encoded(&doc).1) == Some(doc);
        for doc in [
            json!({"a": 1, "b": 3, "c": 1}),
            json!({"a": 1, "b": 2, "c": 1}),
            json!({"a": 1, "b": 2}),
            json!({"a": 0, "b": 2}),
            json!({}),
        ] {
            assert!(known(doc.clone()), "{doc}");
        }
        assert!(!known(json!({"a": 0, "b": 2, "c": 1})), "there never was such a time");
    }
}
