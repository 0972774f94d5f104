//! Changes of layers, with the nodes that follow.

use fleet_schemas::{NodeId, limits};
use serde_json::Value;

use super::{LAYERS, Layer, Place, REVISIONS, Revision, Settings, Wanted, encoded, merge};

/// A change that an operator asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// Make this the layer's document.
    Put {
        /// Which layer.
        layer: Layer,
        /// The document, an object.
        doc: Value,
        /// The revision that it is meant to follow; 0 for none; absent to follow any.
        expected: Option<u64>,
    },
    /// Change the layer's document (RFC 7396).
    Patch {
        /// Which layer.
        layer: Layer,
        /// The patch, an object.
        patch: Value,
        /// As in `Put`.
        expected: Option<u64>,
    },
    /// Return to an earlier revision.
    Return {
        /// Which layer.
        layer: Layer,
        /// The revision.
        to: u64,
        /// As in `Put`.
        expected: Option<u64>,
    },
    /// Make this the schema that every node's document has to satisfy; `None` for no schema.
    Schema {
        /// A JSON Schema.
        schema: Option<Value>,
        /// As in `Put`.
        expected: Option<u64>,
    },
}

/// What a change does.
#[derive(Debug, Clone, PartialEq)]
pub struct Edited {
    /// The layer that has a new revision; `None` for the schema.
    pub layer: Option<Layer>,
    /// That revision; absent when the document stays the same.
    pub revision: Option<Revision>,
    /// The nodes whose document changes.
    pub affected: Vec<Affected>,
}

/// A node whose document changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Affected {
    /// The node.
    pub node: NodeId,
    /// What changes for it.
    pub differences: Vec<merge::Difference>,
    /// What it is to have from now on.
    pub wanted: Wanted,
}

/// Why a change is not made. The text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Somebody else was faster.
    #[error("{layer} is at revision {current}, not {expected}; look at what changed and try again")]
    Conflict {
        /// The layer.
        layer: String,
        /// The revision that counts.
        current: u64,
        /// The one that was expected.
        expected: u64,
    },
    /// No such revision is kept.
    #[error("{layer} has no revision {number}; it keeps {kept}")]
    NoRevision {
        /// The layer.
        layer: String,
        /// The one asked for.
        number: u64,
        /// Which are kept, in words.
        kept: String,
    },
    /// Not an object.
    #[error("a document is a JSON object")]
    NoObject,
    /// Too large for a message.
    #[error("the document of {node} would have {bytes} bytes; at most {max} are allowed", max = limits::CONFIG_BYTES)]
    Large {
        /// The node.
        node: NodeId,
        /// Its size as it travels.
        bytes: usize,
    },
    /// The schema does not allow it.
    #[error("the document of {node} would not satisfy the schema at {pointer:?}: {why}")]
    Invalid {
        /// The node.
        node: NodeId,
        /// JSON pointer to the value.
        pointer: String,
        /// What is wrong.
        why: String,
    },
    /// The schema itself.
    #[error("this is no JSON Schema: {0}")]
    Schema(String),
    /// Too many.
    #[error("there are {LAYERS} layers already; remove some first")]
    Full,
}

