//! Writes that name themselves are stored once: the names that were used, bounded, in memory and in the file.
//!
//! A name is kept in the transaction that stores its records, so a crash keeps both or neither. The oldest are
//! forgotten first.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::{Submission, Uplink, accept::SubmitError};
use crate::store::outbox::Write;

/// Names that are remembered: half an hour at ten writes a second, under 1 MB in memory and on disk.
const NAMES: usize = 16_384;

/// A write's name, and a digest of what it says: the same name with something else is a mistake of the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// The first 16 bytes of the SHA-256 of the name and what it belongs to.
    pub id: [u8; 16],
    /// The first 8 bytes of the SHA-256 of the content.
    pub content: [u8; 8],
}

impl Name {
    /// A name within `scope`, such as `samples`, for something that says `content`.
    #[must_use]
    pub fn new(scope: &str, text: &str, content: &[u8]) -> Self {
        let id = Sha256::new().chain_update(scope).chain_update([0]).chain_update(text).finalize();
        let mut name = Self { id: [0; 16], content: fleet_schemas::batch::digest(content) };
        name.id.copy_from_slice(&id[..16]);
        name
    }
}

/// What of a submission has a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Names {
    /// Nothing: each time it is handed in, it is stored.
    #[default]
    None,
    /// All of it together.
    Whole(Name),
    /// Some of its records; one entry for each.
    Each(Vec<Option<Name>>),
}

/// Records as they are handed in, with their names.
#[derive(Debug, Clone, PartialEq)]
pub struct Handed {
    /// The records.
    pub submission: Submission,
    /// Their names.
    pub names: Names,
}

impl From<Submission> for Handed {
    fn from(submission: Submission) -> Self {
        Self { submission, names: Names::None }
    }
}

/// What became of records that were accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Records that are on disk.
    pub records: u64,
    /// How many of them were on disk before, under the same name.
    pub repeated: u64,
}

/// The names in use.
#[derive(Debug, Default)]
pub(super) struct Used {
    known: BTreeMap<[u8; 16], [u8; 8]>,
    order: BTreeMap<u64, [u8; 16]>,
}

impl Used {
    /// As found in the file.
    pub(super) fn found(rows: BTreeMap<u64, Name>) -> Self {
        let mut used = Self::default();
        for (number, name) in rows {
            used.known.insert(name.id, name.content);
            used.order.insert(number, name.id);
        }
        used
    }

    /// Whether it was used before.
    fn knows(&self, name: Name, at: Option<usize>) -> Result<bool, SubmitError> {
        match self.known.get(&name.id) {
            Some(content) if *content == name.content => Ok(true),
            Some(_) => Err(SubmitError::Reused { at }),
            None => Ok(false),
        }
    }

    fn add(&mut self, name: Name, staged: &mut Vec<Write>) {
        let number = self.order.last_key_value().map_or(1, |(last, _)| last + 1);
        self.known.insert(name.id, name.content);
        self.order.insert(number, name.id);
        staged.push(Write::Name { number, name });
        let mut forgotten = None;
        while self.order.len() > NAMES
            && let Some((oldest, id)) = self.order.pop_first()
        {
            self.known.remove(&id);
            forgotten = Some(oldest);
        }
        if let Some(to) = forgotten {
            staged.push(Write::DropNames { to });
        }
    }
}

/// What is left of a submission once what is on disk is taken out, with the names of the rest.
type New = Option<(Submission, Vec<Name>)>;

impl Uplink {
    /// Takes out what is on disk already. The rest is `Some` unless nothing is left.
    pub(super) fn without_repeated(&self, handed: Handed) -> Result<(Receipt, New), SubmitError> {
        let Handed { submission, names } = handed;
        let records = submission.len() as u64;
        let new = Receipt { records, repeated: 0 };
        match (names, submission) {
            (Names::None, submission) => Ok((new, Some((submission, Vec::new())))),
            (Names::Whole(name), _) if self.used.knows(name, None)? => {
                Ok((Receipt { records, repeated: records }, None))
            }
            (Names::Whole(name), submission) => Ok((new, Some((submission, vec![name])))),
            // Samples have no names of their own.
            (Names::Each(_), submission @ Submission::Samples(_)) => {
                Ok((new, Some((submission, Vec::new()))))
            }
            (Names::Each(names), Submission::Events(events)) => {
                let mut new: Vec<Name> = Vec::new();
                let mut rest = Vec::with_capacity(events.len());
                for (at, (event, name)) in events.into_iter().zip(names).enumerate() {
                    let Some(name) = name else {
                        rest.push(event);
                        continue;
                    };
                    let twin = new.iter().find(|twin| twin.id == name.id);
                    if twin.is_some_and(|twin| twin.content != name.content) {
                        return Err(SubmitError::Reused { at: Some(at) });
                    }
                    if twin.is_none() && !self.used.knows(name, Some(at))? {
                        new.push(name);
                        rest.push(event);
                    }
                }
                let repeated = records - rest.len() as u64;
                let rest = (!rest.is_empty()).then_some((Submission::Events(rest), new));
                Ok((Receipt { records, repeated }, rest))
            }
        }
    }

    /// Stages the names of what is stored in the same transaction.
    pub(super) fn stage_names(&mut self, names: Vec<Name>) {
        for name in names {
            self.used.add(name, &mut self.staged);
        }
    }
}
