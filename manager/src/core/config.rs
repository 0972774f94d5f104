//! Desired configuration, decided: layers of fleet, group, site and node are merged into one document a node.
//!
//! Owns the layers, the merge (JSON merge patch, RFC 7396), where each key comes from, the version that each node is to
//! have, and whether it follows. Documents are JSON objects; a schema, when there is one, judges every document that a
//! node would get before a change is made. Nothing here remembers that a message arrived: what is told to a node follows
//! from what it says it has. Earlier revisions of a layer are in the store alone.

mod docs;
mod follow;
pub mod history;
mod merge;
mod settings;
mod standing;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, str::FromStr};

use fleet_schemas::{
    NodeId,
    config::{Hash, Held, Version},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use docs::{Fault, Unfit};
pub use follow::{Change, Effects, Plan, Rows, Told, advance, decide, hear, load, place, retry, take};
pub(super) use follow::{may_select, regroup};
pub use merge::{Difference, Merged, differences, merge};
pub use settings::{Affected, ConfigError, Edit, Edited};
pub use standing::{State, count, stands, state, unfit, why};

/// Revisions of a layer that are kept, to be looked at and returned to.
pub const REVISIONS: u64 = 100;
/// Most layers.
pub const LAYERS: usize = 20_000;
/// Most bytes of all layers' documents, as CBOR: they are in memory.
pub const LAYERS_BYTES: usize = 64 * 1024 * 1024;

/// Where a setting is made; a later kind goes over an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// All nodes.
    Fleet,
    /// The nodes of a saved selector, by its name; several of a node's groups apply in the order of their names.
    Group(String),
    /// The nodes of a site.
    Site(String),
    /// One node.
    Node(NodeId),
}

/// One state of a layer's document, or of the schema.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// Counts the layer's revisions from 1.
    pub number: u64,
    /// The document, an object. `null` takes away what lower layers set.
    pub doc: Value,
    /// When it was made, Unix milliseconds.
    pub at_ms: i64,
    /// Who made it.
    pub by: String,
    /// Which revision it returned to, if it did.
    pub returned_to: Option<u64>,
}

/// What a node is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Grows whenever the document changes.
    pub version: Version,
    /// SHA-256 of the document's CBOR.
    #[serde(with = "serde_bytes")]
    pub hash: Hash,
    /// Counts how often an operator asked to try the version again.
    pub retry: u64,
}

/// All layers as they count now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    layers: BTreeMap<Layer, Revision>,
    // Bytes of their documents as CBOR.
    bytes: usize,
    /// The JSON Schema that every node's document has to satisfy; an empty one when there was one and is no more.
    pub schema: Option<Revision>,
    /// The epoch that new versions get: raised when the hub is restored from a backup.
    pub epoch: u64,
}

/// What of a node decides which settings it has, and under which version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Its site.
    pub site: Option<String>,
    /// The groups it is in, in the order of their names; those without a layer may be left out.
    pub groups: Vec<String>,
    /// What it is to have; none for a node that never had a setting.
    pub wanted: Option<Wanted>,
    /// What it says it has.
    pub received: Option<Held>,
}

impl Settings {
    /// What the store has.
    #[must_use]
    pub fn new(layers: BTreeMap<Layer, Revision>, schema: Option<Revision>, epoch: u64) -> Self {
        let bytes = layers.values().map(|revision| encoded(&revision.doc).0.len()).sum();
        Self { layers, bytes, schema, epoch }
    }

    /// All layers, lowest first.
    #[must_use]
    pub fn layers(&self) -> &BTreeMap<Layer, Revision> {
        &self.layers
    }

    /// The revision of a layer that counts.
    #[must_use]
    pub fn current(&self, layer: &Layer) -> Option<&Revision> {
        self.layers.get(layer)
    }

    /// A node's document, and which layer each of its keys comes from.
    #[must_use]
    pub fn merged(&self, place: &Place) -> Merged {
        let layers = place.layers().filter_map(|layer| {
            let doc = &self.current(&layer)?.doc;
            Some((layer, doc))
        });
        merge::all(layers)
    }

    /// Puts a revision in the place of the one before; of the schema without a layer.
    fn put(&mut self, layer: Option<&Layer>, revision: Revision) {
        let Some(layer) = layer else {
            self.schema = Some(revision);
            return;
        };
        self.bytes += encoded(&revision.doc).0.len();
        if let Some(before) = self.layers.insert(layer.clone(), revision) {
            self.bytes -= encoded(&before.doc).0.len();
        }
    }
}

impl Place {
    /// The layers that a node has, if they are there, lowest first.
    pub fn layers(&self) -> impl Iterator<Item = Layer> + '_ {
        let groups = self.groups.iter().cloned().map(Layer::Group);
        std::iter::once(Layer::Fleet)
            .chain(groups)
            .chain(self.site.clone().map(Layer::Site))
            .chain(std::iter::once(Layer::Node(self.node.clone())))
    }

    /// Whether a layer applies to it.
    #[must_use]
    pub fn has(&self, layer: &Layer) -> bool {
        match layer {
            Layer::Fleet => true,
            Layer::Group(name) => self.groups.contains(name),
            Layer::Site(name) => self.site.as_ref() == Some(name),
            Layer::Node(id) => self.node == *id,
        }
    }
}

impl Wanted {
    /// Whether a node has it, and has tried it as often as it should.
    #[must_use]
    pub fn is(&self, held: &Held) -> bool {
        self.version == held.version && self.hash == held.hash && held.retry >= self.retry
    }
}

/// A document as it travels, and its hash. Keys are in the order of their text, so equal documents are equal bytes.
#[must_use]
pub fn encoded(doc: &Value) -> (Vec<u8>, Hash) {
    let bytes = fleet_schemas::cbor::encode(doc);
    let hash = fleet_schemas::config::hash(&bytes);
    (bytes, hash)
}

/// A document without a setting.
#[must_use]
pub fn empty() -> Value {
    Value::Object(Map::new())
}

/// A version as it is shown and named.
#[must_use]
pub fn version(version: Version) -> String {
    format!("{}.{}", version.epoch, version.n)
}

/// The text names no layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no layer; layers are fleet, group/NAME, site/NAME and node/ID")]
pub struct UnknownLayer(pub String);

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("fleet"),
            Self::Group(name) => write!(f, "group/{name}"),
            Self::Site(name) => write!(f, "site/{name}"),
            Self::Node(node) => write!(f, "node/{node}"),
        }
    }
}

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(text: &str) -> Result<Self, UnknownLayer> {
        let unknown = || UnknownLayer(text.to_owned());
        match text.split_once('/') {
            None if text == "fleet" => Ok(Self::Fleet),
            Some(("group", name)) if !name.is_empty() => Ok(Self::Group(name.to_owned())),
            Some(("site", name)) if !name.is_empty() => Ok(Self::Site(name.to_owned())),
            Some(("node", id)) => NodeId::parse(id).map(Self::Node).map_err(|_| unknown()),
            Some(_) | None => Err(unknown()),
        }
    }
}
