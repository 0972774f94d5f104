//! Machines become nodes, renew, wait, and are shut out.

use fleet_schemas::{NodeId, event::Severity, limits};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::{
    Ask, BARRED, Certificate, Cut, Enrolment, Hash, Identities, Refused, Row, Shown, TOKEN_KEPT_MS, TOKENS,
    Token, unknown,
};
use crate::core::{
    Now,
    fleet::{Fleet, Node, NodeNo, Record},
    intake::Effects,
    ledger::Counters,
    registry::RegistryError,
};

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Standing {
    /// Waits for `fleet node approve`.
    Pending,
    /// May come in.
    Enrolled,
    /// Shut out.
    Revoked {
        /// Since when, Unix milliseconds.
        at_ms: i64,
        /// Why.
        reason: String,
    },
}

/// What a machine that asks is to be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enrolled {
    /// A certificate has to be made for it, under this id.
    Issue(NodeId),
    /// The one it was given before.
    Same(NodeId, Certificate),
    /// It has to wait; the request has to be recorded when it is new.
    Wait {
        /// Under which id.
        node: NodeId,
        /// Whether nothing of it is recorded yet.
        new: bool,
    },
}

impl Identities {
    /// Decides on a machine that asks to join; [`super::Change::Enrol`] decides the same again at its commit.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn enrol(&self, fleet: &Fleet, ask: &Ask, now_ms: i64) -> Result<Enrolled, Refused> {
        let token = self.tokens.get(&ask.token).ok_or_else(|| Refused::TokenUnknown(ask.token.clone()))?;
        if !bool::from(token.secret.ct_eq(&ask.secret)) {
            return Err(Refused::TokenSecret(ask.token.clone()));
        }
        let node = token.replace.clone().unwrap_or_else(|| ask.node.clone());
        let known = self.enrolments.get(&node);
        // Whoever asks a second time with the same key is answered the same, whatever became of the token.
        if let Some(known) = known.filter(|known| known.key == ask.key && known.token == token.id) {
            return match (&known.standing, &known.certificate) {
                (Standing::Revoked { .. }, _) => Err(Refused::Revoked(node)),
                (Standing::Pending, _) => Ok(Enrolled::Wait { node, new: false }),
                (Standing::Enrolled, Some(certificate)) if certificate.not_after_ms > now_ms => {
                    Ok(Enrolled::Same(node, certificate.clone()))
                }
                (Standing::Enrolled, _) => Ok(Enrolled::Issue(node)),
            };
        }
        if token.expires_ms <= now_ms {
            return Err(Refused::TokenExpired(token.id.clone()));
        }
        if token.used_by.len() >= token.uses as usize {
            let users: Vec<_> = token.used_by.iter().map(NodeId::as_str).collect();
            return Err(Refused::TokenUsed(token.id.clone(), users.join(", ")));
        }
        if token.replace.is_none() {
            match known.map(|known| &known.standing) {
                Some(Standing::Revoked { .. }) => return Err(Refused::Revoked(node)),
                Some(Standing::Pending | Standing::Enrolled) => return Err(Refused::NodeExists(node)),
                // A node that was only imported has no key; one that was heard has a secret that this machine lacks.
                None if fleet.nodes.get(&node).is_some_and(|known| known.record.session.is_some()) => {
                    return Err(Refused::NodeExists(node));
                }
                None => {}
            }
        }
        if token.approve { Ok(Enrolled::Wait { node, new: true }) } else { Ok(Enrolled::Issue(node)) }
    }

    /// Judges a certificate of this hub's that says it is this node's.
    ///
    /// A node that this store does not know is let in: its certificate is the hub's own word, given after the backup
    /// that this store comes from. So is a key that was renewed since.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn admit(&self, node: &NodeId, shown: &Shown, now_ms: i64) -> Result<(), Refused> {
        self.known(node, shown)?;
        if shown.not_after_ms <= now_ms { Err(Refused::Expired(node.clone())) } else { Ok(()) }
    }

    /// As [`Identities::admit`], without looking at the time: for renewal.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn known(&self, node: &NodeId, shown: &Shown) -> Result<(), Refused> {
        let Some(known) = self.enrolments.get(node) else { return Ok(()) };
        let barred = || known.barred.iter().any(|barred| **barred == shown.key);
        match known.standing {
            Standing::Revoked { .. } => Err(Refused::Revoked(node.clone())),
            Standing::Pending => Err(Refused::Pending(node.clone())),
            Standing::Enrolled if known.key == shown.key => Ok(()),
            // Keys are remembered one by one for boards and hubs whose clocks were wrong.
            Standing::Enrolled if barred() || shown.issued_ms < known.since_ms => {
                Err(Refused::Replaced(node.clone()))
            }
            Standing::Enrolled => Ok(()),
        }
    }

    /// Decides on a node that shows a certificate and wants one for another key: the one it was given for that key
    /// already, or none when it has to be made; [`super::Change::Renew`] decides the same again at its commit.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn renewal(
        &self,
        node: &NodeId,
        shown: &Shown,
        key: &Hash,
        now_ms: i64,
    ) -> Result<Option<Certificate>, Refused> {
        self.known(node, shown)?;
        let Some(known) = self.enrolments.get(node) else { return Ok(None) };
        if known.barred.iter().any(|barred| **barred == *key) {
            return Err(Refused::Replaced(node.clone()));
        }
        let given =
            known.certificate.as_ref().filter(|given| known.key == *key && given.not_after_ms > now_ms);
        Ok(given.cloned())
    }

    /// Whether this node may come only with a certificate, or not at all.
    #[must_use]
    pub fn is_held(&self, node: &NodeId) -> bool {
        self.enrolments.contains_key(node)
    }

    pub(super) fn put_token(&mut self, token: Token, now: Now) -> Result<Row, RegistryError> {
        if self.tokens.len() >= TOKENS {
            let ended = |token: &Token| token.expires_ms <= now.wall_ms;
            let Some(oldest) = self.tokens.values().filter(|token| ended(token)).min_by_key(|t| t.expires_ms)
            else {
                return Err(field(
                    "/uses",
                    format!("there are {TOKENS} join tokens already; remove some first"),
                ));
            };
            let oldest = oldest.id.clone();
            self.tokens.remove(&oldest);
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
        if token.uses == 0 || token.expires_ms <= now.wall_ms {
            return Err(field("/uses", "a token needs at least one use and some time"));
        }
        if token.replace.is_some() && token.uses != 1 {
            return Err(field("/uses", "a token that replaces a node can be used once"));
        }
        if self.tokens.contains_key(&token.id) {
            return Err(RegistryError::Exists { what: "join token", name: token.id });
        }
        let id = token.id.clone();
        self.tokens.insert(id.clone(), token);
        Ok(Row::Token(id))
    }

    /// Forgets tokens that ended long ago, but not those that a node without a certificate still asks with: it waits for an
    /// operator, or was approved while it was off.
    pub(super) fn forget_tokens(&mut self, effects: &mut Effects, now: Now) {
        let before = now.wall_ms - TOKEN_KEPT_MS;
        let waiting = |id: &str| {
            let waits = |node: &Enrolment| match node.standing {
                Standing::Pending => true,
                Standing::Enrolled => node.certificate.is_none(),
                Standing::Revoked { .. } => false,
            };
            self.enrolments.values().any(|node| node.token == id && waits(node))
        };
        let old = |token: &&Token| token.expires_ms < before && !waiting(&token.id);
        let gone: Vec<_> = self.tokens.values().filter(old).map(|token| token.id.clone()).collect();
        for id in gone {
            self.tokens.remove(&id);
            effects.identities.insert(Row::Token(id));
        }
    }

    pub(super) fn renew(
        &mut self,
        node: &NodeId,
        shown: &Shown,
        key: Hash,
        certificate: Certificate,
        now: Now,
    ) -> Result<(), RegistryError> {
        if self.renewal(node, shown, &key, now.wall_ms)?.is_some() {
            return Ok(());
        }
        let known = self.enrolments.entry(node.clone());
        // A node of after a backup: the certificate that it shows is the oldest that is known to be its own.
        let known = known.or_insert_with(|| Enrolment::new(key, String::new(), shown.issued_ms));
        known.key = key;
        // A hub whose clock was ahead must not hold that against what it issues by the right time.
        known.since_ms = known.since_ms.min(certificate.issued_ms);
        known.certificate = Some(certificate);
        Ok(())
    }

    pub(super) fn approve(&mut self, node: &NodeId) -> Result<(), RegistryError> {
        let known = self.enrolments.get_mut(node).ok_or_else(|| unknown("node that waits", node.as_str()))?;
        match &known.standing {
            Standing::Pending => known.standing = Standing::Enrolled,
            Standing::Enrolled => {}
            Standing::Revoked { .. } => return Err(Refused::Revoked(node.clone()).into()),
        }
        Ok(())
    }

    pub(super) fn revoke(
        &mut self,
        fleet: &Fleet,
        node: &NodeId,
        reason: String,
        now: Now,
    ) -> Result<(), RegistryError> {
        let standing = Standing::Revoked { at_ms: now.wall_ms, reason };
        match self.enrolments.get_mut(node) {
            // The first word on it stays.
            Some(known) if matches!(known.standing, Standing::Revoked { .. }) => {}
            Some(known) => known.standing = standing,
            None if fleet.nodes.contains_key(node) => {
                let mut known = Enrolment::new([0; 32], String::new(), now.wall_ms);
                known.standing = standing;
                self.enrolments.insert(node.clone(), known);
            }
            None => return Err(unknown("node", node.as_str())),
        }
        Ok(())
    }
}