impl Settings {
    /// Decides on a change, for all nodes there are. Changes nothing itself, so it is a dry run as well.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn decide<'a>(
        &self,
        edit: &Edit,
        places: impl Iterator<Item = &'a Place>,
        by: &str,
        now_ms: i64,
    ) -> Result<Edited, ConfigError> {
        let (layer, doc, returned_to) = self.asked(edit)?;
        let revisions = layer.as_ref().map_or(Some(&self.schema), |layer| self.layers.get(layer));
        let current = revisions.and_then(|revisions| revisions.last());
        if layer.is_some() && current.is_none() && self.layers.len() >= LAYERS {
            return Err(ConfigError::Full);
        }
        if current.map_or(doc == super::empty(), |current| current.doc == doc) {
            return Ok(Edited { layer, revision: None, affected: Vec::new() });
        }
        let number = current.map_or(0, |current| current.number) + 1;
        let revision = Revision { number, doc, at_ms: now_ms, by: by.to_owned(), returned_to };
        let mut after = self.clone_with(layer.as_ref(), &revision);
        let affected = after.follow(places, Some(self))?;
        Ok(Edited { layer, revision: Some(revision), affected })
    }

    /// Makes a change that was decided.
    pub fn apply(&mut self, edited: &Edited) {
        if let Some(revision) = &edited.revision {
            self.push(edited.layer.as_ref(), revision.clone());
        }
        for affected in &edited.affected {
            self.wanted.insert(affected.node.clone(), affected.wanted);
        }
    }

    /// The nodes whose document changes although no layer did: they came, moved to another site or group. Their wanted
    /// version is set.
    ///
    /// # Errors
    /// [`ConfigError`]: the node keeps what it is to have.
    pub fn settle(&mut self, place: &Place) -> Result<Option<Affected>, ConfigError> {
        let affected = self.follow(std::iter::once(place), None)?;
        Ok(affected.into_iter().next())
    }

    fn asked(&self, edit: &Edit) -> Result<(Option<Layer>, Value, Option<u64>), ConfigError> {
        let (layer, expected) = match edit {
            Edit::Put { layer, expected, .. }
            | Edit::Patch { layer, expected, .. }
            | Edit::Return { layer, expected, .. } => (Some(layer.clone()), *expected),
            Edit::Schema { expected, .. } => (None, *expected),
        };
        let none = Vec::new();
        let revisions = layer.as_ref().map_or(&self.schema, |layer| self.layers.get(layer).unwrap_or(&none));
        let name = || layer.as_ref().map_or_else(|| "the schema".to_owned(), ToString::to_string);
        let current = revisions.last().map_or(0, |revision| revision.number);
        if let Some(expected) = expected.filter(|expected| *expected != current) {
            return Err(ConfigError::Conflict { layer: name(), current, expected });
        }
        let (doc, returned_to) = match edit {
            Edit::Put { doc, .. } => (doc.clone(), None),
            Edit::Patch { patch, .. } => {
                let mut doc = revisions.last().map_or_else(super::empty, |revision| revision.doc.clone());
                merge(&mut doc, patch);
                (doc, None)
            }
            Edit::Return { to, .. } => {
                let found = revisions.iter().find(|revision| revision.number == *to);
                let first = revisions.first().map_or(0, |revision| revision.number);
                let kept = if revisions.is_empty() { "none".into() } else { format!("{first} to {current}") };
                let found =
                    found.ok_or_else(|| ConfigError::NoRevision { layer: name(), number: *to, kept })?;
                (found.doc.clone(), Some(*to))
            }
            Edit::Schema { schema: None, .. } => (super::empty(), None),
            Edit::Schema { schema: Some(schema), .. } => {
                validator(schema)?;
                (schema.clone(), None)
            }
        };
        if doc.is_object() { Ok((layer, doc, returned_to)) } else { Err(ConfigError::NoObject) }
    }

    fn clone_with(&self, layer: Option<&Layer>, revision: &Revision) -> Self {
        let mut after = self.clone();
        after.push(layer, revision.clone());
        after
    }

    fn push(&mut self, layer: Option<&Layer>, revision: Revision) {
        let revisions = match layer {
            Some(layer) => self.layers.entry(layer.clone()).or_default(),
            None => &mut self.schema,
        };
        revisions.push(revision);
        let extra = revisions.len().saturating_sub(REVISIONS);
        revisions.drain(..extra);
    }

    /// Gives each node whose document changed its next version.
    fn follow<'a>(
        &mut self,
        places: impl Iterator<Item = &'a Place>,
        before: Option<&Self>,
    ) -> Result<Vec<Affected>, ConfigError> {
        let schema = match self.schema.last() {
            Some(revision) if revision.doc != super::empty() => Some(validator(&revision.doc)?),
            Some(_) | None => None,
        };
        let mut affected = Vec::new();
        for place in places {
            let doc = self.merged(place).doc;
            let (bytes, hash) = encoded(&doc);
            let known = self.wanted.get(&place.node).copied();
            let unchanged = known.map_or(doc == super::empty(), |known| known.hash == hash);
            // What a node has already is judged when the schema is new.
            if unchanged && before.is_none_or(|before| before.schema == self.schema) {
                continue;
            }
            if bytes.len() > limits::CONFIG_BYTES {
                return Err(ConfigError::Large { node: place.node.clone(), bytes: bytes.len() });
            }
            if let Some(error) = schema.as_ref().and_then(|schema| schema.iter_errors(&doc).next()) {
                let pointer = error.instance_path().to_string();
                return Err(ConfigError::Invalid {
                    node: place.node.clone(),
                    pointer,
                    why: error.to_string(),
                });
            }
            if unchanged {
                continue;
            }
            let version = self.next_version(known);
            let wanted = Wanted { version, hash, retry: 0 };
            let old = before.map_or_else(super::empty, |before| before.merged(place).doc);
            let differences = merge::differences(&old, &doc);
            self.wanted.insert(place.node.clone(), wanted);
            affected.push(Affected { node: place.node.clone(), differences, wanted });
        }
        Ok(affected)
    }

    fn next_version(&self, known: Option<Wanted>) -> fleet_schemas::config::Version {
        let mut version = known.map(|known| known.version).unwrap_or_default();
        if version.epoch < self.epoch {
            version = fleet_schemas::config::Version { epoch: self.epoch, n: 0 };
        }
        version.n += 1;
        version
    }
}

