//! Desired configuration, decided: layers of fleet, group, site and node are merged into one document a node.
//!
//! Owns the layers with their revisions, the merge (JSON merge patch, RFC 7396), where each key comes from, and the
//! version each node is to have. Documents are JSON objects; a schema, when there is one, judges every document a node
//! would get before a change is made. Knows no node's connection: the consumer sends what a node has not received.

mod merge;
mod settings;

use std::{collections::BTreeMap, fmt, str::FromStr};

use fleet_schemas::{
    NodeId,
    config::{Hash, Version},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use merge::{Difference, Merged, differences, merge};
pub use settings::{Affected, ConfigError, Edit, Edited};

/// Revisions of a layer that are kept, to be looked at and returned to.
pub const REVISIONS: usize = 100;
/// Most layers.
pub const LAYERS: usize = 20_000;

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

/// One state of a layer's document.
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

/// All layers, and what each node is to have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Revisions by layer, oldest first; the last one counts.
    pub layers: BTreeMap<Layer, Vec<Revision>>,
    /// The JSON Schema that every node's document has to satisfy, with its own revisions.
    pub schema: Vec<Revision>,
    /// By node; a node that never had any setting is not in it.
    pub wanted: BTreeMap<NodeId, Wanted>,
    /// The epoch that new versions get: raised when the hub is restored from a backup.
    pub epoch: u64,
}

/// What of a node decides which layers it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Its site.
    pub site: Option<String>,
    /// The groups it is in, in the order of their names.
    pub groups: Vec<String>,
}

impl Settings {
    /// The layers that apply to a node, lowest first, with their documents.
    pub fn layers_of<'a>(&'a self, place: &Place) -> impl Iterator<Item = (Layer, &'a Value)> {
        let groups = place.groups.iter().cloned().map(Layer::Group);
        let all = std::iter::once(Layer::Fleet)
            .chain(groups)
            .chain(place.site.clone().map(Layer::Site))
            .chain(std::iter::once(Layer::Node(place.node.clone())));
        all.filter_map(|layer| {
            let doc = &self.current(&layer)?.doc;
            Some((layer, doc))
        })
    }

    /// The revision of a layer that counts.
    #[must_use]
    pub fn current(&self, layer: &Layer) -> Option<&Revision> {
        self.layers.get(layer).and_then(|revisions| revisions.last())
    }

    /// A node's document, and which layer each of its keys comes from.
    #[must_use]
    pub fn merged(&self, place: &Place) -> Merged {
        merge::all(self.layers_of(place))
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