impl Enrolment {
    /// A node that came with this certificate.
    #[must_use]
    pub fn enrolled(key: Hash, certificate: Certificate) -> Self {
        let since_ms = certificate.issued_ms;
        Self { certificate: Some(certificate), ..Self::new(key, String::new(), since_ms) }
    }

    pub(super) fn new(key: Hash, token: String, since_ms: i64) -> Self {
        Self { standing: Standing::Enrolled, key, certificate: None, barred: Vec::new(), token, since_ms }
    }

    /// Takes another key's place.
    fn replaces(&mut self, old: Self) {
        self.barred = old.barred;
        if !self.barred.iter().any(|barred| **barred == old.key) {
            self.barred.push(old.key.into());
        }
        // A machine that was shut out and is let in again with the key it had.
        self.barred.retain(|barred| **barred != self.key);
        let extra = self.barred.len().saturating_sub(BARRED);
        self.barred.drain(..extra);
    }
}

pub(super) fn take(
    identities: &mut Identities,
    fleet: &mut Fleet,
    effects: &mut Effects,
    ask: Ask,
    highest: NodeNo,
    now: Now,
) -> Result<(), RegistryError> {
    let (node, standing) = match identities.enrol(fleet, &ask, now.wall_ms)? {
        Enrolled::Same(..) | Enrolled::Wait { new: false, .. } => return Ok(()),
        Enrolled::Wait { node, new: true } => (node, Standing::Pending),
        // Nothing was made for it: an operator changed his mind between question and commit. It asks again.
        Enrolled::Issue(node) if ask.certificate.is_none() => return Err(Refused::Pending(node).into()),
        Enrolled::Issue(node) => (node, Standing::Enrolled),
    };
    let mut enrolment = Enrolment::new(ask.key, ask.token.clone(), now.wall_ms);
    if standing == Standing::Enrolled {
        enrolment.since_ms = ask.certificate.as_ref().map_or(now.wall_ms, |made| made.issued_ms);
        enrolment.certificate = ask.certificate;
    }
    enrolment.standing = standing;
    fleet.restore(&node);
    if fleet.nodes.contains_key(&node) {
        // Whoever spoke under this id did so with another key, or with a mere secret.
        effects.cuts.insert(Cut::Node { node: node.clone(), why: "another machine has its place" });
    }
    let old = identities.enrolments.remove(&node);
    // The same machine asks again where its certificate has ended, or an operator approved it.
    let is_same = old.as_ref().is_some_and(|old| (old.key, &old.token) == (ask.key, &ask.token));
    // What waits for a node that was imported, or for one that was approved and has not asked again, waits for this machine.
    let had_another = old.as_ref().is_some_and(|old| old.certificate.is_some())
        || fleet.nodes.get(&node).is_some_and(|known| known.record.session.is_some());
    if had_another && !is_same {
        effects.left.insert(node.clone());
    }
    if let Some(old) = old {
        enrolment.replaces(old);
    }
    identities.enrolments.insert(node.clone(), enrolment);
    let labels = identities.tokens.get_mut(&ask.token).map(|token| {
        if !token.used_by.contains(&node) {
            token.used_by.push(node.clone());
        }
        token.labels.clone()
    });
    if let Some(known) = fleet.nodes.get_mut(&node).filter(|_| !is_same) {
        give_up(known, effects, now);
    }
    let known = fleet.nodes.get(&node).map(|known| known.record.clone());
    let mut record = known.unwrap_or_else(|| Record::new(node.clone(), now.wall_ms));
    record.labels.extend(labels.unwrap_or_default());
    match fleet.nodes.get_mut(&node) {
        Some(known) => known.record = record,
        None => fleet.insert(Node::new(fleet.number_after(highest), record)),
    }
    effects.nodes.insert(node.clone());
    effects.changed.insert(node.clone());
    effects.identities.insert(Row::Token(ask.token));
    effects.identities.insert(Row::Enrolment(node));
    Ok(())
}

