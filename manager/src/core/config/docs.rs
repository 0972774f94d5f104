//! Documents of nodes, each merged, encoded and judged once however many nodes have the same layers.

use std::{cell::OnceCell, collections::BTreeMap, rc::Rc};

use fleet_schemas::{cbor, config::Hash, limits};
use serde_json::Value;

use super::{ConfigError, Layer, Place, Revision, Settings, empty, encoded, merge};

/// Faults of one document that are told.
const FAULTS: usize = 20;
/// Longest explanation of a fault, in characters: the library's may quote the whole document.
const WHY: usize = 300;

/// A value that the schema does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// JSON pointer to it.
    pub pointer: String,
    /// What is wrong.
    pub why: String,
}

/// Why a document cannot be given to a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Too large for a message.
    #[error("would have {0} bytes; at most {max} are allowed", max = limits::CONFIG_BYTES)]
    Large(usize),
    /// Nested too deeply.
    #[error("cannot travel: {0}")]
    Shape(String),
    /// The schema does not allow it.
    #[error("would not satisfy the schema{}", first(.0))]
    Invalid(Vec<Fault>),
}

fn first(faults: &[Fault]) -> String {
    faults.first().map(|fault| format!(" at {:?}: {}", fault.pointer, fault.why)).unwrap_or_default()
}

/// A node's document.
#[derive(Debug)]
pub(super) struct Doc {
    pub value: Value,
    /// As it travels.
    pub bytes: Vec<u8>,
    pub hash: Hash,
    judged: OnceCell<Result<(), Unfit>>,
}

/// The documents of one state of the layers.
pub(super) struct Docs<'a> {
    settings: &'a Settings,
    // A layer as it is to be instead.
    edited: Option<(&'a Layer, &'a Value)>,
    schema: Option<&'a Value>,
    validator: OnceCell<jsonschema::Validator>,
    known: BTreeMap<Vec<Layer>, Rc<Doc>>,
}

impl<'a> Docs<'a> {
    /// With the layers as they are.
    pub(super) fn new(settings: &'a Settings) -> Self {
        let schema = settings.schema.as_ref();
        Self {
            settings,
            edited: None,
            schema: schema.map(of),
            validator: OnceCell::new(),
            known: BTreeMap::new(),
        }
    }

    /// With one layer as it is to be.
    pub(super) fn with(settings: &'a Settings, layer: &'a Layer, doc: &'a Value) -> Self {
        Self { edited: Some((layer, doc)), ..Self::new(settings) }
    }

    /// With another schema.
    pub(super) fn under(settings: &'a Settings, schema: &'a Value) -> Self {
        Self { schema: Some(schema), ..Self::new(settings) }
    }

    fn layer(&self, layer: &Layer) -> Option<&'a Value> {
        match self.edited {
            Some((edited, doc)) if edited == layer => Some(doc),
            Some(_) | None => self.settings.current(layer).map(of),
        }
    }

    /// The document of a node.
    pub(super) fn of(&mut self, place: &Place) -> Rc<Doc> {
        let key: Vec<Layer> = place.layers().filter(|layer| self.layer(layer).is_some()).collect();
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let mut value = empty();
        key.iter().filter_map(|layer| self.layer(layer)).for_each(|patch| merge(&mut value, patch));
        let doc = Rc::new(Doc::new(value));
        self.known.insert(key, doc.clone());
        doc
    }

    /// Whether a document may be given to a node.
    pub(super) fn judge(&self, doc: &Doc) -> Result<(), Unfit> {
        doc.judged.get_or_init(|| self.judgement(doc)).clone()
    }

    fn judgement(&self, doc: &Doc) -> Result<(), Unfit> {
        fits(&doc.bytes)?;
        let Some(schema) = self.schema.filter(|schema| **schema != empty()) else { return Ok(()) };
        let validator = match self.validator.get() {
            Some(validator) => validator,
            None => {
                let made = validator(schema).map_err(|error| Unfit::Shape(error.to_string()))?;
                self.validator.get_or_init(|| made)
            }
        };
        let fault = |error: jsonschema::ValidationError<'_>| Fault {
            pointer: error.instance_path().to_string(),
            why: error.to_string().chars().take(WHY).collect(),
        };
        let faults: Vec<_> = validator.iter_errors(&doc.value).take(FAULTS).map(fault).collect();
        if faults.is_empty() { Ok(()) } else { Err(Unfit::Invalid(faults)) }
    }
}

impl Doc {
    fn new(value: Value) -> Self {
        let (bytes, hash) = encoded(&value);
        Self { value, bytes, hash, judged: OnceCell::new() }
    }
}

fn of(revision: &Revision) -> &Value {
    &revision.doc
}

/// Whether a document can travel.
pub(super) fn fits(bytes: &[u8]) -> Result<(), Unfit> {
    if bytes.len() > limits::CONFIG_BYTES {
        return Err(Unfit::Large(bytes.len()));
    }
    cbor::check(bytes).map_err(|error| Unfit::Shape(error.to_string()))
}

/// Reads a schema.
pub(super) fn validator(schema: &Value) -> Result<jsonschema::Validator, ConfigError> {
    jsonschema::validator_for(schema).map_err(|error| ConfigError::Schema(error.to_string()))
}
