//! Tokens of agents that speak a field dialect over HTTP: which node a token serves, decided.
//!
//! A token serves one node, the first that comes with it, or the one that it was made for. The text of a join token
//! does too: it is used once and from then on is this node's. Whoever holds a certificate is served by none.

use std::collections::BTreeMap;

use fleet_schemas::{NodeId, limits};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::{Cut, Hash, Identities, Row, Standing, unknown};
use crate::core::{
    Now,
    fleet::{Fleet, Node, NodeNo, Record},
    intake::Effects,
    registry::RegistryError,
};

/// Most field tokens: as many as there are nodes of a large fleet.
pub const FIELD_TOKENS: usize = 10_000;

/// A field token; its text is known to its user only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldToken {
    /// Its id.
    pub id: String,
    /// SHA-256 of its text.
    #[serde(with = "serde_bytes")]
    pub text: Hash,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends, Unix milliseconds.
    pub expires_ms: Option<i64>,
    /// Labels that its node gets.
    pub labels: BTreeMap<String, String>,
    /// The node that it serves.
    pub node: Option<NodeId>,
    /// Whether an admin named that node: then it may be one that is known already.
    pub named: bool,
    /// When its node came first, Unix milliseconds.
    pub bound_ms: Option<i64>,
}

/// A token that somebody brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brought {
    /// The id in it.
    pub id: String,
    /// SHA-256 of its text.
    pub text: Hash,
    /// SHA-256 of its secret, when it is a join token.
    pub join: Option<Hash>,
}

/// Whom a token serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// This node, as it did before.
    Same(NodeId),
    /// This node from now on: to be recorded first.
    First(NodeId),
}

/// Why an agent is not served. The text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// No such token.
    #[error(
        "the hub knows no such token: it was never made, was removed, or is cut off; make one with `fleet field-token create`"
    )]
    Unknown,
    /// Ended.
    #[error("token {0:?} has expired; make a new one with `fleet field-token create`")]
    Expired(String),
    /// It serves another node.
    #[error(
        "token {token:?} serves node {serves} and no other; make one for node {asked} with `fleet field-token create`"
    )]
    Other {
        /// The token.
        token: String,
        /// Its node.
        serves: NodeId,
        /// The node that was asked for.
        asked: NodeId,
    },
    /// A new token came without the name of a node.
    #[error("token {0:?} serves no node yet; name one in the first request")]
    NoNode(String),
    /// The node has another token, or another way to come.
    #[error(
        "node {0} is known already and not by this token; if it is the same machine, make a token that names it: \
         `fleet field-token create --node {0}`"
    )]
    Known(NodeId),
    /// The node holds a certificate, or waits for one.
    #[error("node {0} comes with a certificate by MQTT, and by no token")]
    Certified(NodeId),
    /// The node is shut out.
    #[error("node {0} was revoked")]
    Revoked(NodeId),
    /// A join token that asks for more than a field agent can do.
    #[error(
        "join token {0:?} was made for an agent with a certificate (--approve or --replace); make one with \
         `fleet field-token create`"
    )]
    Join(String),
    /// A join token that was used up.
    #[error("join token {0:?} was used up; make a token with `fleet field-token create`")]
    Used(String),
}

impl NotServed {
    /// Whether whoever came may have guessed.
    #[must_use]
    pub fn is_guess(&self) -> bool {
        matches!(self, Self::Unknown)
    }
}

impl Identities {
    /// Decides whom a token serves; [`super::Change::Serve`] decides the same again at its commit. `asked` is the node
    /// that the request names, if it names one.
    ///
    /// # Errors
    /// [`NotServed`].
    pub fn serve(
        &self,
        fleet: &Fleet,
        brought: &Brought,
        asked: Option<&NodeId>,
        now_ms: i64,
    ) -> Result<Served, NotServed> {
        let Some(token) = self.field.get(&brought.id) else {
            return self.serve_join(fleet, brought, asked, now_ms);
        };
        if !bool::from(token.text.ct_eq(&brought.text)) {
            return Err(NotServed::Unknown);
        }
        if token.expires_ms.is_some_and(|ends| ends <= now_ms) {
            return Err(NotServed::Expired(token.id.clone()));
        }
        let node = match (&token.node, asked) {
            (Some(serves), Some(asked)) if serves != asked => {
                let (token, serves, asked) = (token.id.clone(), serves.clone(), asked.clone());
                return Err(NotServed::Other { token, serves, asked });
            }
            (Some(serves), _) => serves.clone(),
            (None, Some(asked)) => asked.clone(),
            (None, None) => return Err(NotServed::NoNode(token.id.clone())),
        };
        self.may_be_served(&node)?;
        if token.bound_ms.is_some() {
            return Ok(Served::Same(node));
        }
        if !token.named {
            self.is_free(fleet, &node)?;
        }
        Ok(Served::First(node))
    }

    fn serve_join(
        &self,
        fleet: &Fleet,
        brought: &Brought,
        asked: Option<&NodeId>,
        now_ms: i64,
    ) -> Result<Served, NotServed> {
        let known = self.tokens.get(&brought.id).zip(brought.join);
        let Some((token, secret)) = known.filter(|(token, secret)| token.secret.ct_eq(secret).into()) else {
            return Err(NotServed::Unknown);
        };
        debug_assert_eq!(token.secret, secret);
        if token.expires_ms <= now_ms {
            return Err(NotServed::Expired(token.id.clone()));
        }
        if token.used_by.len() >= token.uses as usize {
            return Err(NotServed::Used(token.id.clone()));
        }
        if token.approve || token.replace.is_some() {
            return Err(NotServed::Join(token.id.clone()));
        }
        let node = asked.cloned().ok_or_else(|| NotServed::NoNode(token.id.clone()))?;
        self.may_be_served(&node)?;
        self.is_free(fleet, &node)?;
        Ok(Served::First(node))
    }

