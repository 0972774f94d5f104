//! Changes of layers, with the nodes that follow.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use fleet_schemas::{
    NodeId,
    config::{Hash, Version},
};
use serde_json::Value;

use super::{
    LAYERS, LAYERS_BYTES, Layer, Place, Revision, Settings, Unfit, Wanted,
    docs::{Doc, Docs, fits, validator},
    empty, encoded,
    merge::{self, Difference, merge},
};

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
        /// Its document, as the store has it.
        doc: Value,
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

impl Edit {
    /// The layer; none for the schema.
    #[must_use]
    pub fn layer(&self) -> Option<&Layer> {
        match self {
            Self::Put { layer, .. } | Self::Patch { layer, .. } | Self::Return { layer, .. } => Some(layer),
            Self::Schema { .. } => None,
        }
    }

    /// The revision that it is meant to follow.
    #[must_use]
    pub fn expected(&self) -> Option<u64> {
        match self {
            Self::Put { expected, .. }
            | Self::Patch { expected, .. }
            | Self::Return { expected, .. }
            | Self::Schema { expected, .. } => *expected,
        }
    }

    /// The same, meant to follow this revision.
    #[must_use]
    pub fn expecting(mut self, revision: u64) -> Self {
        match &mut self {
            Self::Put { expected, .. }
            | Self::Patch { expected, .. }
            | Self::Return { expected, .. }
            | Self::Schema { expected, .. } => *expected = Some(revision),
        }
        self
    }
}

/// What a change does.
#[derive(Debug, Clone, PartialEq)]
pub struct Edited {
    /// The layer that has a new revision; `None` for the schema.
    pub layer: Option<Layer>,
    /// The revision that it follows; 0 for none.
    pub base: u64,
    /// The new revision; absent when the document stays the same.
    pub revision: Option<Revision>,
    /// The nodes whose document changes.
    pub affected: Vec<Affected>,
}

/// A node whose document changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Affected {
    /// The node.
    pub node: NodeId,
    /// What changes for it; nodes with the same layers share it.
    pub differences: Arc<[Difference]>,
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
    /// Not an object.
    #[error("a document is a JSON object")]
    NoObject,
    /// No such group or node.
    #[error("there is no {0}; `fleet group ls` and `fleet node ls` list what there is")]
    Nobody(Layer),
    /// The group selects by presence.
    #[error("group {0:?} selects by state, which comes and goes; a setting needs a group that stays")]
    Unsteady(String),
    /// A node, or the layer itself, would have a document that it cannot have.
    #[error("the document of {whose} {unfit}")]
    Unfit {
        /// Such as `site/roof` or `node/edge-1`.
        whose: Layer,
        /// Why not.
        unfit: Unfit,
    },
    /// The schema itself.
    #[error("this is no JSON Schema: {0}")]
    Schema(String),
    /// Too many, or too much.
    #[error("at most {LAYERS} layers with {LAYERS_BYTES} bytes together are allowed; empty some first")]
    Full,
    /// Nothing to try again.
    #[error("{0} has not failed to apply its configuration; there is nothing to try again")]
    NotFailed(NodeId),
}

/// What becomes of a node.
pub(super) enum Settled {
    /// It is to have what it was to have.
    Same,
    /// It is to have this.
    New(Wanted),
    /// It cannot have what its layers say, and keeps what it was to have.
    Unfit(Unfit),
}