fn validator(schema: &Value) -> Result<jsonschema::Validator, ConfigError> {
    jsonschema::validator_for(schema).map_err(|error| ConfigError::Schema(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn place(node: &str, site: Option<&str>, groups: &[&str]) -> Place {
        Place {
            node: NodeId::parse(node).unwrap(),
            site: site.map(ToOwned::to_owned),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        }
    }

    fn put(layer: Layer, doc: Value, expected: Option<u64>) -> Edit {
        Edit::Put { layer, doc, expected }
    }

    fn make(settings: &mut Settings, places: &[Place], edit: &Edit) -> Result<Vec<String>, ConfigError> {
        let edited = settings.decide(edit, places.iter(), "operator ann", 5)?;
        settings.apply(&edited);
        Ok(edited.affected.iter().map(|affected| affected.node.to_string()).collect())
    }

    #[test]
    fn a_site_goes_over_the_fleet_and_only_its_nodes_follow() {
        let places =
            [place("a", Some("roof"), &[]), place("b", Some("cellar"), &["old"]), place("c", None, &[])];
        let mut settings = Settings::default();
        let mut make = |edit: &Edit| make(&mut settings, &places, edit);
        assert_eq!(make(&put(Layer::Fleet, json!({"upload_s": 90}), Some(0))).unwrap(), ["a", "b", "c"]);
        assert_eq!(make(&put(Layer::Site("roof".into()), json!({"upload_s": 30}), None)).unwrap(), ["a"]);
        assert_eq!(make(&put(Layer::Group("old".into()), json!({"upload_s": 60}), None)).unwrap(), ["b"]);
        // Nothing changes for the roof.
        let edit = Edit::Patch { layer: Layer::Fleet, patch: json!({"upload_s": 100}), expected: Some(1) };
        assert_eq!(make(&edit).unwrap(), ["c"]);
        let conflict = ConfigError::Conflict { layer: "fleet".into(), current: 2, expected: 1 };
        assert_eq!(make(&edit), Err(conflict));
        let back = Edit::Return { layer: Layer::Fleet, to: 1, expected: None };
        assert_eq!(make(&back).unwrap(), ["c"]);
        let gone = Edit::Return { layer: Layer::Fleet, to: 9, expected: None };
        assert!(make(&gone).unwrap_err().to_string().contains("it keeps 1 to 3"));
        assert_eq!(settings.wanted[&places[2].node].version.n, 3);
        assert_eq!(settings.wanted[&places[0].node].version.n, 2);
        assert_eq!(settings.layers[&Layer::Fleet].last().unwrap().returned_to, Some(1));
    }

    #[test]
    fn a_dry_run_changes_nothing_and_says_what_would() {
        let places = [place("a", None, &[])];
        let settings = Settings::default();
        let edited = settings
            .decide(&put(Layer::Fleet, json!({"x": {"y": 1}}), None), places.iter(), "ann", 1)
            .unwrap();
        assert_eq!(edited.affected[0].differences[0].pointer, "/x/y");
        assert_eq!(settings, Settings::default());
        let same = settings.decide(&put(Layer::Fleet, json!({}), None), places.iter(), "ann", 1).unwrap();
        assert!(same.revision.is_none() && same.affected.is_empty());
    }

    #[test]
    fn the_schema_judges_what_a_node_would_get_and_names_the_place() {
        let places = [place("a", None, &[])];
        let mut settings = Settings::default();
        let mut make = |edit: &Edit| make(&mut settings, &places, edit);
        let schema = json!({"properties": {"upload_s": {"type": "integer", "minimum": 1}}});
        make(&Edit::Schema { schema: Some(schema), expected: None }).unwrap();
        let error = make(&put(Layer::Fleet, json!({"upload_s": 0}), None)).unwrap_err();
        assert!(matches!(&error, ConfigError::Invalid { pointer, .. } if pointer == "/upload_s"), "{error}");
        assert!(make(&put(Layer::Fleet, json!({"upload_s": 1}), None)).is_ok());
        let bad = Edit::Schema { schema: Some(json!({"type": 7})), expected: None };
        assert!(matches!(make(&bad), Err(ConfigError::Schema(_))));
        // A schema that what is there breaks is refused too.
        let strict = json!({"properties": {"upload_s": {"minimum": 5}}});
        let strict = Edit::Schema { schema: Some(strict), expected: None };
        assert!(matches!(make(&strict), Err(ConfigError::Invalid { .. })));
        assert_eq!(make(&put(Layer::Fleet, json!([1]), None)), Err(ConfigError::NoObject));
    }

    #[test]
    fn a_node_that_moves_gets_the_next_version_and_a_restored_hub_counts_higher() {
        let (here, there) = (place("a", None, &[]), place("a", Some("roof"), &[]));
        let mut settings = Settings::default();
        make(&mut settings, std::slice::from_ref(&here), &put(Layer::Fleet, json!({"x": 1}), None)).unwrap();
        make(
            &mut settings,
            std::slice::from_ref(&here),
            &put(Layer::Site("roof".into()), json!({"x": 2}), None),
        )
        .unwrap();
        assert_eq!(settings.settle(&here).unwrap(), None);
        assert_eq!(settings.settle(&there).unwrap().unwrap().wanted.version.n, 2);
        settings.epoch = 1;
        let wanted = settings.settle(&here).unwrap().unwrap().wanted;
        assert_eq!((wanted.version.epoch, wanted.version.n), (1, 1));
    }

    #[test]
    fn a_document_that_no_message_holds_is_refused() {
        let long = "x".repeat(limits::CONFIG_BYTES);
        let places = [place("a", None, &[])];
        let error = make(&mut Settings::default(), &places, &put(Layer::Fleet, json!({"x": long}), None));
        assert!(matches!(error, Err(ConfigError::Large { .. })));
    }
}
