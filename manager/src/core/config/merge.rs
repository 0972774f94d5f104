//! JSON merge patch (RFC 7396), with the memory of who set what.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Layer;

/// A node's document and where its keys come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// The document, an object.
    pub doc: Value,
    /// By JSON pointer (RFC 6901) of each value that is no object, or an empty one: the layer that set it.
    pub from: BTreeMap<String, Layer>,
}

/// A key that two documents have differently.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// JSON pointer.
    pub pointer: String,
    /// What the first has.
    pub before: Option<Value>,
    /// What the second has.
    pub after: Option<Value>,
}

/// Applies a patch: objects are merged, `null` removes, everything else takes the place of what was there.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Merges layers, lowest first.
pub(super) fn all<'a>(layers: impl Iterator<Item = (Layer, &'a Value)>) -> Merged {
    let mut merged = Merged { doc: super::empty(), from: BTreeMap::new() };
    for (layer, patch) in layers {
        merge(&mut merged.doc, patch);
        let leaves = leaves(&merged.doc);
        merged.from.retain(|pointer, _| leaves.contains_key(pointer));
        for pointer in leaves.into_keys() {
            // Named by the patch, or an object that the patch made or emptied.
            if patch.pointer(&pointer).is_some() || !merged.from.contains_key(&pointer) {
                merged.from.insert(pointer, layer.clone());
            }
        }
    }
    merged
}

/// What two documents have differently, by pointer.
#[must_use]
pub fn differences(before: &Value, after: &Value) -> Vec<Difference> {
    let (old, new) = (leaves(before), leaves(after));
    let mut pointers: Vec<_> = old.keys().chain(new.keys()).collect();
    pointers.sort();
    pointers.dedup();
    let differ = |pointer: &&String| old.get(*pointer) != new.get(*pointer);
    let value = |leaves: &BTreeMap<String, &Value>, pointer: &String| leaves.get(pointer).copied().cloned();
    let listed = pointers.into_iter().filter(differ).map(|pointer| Difference {
        pointer: pointer.clone(),
        before: value(&old, pointer),
        after: value(&new, pointer),
    });
    listed.collect()
}

/// The values of a document that are no objects, and its empty objects, by pointer.
fn leaves(doc: &Value) -> BTreeMap<String, &Value> {
    fn visit<'a>(pointer: &str, value: &'a Value, into: &mut BTreeMap<String, &'a Value>) {
        match value {
            Value::Object(entries) if !entries.is_empty() => {
                for (key, value) in entries {
                    visit(&format!("{pointer}/{}", escaped(key)), value, into);
                }
            }
            leaf => drop(into.insert(pointer.to_owned(), leaf)),
        }
    }
    let mut found = BTreeMap::new();
    visit("", doc, &mut found);
    found.remove("");
    found
}

/// A key as it stands in a JSON pointer (RFC 6901 §3).
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_examples_of_rfc_7396_hold() {
        // Appendix A.
        for (target, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, result, "{target} {patch}");
        }
    }

    #[test]
    fn each_key_knows_the_layer_that_set_it() {
        let (fleet, site) = (
            json!({"upload_s": 90, "drivers": {"dht22": {"every_s": 60}}, "a/b": 1, "gone": 1}),
            json!({"drivers": {"dht22": {"every_s": 10}, "gps": {}}, "gone": null}),
        );
        let roof = Layer::Site("roof".into());
        let merged = all([(Layer::Fleet, &fleet), (roof.clone(), &site)].into_iter());
        let expected = [
            ("/a~1b", Layer::Fleet),
            ("/drivers/dht22/every_s", roof.clone()),
            ("/drivers/gps", roof),
            ("/upload_s", Layer::Fleet),
        ];
        assert_eq!(merged.from, expected.map(|(key, layer)| (key.to_owned(), layer)).into());
        assert_eq!(merged.doc["drivers"]["dht22"]["every_s"], 10);
        assert_eq!(merged.doc.get("gone"), None);
    }

    fn docs() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), (0..3_u8).prop_map(Value::from), Just(json!([1]))];
        let inner = leaf.prop_recursive(3, 12, 3, |inner| {
            prop::collection::btree_map("[ab]", inner, 0..3).prop_map(|map| map.into_iter().collect())
        });
        prop::collection::btree_map("[abc]", inner, 0..3).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn every_leaf_has_a_layer_that_says_so(patches in prop::collection::vec(docs(), 0..4)) {
            let names = [Layer::Fleet, Layer::Group("g".into()), Layer::Site("s".into()), Layer::Site("t".into())];
            let layers: Vec<_> = names.into_iter().zip(&patches).collect();
            let merged = all(layers.iter().map(|(layer, doc)| (layer.clone(), *doc)));
            let leaves = leaves(&merged.doc);
            prop_assert_eq!(leaves.keys().collect::<Vec<_>>(), merged.from.keys().collect::<Vec<_>>());
            for (pointer, layer) in &merged.from {
                let doc = layers.iter().find(|(name, _)| name == layer).map(|(_, doc)| *doc).unwrap();
                let set = doc.pointer(pointer);
                prop_assert!(set.is_some(), "{} does not set {}", layer, pointer);
                if !leaves[pointer].is_object() {
                    prop_assert_eq!(set, Some(leaves[pointer]));
                }
            }
        }

        #[test]
        fn equal_documents_do_not_differ_and_others_do(one in docs(), other in docs()) {
            prop_assert!(differences(&one, &one).is_empty());
            prop_assert_eq!(differences(&one, &other).is_empty(), one == other);
        }
    }
}