impl Settings {
    /// Decides on a change, for all nodes there are. Changes nothing itself, so it is a dry run as well.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn decide(
        &self,
        edit: &Edit,
        places: impl Iterator<Item = Place>,
        by: &str,
        now_ms: i64,
    ) -> Result<Edited, ConfigError> {
        let (layer, doc, returned_to) = self.asked(edit)?;
        let current = layer.as_ref().map_or(self.schema.as_ref(), |layer| self.current(layer));
        let base = current.map_or(0, |current| current.number);
        if current.map_or(doc == empty(), |current| current.doc == doc) {
            return Ok(Edited { layer, base, revision: None, affected: Vec::new() });
        }
        let affected = match &layer {
            Some(layer) => {
                self.room(layer, &doc)?;
                self.changed(layer, &doc, places)?
            }
            None => {
                self.bear(&doc, places)?;
                Vec::new()
            }
        };
        let revision = Revision { number: base + 1, doc, at_ms: now_ms, by: by.to_owned(), returned_to };
        Ok(Edited { layer, base, revision: Some(revision), affected })
    }

    fn asked(&self, edit: &Edit) -> Result<(Option<Layer>, Value, Option<u64>), ConfigError> {
        let layer = edit.layer().cloned();
        let current = layer.as_ref().map_or(self.schema.as_ref(), |layer| self.current(layer));
        let number = current.map_or(0, |revision| revision.number);
        if let Some(expected) = edit.expected().filter(|expected| *expected != number) {
            let layer = layer.map_or_else(|| "the schema".to_owned(), |layer| layer.to_string());
            return Err(ConfigError::Conflict { layer, current: number, expected });
        }
        let (doc, returned_to) = match edit {
            Edit::Put { doc, .. } => (doc.clone(), None),
            Edit::Patch { patch, .. } if !patch.is_object() => return Err(ConfigError::NoObject),
            Edit::Patch { patch, .. } => {
                let mut doc = current.map_or_else(empty, |revision| revision.doc.clone());
                merge(&mut doc, patch);
                (doc, None)
            }
            Edit::Return { to, doc, .. } => (doc.clone(), Some(*to)),
            Edit::Schema { schema: None, .. } => (empty(), None),
            Edit::Schema { schema: Some(schema), .. } => {
                validator(schema)?;
                (schema.clone(), None)
            }
        };
        if doc.is_object() { Ok((layer, doc, returned_to)) } else { Err(ConfigError::NoObject) }
    }

    fn room(&self, layer: &Layer, doc: &Value) -> Result<(), ConfigError> {
        let bytes = encoded(doc).0;
        fits(&bytes).map_err(|unfit| ConfigError::Unfit { whose: layer.clone(), unfit })?;
        let is_new = self.current(layer).is_none();
        if is_new && self.layers.len() >= LAYERS || self.bytes + bytes.len() > LAYERS_BYTES {
            return Err(ConfigError::Full);
        }
        Ok(())
    }

    /// The nodes whose document changes by a layer.
    fn changed(
        &self,
        layer: &Layer,
        doc: &Value,
        places: impl Iterator<Item = Place>,
    ) -> Result<Vec<Affected>, ConfigError> {
        let (mut before, mut after) = (Docs::new(self), Docs::with(self, layer, doc));
        let mut known: BTreeMap<(Hash, Hash), Arc<[Difference]>> = BTreeMap::new();
        let mut affected = Vec::new();
        for place in places.filter(|place| place.has(layer)) {
            let (old, new) = (before.of(&place), after.of(&place));
            if old.hash == new.hash {
                continue;
            }
            let whose = || Layer::Node(place.node.clone());
            match self.settled(&after, &place, &new) {
                Settled::Same => {}
                Settled::Unfit(unfit) => return Err(ConfigError::Unfit { whose: whose(), unfit }),
                Settled::New(wanted) => {
                    let differences = known
                        .entry((old.hash, new.hash))
                        .or_insert_with(|| merge::differences(&old.value, &new.value).into());
                    let differences = differences.clone();
                    affected.push(Affected { node: place.node, differences, wanted });
                }
            }
        }
        Ok(affected)
    }

    /// Whether all that nodes are to have satisfies a schema.
    fn bear(&self, schema: &Value, places: impl Iterator<Item = Place>) -> Result<(), ConfigError> {
        let bytes = encoded(schema).0;
        if bytes.len() > LAYERS_BYTES / 64 {
            return Err(ConfigError::Schema(format!("it has {} bytes", bytes.len())));
        }
        let mut docs = Docs::under(self, schema);
        for place in places {
            let doc = docs.of(&place);
            // What a node does not have because it does not suit it is not held against a schema.
            if place.wanted.is_some_and(|wanted| wanted.hash == doc.hash) {
                docs.judge(&doc)
                    .map_err(|unfit| ConfigError::Unfit { whose: Layer::Node(place.node), unfit })?;
            }
        }
        Ok(())
    }

    /// What a node is to have of a document.
    pub(super) fn settled(&self, docs: &Docs<'_>, place: &Place, doc: &Rc<Doc>) -> Settled {
        let same = place.wanted.map_or(doc.value == empty(), |wanted| wanted.hash == doc.hash);
        let known = place.wanted.map(|wanted| wanted.version);
        let floor = known.unwrap_or_default();
        // A node that says it has as new a version, or a newer one: the hub was set back, or another hub gave it.
        let ahead = place.received.filter(|held| held.version >= floor);
        let version = match ahead {
            Some(held) if held.hash == doc.hash => {
                let settled = same && (known == Some(held.version) || known.is_none());
                if settled { None } else { Some(held.version) }
            }
            Some(held) => self.after(held.version),
            None if same => None,
            None => self.after(floor),
        };
        let Some(version) = version else { return Settled::Same };
        if !same && let Err(unfit) = docs.judge(doc) {
            return Settled::Unfit(unfit);
        }
        Settled::New(Wanted { version, hash: doc.hash, retry: 0 })
    }

    /// The version after one; none after the last there can be.
    fn after(&self, version: Version) -> Option<Version> {
        if version.epoch < self.epoch {
            return Some(Version { epoch: self.epoch, n: 1 });
        }
        let next = version.n.checked_add(1).map(|n| Version { n, ..version });
        next.or_else(|| Some(Version { epoch: version.epoch.checked_add(1)?, n: 1 }))
    }
}
