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
    /// Whether a full outbox takes them all the same, as it takes the ends of commands: for the little that the hub must
    /// hear and that nobody says again.
    pub even_if_full: bool,
    /// Whether the agent itself says it, of devices: they were not heard, and need not be known.
    pub by_agent: bool,
}

impl From<Submission> for Handed {
    fn from(submission: Submission) -> Self {
        Self { submission, names: Names::None, even_if_full: false, by_agent: false }
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
        let Handed { submission, names, even_if_full: _, by_agent: _ } = handed;
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

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use fleet_schemas::{
        DeviceId, MetricName, NodeId, StreamId, batch::Clock, session::Versions, telemetry::Sample,
    };

    use super::*;
    use crate::{
        core::{
            Now,
            devices::{Policy, Register},
        },
        store::sim_disk::SimFile,
        uplink::{Config, Error, Profile},
    };

    pub(crate) const NOW: Now =
        Now { wall_ms: 1_790_000_000_000, up: Duration::from_secs(100), clock: Clock::Synced };

    pub(crate) fn open(card: &SimFile, stream: u8) -> Result<Uplink, Error> {
        open_with(card, stream, Config::default())
    }

    fn open_with(card: &SimFile, stream: u8, config: Config) -> Result<Uplink, Error> {
        let profile = Profile {
            node: NodeId::parse("edge-1").unwrap(),
            boot: [1; 8],
            instance: None,
            kind: "picclaw".to_owned(),
            name: None,
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            heartbeat: Duration::from_secs(30),
        };
        Uplink::open(card.backend(), profile, config, StreamId([stream; 16]), NOW)
    }

    fn named(number: u64) -> Handed {
        let sample = Sample {
            time_ms: 5,
            device: DeviceId::node(),
            metric: MetricName::parse("m").unwrap(),
            unit: None,
            value: 1.0,
        };
        let name = Name::new("samples", &number.to_string(), b"m");
        Handed { names: Names::Whole(name), ..Submission::Samples(vec![sample]).into() }
    }

    fn repeated(uplink: &mut Uplink, number: u64) -> bool {
        let receipts = uplink.submit_once(vec![named(number)], NOW).unwrap();
        receipts[0].as_ref().unwrap().repeated == 1
    }

    #[test]
    fn the_oldest_names_are_forgotten_first_in_memory_and_on_disk() {
        let card = SimFile::new();
        let mut uplink = open(&card, 1).unwrap();
        let last = NAMES as u64 + 10;
        for chunk in (1..=last).collect::<Vec<_>>().chunks(4_000) {
            let receipts = uplink.submit_once(chunk.iter().copied().map(named).collect(), NOW).unwrap();
            assert!(
                receipts.iter().all(|receipt| receipt.as_ref().is_ok_and(|receipt| receipt.repeated == 0))
            );
        }
        assert!(repeated(&mut uplink, last) && repeated(&mut uplink, 11) && !repeated(&mut uplink, 10));
        drop(uplink);
        let mut uplink = open(&card, 2).unwrap();
        assert_eq!((uplink.used.known.len(), uplink.used.order.len()), (NAMES, NAMES));
        // The one that was stored again took the place of the oldest.
        assert!(repeated(&mut uplink, last) && repeated(&mut uplink, 12) && repeated(&mut uplink, 10));
        assert!(!repeated(&mut uplink, 11));
    }

    #[test]
    fn a_full_outbox_takes_what_must_be_told_and_nothing_else() {
        let card = SimFile::new();
        let mut uplink = open_with(&card, 1, Config { quota_bytes: 0, ..Config::default() }).unwrap();
        let pressing = Handed { even_if_full: true, ..named(2) };
        let results = uplink.submit_once(vec![named(1), pressing, named(3)], NOW).unwrap();
        let taken = Ok(Receipt { records: 1, repeated: 0 });
        assert_eq!(results, [Err(SubmitError::Full), taken, Err(SubmitError::Full)]);
    }

    #[test]
    fn what_the_agent_says_of_a_device_is_no_word_of_it() {
        let devices = Policy { register: Register::Auto, heartbeat: Duration::ZERO };
        let explicit = Policy { register: Register::Explicit, ..devices };
        let door = DeviceId::parse("door").unwrap();
        let event = fleet_schemas::event::Event {
            time_ms: 5,
            kind: MetricName::parse("alert").unwrap(),
            severity: fleet_schemas::event::Severity::Warning,
            message: "door is silent".to_owned(),
            data: None,
            device: Some(door.clone()),
            id: None,
        };
        let by_device = || Handed::from(Submission::Events(vec![event.clone()]));
        let by_agent = || Handed { by_agent: true, ..by_device() };
        for (policy, taken) in [(explicit, false), (devices, true)] {
            let mut uplink =
                open_with(&SimFile::new(), 1, Config { devices: policy, ..Config::default() }).unwrap();
            assert!(uplink.submit_once(vec![by_agent()], NOW).unwrap()[0].is_ok());
            assert!(uplink.device(&door).is_none(), "nobody has heard it");
            assert_eq!(uplink.submit_once(vec![by_device()], NOW).unwrap()[0].is_ok(), taken);
            assert_eq!(uplink.device(&door).is_some(), taken);
        }
    }

    #[test]
    fn a_record_and_its_name_survive_a_power_cut_together_at_every_sync() {
        let counted = SimFile::new();
        let mut uplink = open(&counted, 1).unwrap();
        let made = counted.syncs();
        assert!(!repeated(&mut uplink, 1) && !repeated(&mut uplink, 2));
        let syncs = counted.syncs();
        drop(uplink);
        assert!(syncs > made);
        for k in made..=syncs {
            for freeze in [SimFile::freeze_at, SimFile::freeze_after] {
                let card = SimFile::new();
                let mut uplink = open(&card, 1).unwrap();
                freeze(&card, k);
                let mut answered = 0;
                while answered < 2 && uplink.submit_once(vec![named(answered + 1)], NOW).is_ok() {
                    answered += 1;
                }
                card.crash();
                drop(uplink);
                let mut uplink = open(&card, 2).unwrap();
                let found = uplink.pending().samples;
                assert!(found >= answered, "sync {k}: {answered} were answered, {found} are there");
                // Everything is sent again: the client cannot know.
                for number in 1..=2 {
                    assert_eq!(repeated(&mut uplink, number), number <= found, "sync {k}, write {number}");
                }
                assert_eq!(uplink.pending().samples, 2, "sync {k}");
            }
        }
    }
}