    /// Whether a node may come by a token at all.
    fn may_be_served(&self, node: &NodeId) -> Result<(), NotServed> {
        match self.enrolments.get(node).map(|known| &known.standing) {
            Some(Standing::Revoked { .. }) => Err(NotServed::Revoked(node.clone())),
            Some(Standing::Pending | Standing::Enrolled) => Err(NotServed::Certified(node.clone())),
            None => Ok(()),
        }
    }

    /// Whether nobody else ever spoke under this id. (One that was only imported did not.)
    fn is_free(&self, fleet: &Fleet, node: &NodeId) -> Result<(), NotServed> {
        let heard = fleet.nodes.get(node).is_some_and(|known| known.record.session.is_some());
        if heard || self.is_served(node) { Err(NotServed::Known(node.clone())) } else { Ok(()) }
    }

    /// Whether a token serves this node: then nobody speaks for it by MQTT.
    #[must_use]
    pub fn is_served(&self, node: &NodeId) -> bool {
        self.field.values().any(|token| token.node.as_ref() == Some(node))
    }

    pub(super) fn put_field(&mut self, token: FieldToken, now: Now) -> Result<Row, RegistryError> {
        if self.field.len() >= FIELD_TOKENS {
            let why = format!("there are {FIELD_TOKENS} field tokens already; remove some first");
            return Err(field("/node", why));
        }
        if token.labels.len() > limits::LABELS_PER_NODE {
            return Err(field("/labels", format!("at most {} labels are allowed", limits::LABELS_PER_NODE)));
        }
        for (key, value) in &token.labels {
            let pointer = format!("/labels/{}", key.replace('~', "~0").replace('/', "~1"));
            fleet_schemas::MetricName::parse(key).map_err(|error| field(&pointer, error.to_string()))?;
            if value.len() > limits::LABEL_BYTES || value.chars().any(char::is_control) {
                return Err(field(&pointer, "at most 63 bytes without control characters are allowed"));
            }
        }
        if token.expires_ms.is_some_and(|ends| ends <= now.wall_ms) {
            return Err(field("/ttl_s", "a token needs some time"));
        }
        if let Some(node) = &token.node {
            self.may_be_served(node).map_err(|why| field("/node", why.to_string()))?;
        }
        if self.field.contains_key(&token.id) || self.tokens.contains_key(&token.id) {
            return Err(RegistryError::Exists { what: "token", name: token.id });
        }
        let id = token.id.clone();
        self.field.insert(id.clone(), token);
        Ok(Row::Field(id))
    }

    pub(super) fn remove_field(&mut self, id: String) -> Result<Row, RegistryError> {
        self.field.remove(&id).ok_or_else(|| unknown("field token", &id))?;
        Ok(Row::Field(id))
    }
}

/// Records that a token serves a node from now on, and makes the node.
pub(super) fn take(
    identities: &mut Identities,
    fleet: &mut Fleet,
    effects: &mut Effects,
    (brought, asked): (&Brought, &NodeId),
    highest: NodeNo,
    now: Now,
) -> Result<(), RegistryError> {
    let node = match identities.serve(fleet, brought, Some(asked), now.wall_ms)? {
        Served::Same(_) => return Ok(()),
        Served::First(node) => node,
    };
    if let Some(join) = identities.tokens.get_mut(&brought.id).filter(|_| brought.join.is_some()) {
        join.used_by.push(node.clone());
        let token = FieldToken {
            id: brought.id.clone(),
            text: brought.text,
            created_ms: join.created_ms,
            created_by: join.created_by.clone(),
            // The time of a join token ends the joining, not the node.
            expires_ms: None,
            labels: join.labels.clone(),
            node: None,
            named: false,
            bound_ms: None,
        };
        effects.identities.insert(Row::Token(brought.id.clone()));
        identities.field.insert(brought.id.clone(), token);
    }
    let had_token =
        identities.field.values().any(|token| token.node.as_ref() == Some(&node) && token.bound_ms.is_some());
    let Some(token) = identities.field.get_mut(&brought.id) else {
        return Err(NotServed::Unknown.into());
    };
    token.node = Some(node.clone());
    token.bound_ms = Some(now.wall_ms);
    effects.identities.insert(Row::Field(brought.id.clone()));
    let known = fleet.nodes.get(&node).map(|known| known.record.clone());
    let was_heard = known.as_ref().is_some_and(|record| record.session.is_some());
    // Under another token of its own, it is the same machine.
    if was_heard && !had_token {
        effects.left.insert(node.clone());
    }
    if known.is_some() {
        // Whoever spoke under this id by MQTT did so with a mere secret.
        effects.cuts.insert(Cut::Node { node: node.clone(), why: "a field token serves it from now on" });
    }
    let mut record = known.unwrap_or_else(|| Record::new(node.clone(), now.wall_ms));
    record.labels.extend(token.labels.clone());
    match fleet.nodes.get_mut(&node) {
        Some(known) => known.record = record,
        None => fleet.insert(Node::new(fleet.number_after(highest), record)),
    }
    effects.nodes.insert(node.clone());
    effects.changed.insert(node);
    Ok(())
}

fn field(pointer: &str, why: impl Into<String>) -> RegistryError {
    RegistryError::Field { pointer: pointer.to_owned(), why: why.into() }
}
