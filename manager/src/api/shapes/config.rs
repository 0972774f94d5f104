//! The JSON of `config`, of `config-schema` and of a node's configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A layer in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct BriefLayer {
    /// `fleet`, `group/NAME`, `site/NAME` or `node/ID`.
    pub layer: String,
    /// The revision that counts.
    pub revision: u64,
    /// When it was made.
    pub at_ms: i64,
    /// Who made it.
    pub by: String,
    /// Settings at the top of its document.
    pub keys_count: usize,
    /// Nodes that it applies to.
    pub nodes_count: usize,
}

/// A layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Layer {
    /// `fleet`, `group/NAME`, `site/NAME` or `node/ID`.
    pub layer: String,
    /// The revision that counts; 0 while there is none.
    pub revision: u64,
    /// Its document; `null` in it takes away what lower layers set.
    pub doc: Value,
    /// When it was made.
    #[serde(default)]
    pub at_ms: Option<i64>,
    /// Who made it.
    #[serde(default)]
    pub by: Option<String>,
    /// Which revision it returned to, if it did.
    #[serde(default)]
    pub returned_to: Option<u64>,
    /// The nodes that it applies to, and whether they follow.
    #[serde(default)]
    pub nodes: Follow,
}

/// Whether nodes follow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Follow {
    /// How many there are.
    pub count: usize,
    /// By state: `unmanaged|in_sync|pending|failed|offline`.
    pub by_state: BTreeMap<String, usize>,
    /// Those that do not follow, at most 100: first the failed, then the pending, then the offline.
    pub behind: Vec<Behind>,
}

/// A node that does not follow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Behind {
    /// Its id.
    pub node: String,
    /// `pending|failed|offline`.
    pub state: String,
    /// Why, in a sentence.
    pub reason: String,
}

/// What a change did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Changed {
    /// `fleet`, `group/NAME`, `site/NAME`, `node/ID` or `schema`.
    pub layer: String,
    /// The revision that counts now; after a dry run, the one that it would be.
    pub revision: u64,
    /// Whether the document is another than before.
    pub changed: bool,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The layer's document, or the schema.
    pub doc: Value,
    /// How many nodes have another document by it.
    pub nodes_count: usize,
    /// Those nodes, together where the same changes for them. At most 1,000 groups.
    pub changes: Vec<Changes>,
}

/// What changes for nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Changes {
    /// The nodes.
    pub nodes: Vec<String>,
    /// What is different in their documents.
    pub differences: Vec<Difference>,
}

/// A key that two documents have differently.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Difference {
    /// JSON pointer (RFC 6901).
    pub pointer: String,
    /// What was there; absent when nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What is there; absent when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// A revision of a layer or of the schema.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Revision {
    /// Its number.
    pub revision: u64,
    /// When it was made.
    pub at_ms: i64,
    /// Who made it.
    pub by: String,
    /// Which revision it returned to, if it did.
    #[serde(default)]
    pub returned_to: Option<u64>,
    /// Its document; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doc: Option<Value>,
}

/// The schema that every node's document has to satisfy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Schema {
    /// The revision that counts; 0 while there was none.
    pub revision: u64,
    /// A JSON Schema; null while there is none.
    pub schema: Option<Value>,
    /// When it was made.
    #[serde(default)]
    pub at_ms: Option<i64>,
    /// Who made it.
    #[serde(default)]
    pub by: Option<String>,
}

/// A node's configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct NodeConfig {
    /// Its id.
    pub node: String,
    /// `unmanaged|in_sync|pending|failed|offline`.
    pub state: String,
    /// Why it follows or does not, in sentences.
    pub reasons: Vec<String>,
    /// What it is to have; null while it never had a setting.
    pub desired: Option<Desired>,
    /// What it says it has; null while its agent takes no configuration.
    pub reported: Option<Reported>,
    /// By JSON pointer of each setting: where it comes from.
    pub why: BTreeMap<String, Origin>,
    /// What it is to have against what it runs; null where that is not known.
    pub diff: Option<Vec<Difference>>,
    /// The layers that apply to it, lowest first.
    pub layers: Vec<LayerAt>,
}

/// What a node is to have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Desired {
    /// The version.
    pub version: String,
    /// SHA-256 of the document's CBOR, hexadecimal.
    pub hash: String,
    /// The document.
    pub doc: Value,
    /// How often an operator asked to try it again.
    pub retry: u64,
    /// Why its layers' document is not given to it; then `version` and `hash` are of the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfit: Option<String>,
}

/// What a node says it has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Reported {
    /// The newest on its disk.
    pub received: Option<Held>,
    /// The one it runs.
    pub applied: Option<Held>,
    /// Why the newest is not the one it runs.
    pub failed: Option<Failed>,
}

/// A document that a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Held {
    /// The version.
    pub version: String,
    /// SHA-256 of the document's CBOR, hexadecimal.
    pub hash: String,
}

/// Why a document was not applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Failed {
    /// A stable word.
    pub code: String,
    /// A sentence.
    pub message: String,
}

/// Where a setting comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Origin {
    /// The layer.
    pub layer: String,
    /// Its revision that set it so.
    pub revision: u64,
    /// Who made that.
    pub by: String,
    /// When.
    pub at_ms: i64,
}

/// A layer that applies to a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct LayerAt {
    /// The layer.
    pub layer: String,
    /// Its revision.
    pub revision: u64,
}
