//! What was taken back, line by line: nodes, tokens, tools and operators that are shut out, and join tokens that were
//! used. Lives outside of what a backup holds, so that a restored hub shuts out again whom it shut out since.
//!
//! Pure: which lines follow from changed rows, and what lines do to rows. Lines may repeat; applied in order they come
//! to the same.

use std::collections::{BTreeMap, BTreeSet};

use fleet_schemas::NodeId;
use serde::{Deserialize, Serialize};

use super::{Enrolment, Hash, Identities, Row, Standing};

/// A change that has to survive a restore. JSON, one line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Line {
    /// A node was shut out.
    NodeRevoked {
        /// Which.
        node: NodeId,
        /// Its newest key, SHA-256.
        key: Digits,
        /// When, Unix milliseconds.
        at_ms: i64,
        /// Why.
        reason: String,
    },
    /// A machine took the place of another, or was let in again.
    NodeLetIn {
        /// Which.
        node: NodeId,
        /// Its key, SHA-256.
        key: Digits,
        /// Keys that are refused.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        barred: Vec<Digits>,
        /// The join token.
        token: String,
        /// When, Unix milliseconds.
        since_ms: i64,
    },
    /// A join token was used.
    TokenUsed {
        /// Which.
        token: String,
        /// By which nodes: those that no line before has. Builds before wrote all of them each time.
        nodes: Vec<NodeId>,
    },
    /// A join token was taken back.
    TokenRemoved {
        /// Which.
        token: String,
    },
    /// A tool was shut out.
    AccessRemoved {
        /// Its user name.
        name: String,
        /// When, Unix milliseconds: one of that name that was made later stays.
        at_ms: i64,
    },
    /// An operator was shut out.
    OperatorRemoved {
        /// The name.
        name: String,
        /// When, Unix milliseconds: one of that name that was made later stays.
        at_ms: i64,
    },
    /// A CA of the hub's: a hub that is restored from a backup of before lets in whom it signed.
    AuthorityMade {
        /// Names it.
        pin: String,
        /// Its certificate, PEM; but for the first signed by the CA before it.
        certificate: String,
        /// When, Unix milliseconds.
        at_ms: i64,
    },
    /// A CA is trusted no more.
    AuthorityDropped {
        /// Which.
        pin: String,
        /// When, Unix milliseconds.
        at_ms: i64,
    },
    /// A field agent's token was taken back.
    FieldRemoved {
        /// Which.
        token: String,
    },
}

/// 32 bytes as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digits(String);

/// What lines did to restored rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Rows that changed.
    pub rows: BTreeSet<Row>,
    /// Of those: nodes, tokens, tools and operators that are shut out now and were not in the backup.
    pub shut_out: u64,
}

/// What the lines that were written say of nodes, so that not everything is written again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    nodes: BTreeMap<NodeId, (bool, i64)>,
    tokens: BTreeMap<String, BTreeSet<NodeId>>,
    // CAs that were made and not dropped.
    authorities: BTreeSet<String>,
}