/// Another machine has this node's place: what the old one still has is written off, and nothing that it counted is held
/// against the new one. Name, site, labels, configuration and history stay.
fn give_up(node: &mut Node, effects: &mut Effects, now: Now) {
    let was_heard = node.record.session.take().is_some();
    node.record.session_epoch = 0;
    node.record.config = None;
    node.moves = false;
    let all = write_off(node, effects, now);
    if was_heard {
        let message = match all {
            0 => "another machine has this node's place; nothing was left at the old one".to_owned(),
            _ => {
                format!("another machine has this node's place; {all} records at the old one are written off")
            }
        };
        let severity = if all == 0 { Severity::Info } else { Severity::Warning };
        effects.by_hub(node, "node_replaced", severity, message, now);
    }
}

/// Gives up what is still at the edge, and books it. Gives those records.
pub(in crate::core) fn write_off(node: &mut Node, effects: &mut Effects, now: Now) -> u64 {
    let id = node.record.id.clone();
    let mut all = 0;
    for (lane, stream, records) in node.write_off(now.wall_ms) {
        effects.marks.insert((id.clone(), lane, stream));
        effects.book(node.number, lane, Counters { written_off: records, ..Counters::default() });
        all += records;
    }
    all
}

fn field(pointer: &str, why: impl Into<String>) -> RegistryError {
    RegistryError::Field { pointer: pointer.to_owned(), why: why.into() }
}