impl Digits {
    fn of(hash: &Hash) -> Self {
        Self(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn hash(&self) -> Option<Hash> {
        let bytes: Option<Vec<u8>> =
            (0..32).map(|at| u8::from_str_radix(self.0.get(2 * at..2 * at + 2)?, 16).ok()).collect();
        bytes.filter(|_| self.0.len() == 64)?.try_into().ok()
    }
}

impl Said {
    /// Takes a line that is written.
    pub fn take(&mut self, line: &Line) {
        match line {
            Line::NodeRevoked { node, at_ms, .. } => drop(self.nodes.insert(node.clone(), (true, *at_ms))),
            Line::NodeLetIn { node, since_ms, .. } => {
                self.nodes.insert(node.clone(), (false, *since_ms));
            }
            Line::TokenUsed { token, nodes } => {
                self.tokens.entry(token.clone()).or_default().extend(nodes.iter().cloned());
            }
            Line::TokenRemoved { token } => drop(self.tokens.remove(token)),
            Line::AuthorityMade { pin, .. } => drop(self.authorities.insert(pin.clone())),
            Line::AuthorityDropped { pin, .. } => drop(self.authorities.remove(pin)),
            Line::AccessRemoved { .. } | Line::OperatorRemoved { .. } | Line::FieldRemoved { .. } => {}
        }
    }

    /// The lines that follow from the CAs that there are, each as [`Line::AuthorityMade`], and are not written yet.
    #[must_use]
    pub fn authorities(&self, there: Vec<Line>, at_ms: i64) -> Vec<Line> {
        let pin = |line: &Line| match line {
            Line::AuthorityMade { pin, .. } => Some(pin.clone()),
            Line::AuthorityDropped { .. }
            | Line::NodeRevoked { .. }
            | Line::NodeLetIn { .. }
            | Line::TokenUsed { .. }
            | Line::TokenRemoved { .. }
            | Line::AccessRemoved { .. }
            | Line::OperatorRemoved { .. }
            | Line::FieldRemoved { .. } => None,
        };
        let pins: BTreeSet<String> = there.iter().filter_map(pin).collect();
        let gone = self.authorities.difference(&pins).cloned();
        let gone = gone.map(|pin| Line::AuthorityDropped { pin, at_ms });
        let is_news = |line: &Line| pin(line).is_some_and(|pin| !self.authorities.contains(&pin));
        there.into_iter().filter(is_news).chain(gone.collect::<Vec<_>>()).collect()
    }

    /// The lines that follow from rows as they are now, and are not written yet. Of a row that is gone, `at_ms` is when.
    #[must_use]
    pub fn news<'a>(
        &self,
        identities: &Identities,
        rows: impl IntoIterator<Item = &'a Row>,
        at_ms: i64,
    ) -> Vec<Line> {
        let line = |row: &Row| match row {
            Row::Token(id) => match identities.tokens.get(id) {
                Some(token) => {
                    let said = self.tokens.get(id);
                    let is_news = |node: &&NodeId| said.is_none_or(|said| !said.contains(*node));
                    let nodes: Vec<_> = token.used_by.iter().filter(is_news).cloned().collect();
                    (!nodes.is_empty()).then(|| Line::TokenUsed { token: id.clone(), nodes })
                }
                None => Some(Line::TokenRemoved { token: id.clone() }),
            },
            Row::Enrolment(node) => self.node(node, identities.enrolments.get(node)?),
            Row::Access(name) => (!identities.access.contains_key(name))
                .then(|| Line::AccessRemoved { name: name.clone(), at_ms }),
            Row::Operator(name) => (!identities.operators.contains_key(name))
                .then(|| Line::OperatorRemoved { name: name.clone(), at_ms }),
            Row::Field(id) => {
                (!identities.field.contains_key(id)).then(|| Line::FieldRemoved { token: id.clone() })
            }
        };
        rows.into_iter().filter_map(line).collect()
    }

    /// The lines that all rows come to and that are not written yet: what an older build, or a crash, left out.
    #[must_use]
    pub fn missing(&self, identities: &Identities, at_ms: i64) -> Vec<Line> {
        let tokens = identities.tokens.keys().cloned().map(Row::Token);
        let nodes = identities.enrolments.keys().cloned().map(Row::Enrolment);
        let rows: Vec<Row> = tokens.chain(nodes).collect();
        self.news(identities, &rows, at_ms)
    }

    fn node(&self, node: &NodeId, known: &Enrolment) -> Option<Line> {
        let (node, key) = (node.clone(), Digits::of(&known.key));
        let said = self.nodes.get(&node).copied();
        match &known.standing {
            Standing::Revoked { at_ms, reason } if said != Some((true, *at_ms)) => {
                Some(Line::NodeRevoked { node, key, at_ms: *at_ms, reason: reason.clone() })
            }
            Standing::Enrolled if said != Some((false, known.since_ms)) => Some(Line::NodeLetIn {
                node,
                key,
                barred: known.barred.iter().map(|barred| Digits::of(barred)).collect(),
                token: known.token.clone(),
                since_ms: known.since_ms,
            }),
            Standing::Revoked { .. } | Standing::Enrolled | Standing::Pending => None,
        }
    }
}

/// Does to restored rows what the lines say, in order.
pub fn apply(identities: &mut Identities, lines: &[Line]) -> Applied {
    let mut applied = Applied::default();
    for line in lines {
        let row = match line {
            Line::NodeRevoked { node, key, at_ms, reason } => {
                revoke(identities, node, key, *at_ms, reason).then(|| Row::Enrolment(node.clone()))
            }
            Line::NodeLetIn { node, key, barred, token, since_ms } => {
                if let_in(identities, node, key, (barred, token, *since_ms)) {
                    applied.rows.insert(Row::Enrolment(node.clone()));
                }
                None
            }
            Line::TokenUsed { token, nodes } => {
                if let Some(known) = identities.tokens.get_mut(token) {
                    let before = known.used_by.len();
                    let is_news = |node: &&NodeId| !known.used_by.contains(*node);
                    let news: Vec<_> = nodes.iter().filter(is_news).cloned().collect();
                    known.used_by.extend(news);
                    if known.used_by.len() > before {
                        applied.rows.insert(Row::Token(token.clone()));
                    }
                }
                None
            }
            Line::TokenRemoved { token } => {
                identities.tokens.remove(token).map(|_| Row::Token(token.clone()))
            }
            Line::AccessRemoved { name, at_ms } => {
                let old = identities.access.get(name).is_some_and(|known| known.created_ms <= *at_ms);
                old.then(|| drop(identities.access.remove(name))).map(|()| Row::Access(name.clone()))
            }
            Line::OperatorRemoved { name, at_ms } => {
                let old = identities.operators.get(name).is_some_and(|known| known.created_ms <= *at_ms);
                old.then(|| drop(identities.operators.remove(name))).map(|()| Row::Operator(name.clone()))
            }
            Line::FieldRemoved { token } => identities.field.remove(token).map(|_| Row::Field(token.clone())),
            // They are no rows: the keys lie elsewhere.
            Line::AuthorityMade { .. } | Line::AuthorityDropped { .. } => None,
        };
        if let Some(row) = row {
            applied.shut_out += 1;
            applied.rows.insert(row);
        }
    }
    applied
}

fn revoke(identities: &mut Identities, node: &NodeId, key: &Digits, at_ms: i64, reason: &str) -> bool {
    let Some(key) = key.hash() else { return false };
    let standing = Standing::Revoked { at_ms, reason: reason.to_owned() };
    // One that joined after the backup is shut out all the same: a node that is not known would be let in.
    let new = || Enrolment::new(key, String::new(), at_ms);
    let known = identities.enrolments.entry(node.clone()).or_insert_with(new);
    // Another machine has had its place since.
    let is_news = known.standing != standing && known.since_ms <= at_ms;
    if is_news {
        known.standing = standing;
    }
    is_news
}

fn let_in(
    identities: &mut Identities,
    node: &NodeId,
    key: &Digits,
    (barred, token, since_ms): (&[Digits], &str, i64),
) -> bool {
    let Some(key) = key.hash() else { return false };
    // One that joined after the backup shows a certificate of this hub's: that is enough, unless another machine was shut
    // out for it, which would be let in with it.
    if !identities.enrolments.contains_key(node) && !barred.is_empty() {
        identities.enrolments.insert(node.clone(), Enrolment::new(key, String::new(), i64::MIN));
    }
    let Some(known) = identities.enrolments.get_mut(node) else { return false };
    if known.since_ms >= since_ms {
        return false;
    }
    let mut refused: Vec<_> = barred.iter().filter_map(Digits::hash).collect();
    if known.key != key && !refused.contains(&known.key) {
        refused.push(known.key);
    }
    known.barred = refused.into_iter().map(Into::into).collect();
    known.standing = Standing::Enrolled;
    (known.key, known.certificate, known.since_ms) = (key, None, since_ms);
    token.clone_into(&mut known.token);
    true
}

/// Nodes that may come in by the rows and by lines of after them, whatever certificate they show.
#[must_use]
pub fn let_in_since(identities: &Identities, lines: &[Line]) -> BTreeSet<NodeId> {
    let may = |node: &NodeId| {
        identities.enrolments.get(node).is_none_or(|known| known.standing == Standing::Enrolled)
    };
    let later = lines.iter().filter_map(|line| match line {
        Line::NodeLetIn { node, .. } => Some(node),
        Line::NodeRevoked { .. }
        | Line::TokenUsed { .. }
        | Line::TokenRemoved { .. }
        | Line::AccessRemoved { .. }
        | Line::OperatorRemoved { .. }
        | Line::AuthorityMade { .. }
        | Line::AuthorityDropped { .. }
        | Line::FieldRemoved { .. } => None,
    });
    identities.enrolments.keys().chain(later).filter(|node| may(node)).cloned().collect()
}

/// Ends join tokens that are open: without the lines nobody can tell whether they were used since the backup.
pub fn end_tokens(identities: &mut Identities, now_ms: i64) -> BTreeSet<Row> {
    let open = identities
        .tokens
        .values_mut()
        .filter(|token| token.expires_ms > now_ms && token.used_by.len() < token.uses as usize);
    open.map(|token| {
        token.expires_ms = now_ms;
        Row::Token(token.id.clone())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::identity::{Access, Refused, Shown, Token};

    fn id(text: &str) -> NodeId {
        NodeId::parse(text).unwrap()
    }

    fn enrolment(key: u8, since_ms: i64) -> Enrolment {
        Enrolment {
            standing: Standing::Enrolled,
            key: [key; 32],
            certificate: None,
            barred: Vec::new(),
            token: "t".to_owned(),
            since_ms,
        }
    }

    fn token(uses: u32) -> Token {
        Token {
            id: "t".to_owned(),
            secret: [0; 32],
            created_ms: 0,
            created_by: String::new(),
            expires_ms: 1_000,
            uses,
            labels: BTreeMap::new(),
            approve: false,
            replace: None,
            used_by: Vec::new(),
        }
    }

    fn access(created_ms: i64) -> Access {
        Access {
            name: "grafana".to_owned(),
            read: Vec::new(),
            write: Vec::new(),
            password: None,
            key: None,
            created_ms,
            created_by: String::new(),
        }
    }

    /// A hub's life after its backup: what is written of it, brought to the backup, shuts out the same.
    #[test]
    fn lines_bring_a_backup_to_where_the_hub_was() {
        let mut hub = Identities::default();
        hub.tokens.insert("t".to_owned(), token(3));
        hub.enrolments.insert(id("a"), enrolment(1, 10));
        hub.enrolments.insert(id("b"), enrolment(2, 10));
        hub.access.insert("grafana".to_owned(), access(5));
        let mut restored = hub.clone();
        let mut said = Said::default();
        let mut lines = said.missing(&hub, 20);
        assert_eq!(lines.len(), 2, "both nodes");
        lines.iter().for_each(|line| said.take(line));
        assert_eq!(said.missing(&hub, 21), []);

        let revoked = |at_ms| Standing::Revoked { at_ms, reason: "stolen".to_owned() };
        // One joins and is shut out, one is shut out and replaced, one is replaced at once, a tool goes.
        hub.enrolments.insert(id("late"), Enrolment { standing: revoked(40), ..enrolment(9, 30) });
        hub.tokens.get_mut("t").unwrap().used_by = vec![id("late")];
        hub.access.remove("grafana");
        hub.enrolments.get_mut(&id("a")).unwrap().standing = revoked(41);
        let rows = [
            Row::Enrolment(id("late")),
            Row::Token("t".to_owned()),
            Row::Access("grafana".to_owned()),
            Row::Enrolment(id("a")),
        ];
        for line in said.news(&hub, &rows, 45) {
            said.take(&line);
            lines.push(line);
        }
        let barred = vec![[1; 32].into()];
        hub.enrolments.insert(id("a"), Enrolment { barred, ..enrolment(7, 50) });
        hub.enrolments.insert(id("b"), Enrolment { barred: vec![[2; 32].into()], ..enrolment(8, 51) });
        let rows = [Row::Enrolment(id("a")), Row::Enrolment(id("b"))];
        lines.extend(said.news(&hub, &rows, 52));

        // As they come out of the file.
        let text: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        let lines: Vec<Line> = text.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let applied = apply(&mut restored, &lines);
        assert_eq!(applied.shut_out, 3, "late, a, grafana: {lines:?}");
        assert_eq!(restored.tokens, hub.tokens);
        assert_eq!(restored.access, hub.access);
        let same = |node: &str| restored.enrolments[&id(node)] == hub.enrolments[&id(node)];
        assert!(same("a") && same("b"), "{:?}", restored.enrolments);
        assert_eq!(restored.enrolments[&id("late")].standing, revoked(40));
        // A second time nothing happens.
        assert_eq!(apply(&mut restored, &lines).rows, BTreeSet::new());
        assert_eq!(restored.enrolments[&id("a")].key, [7; 32]);
    }

    /// A machine of after the backup that lost its place shows a certificate of this hub's, too.
    #[test]
    fn a_machine_that_joined_and_was_replaced_after_the_backup_stays_out() {
        let (mut hub, mut restored) = (Identities::default(), Identities::default());
        let (mut said, mut lines) = (Said::default(), Vec::new());
        let replaced = Enrolment { barred: vec![[1; 32].into()], ..enrolment(2, 40) };
        for (at_ms, enrolment) in [(30, enrolment(1, 30)), (40, replaced)] {
            hub.enrolments.insert(id("a"), enrolment);
            for line in said.news(&hub, &[Row::Enrolment(id("a"))], at_ms) {
                said.take(&line);
                lines.push(line);
            }
        }
        let applied = apply(&mut restored, &lines);
        assert_eq!(applied.rows, [Row::Enrolment(id("a"))].into(), "{lines:?}");
        let shown = |key| Shown { key: [key; 32], issued_ms: 35, not_after_ms: 1_000 };
        let replaced = Err(Refused::Replaced(id("a")));
        assert_eq!(restored.admit(&id("a"), &shown(1), 50), replaced);
        assert_eq!(restored.renewal(&id("a"), &shown(1), &[3; 32], 50).err(), replaced.err());
        assert_eq!(restored.admit(&id("a"), &shown(2), 50), Ok(()));
    }

    #[test]
    fn a_ca_is_written_once_and_its_end_once() {
        let made =
            |pin: &str| Line::AuthorityMade { pin: pin.to_owned(), certificate: String::new(), at_ms: 1 };
        let mut said = Said::default();
        let mut hear = |there: &[&str], at_ms| {
            let lines = said.authorities(there.iter().map(|pin| made(pin)).collect(), at_ms);
            lines.iter().for_each(|line| said.take(line));
            lines
        };
        assert_eq!(hear(&["a"], 2), [made("a")]);
        assert_eq!(hear(&["a"], 3), []);
        assert_eq!(hear(&["a", "b"], 4), [made("b")]);
        let dropped = Line::AuthorityDropped { pin: "a".to_owned(), at_ms: 5 };
        assert_eq!(hear(&["b"], 5), [dropped]);
        assert_eq!(hear(&["b"], 6), []);
    }

    #[test]
    fn without_lines_open_tokens_end() {
        let mut restored = Identities::default();
        restored.tokens.insert("t".to_owned(), token(2));
        assert_eq!(end_tokens(&mut restored, 500), [Row::Token("t".to_owned())].into());
        assert_eq!(restored.tokens["t"].expires_ms, 500);
        assert!(end_tokens(&mut restored, 600).is_empty());
    }

    #[test]
    fn a_tool_of_the_same_name_that_is_newer_stays() {
        let mut restored = Identities::default();
        restored.access.insert("grafana".to_owned(), access(50));
        let line = Line::AccessRemoved { name: "grafana".to_owned(), at_ms: 45 };
        assert_eq!(apply(&mut restored, &[line]).shut_out, 0);
    }
}
