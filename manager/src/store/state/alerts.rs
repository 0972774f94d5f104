//! Rows of alerts: open ones, those that are over, silences, what nodes lost, and words to receivers that wait. With
//! the engine's place in the log of batches. Decides nothing.

use fleet_schemas::{cbor, event::Severity, rule::RuleId};
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata as _, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{Error, StateStore, decode, identities, store};
use crate::{
    core::{
        alert::{Alert, Effects, Found, Losses, Silence, Stage},
        audit::Entry,
        fleet::NodeNo,
    },
    store::log::Place,
};

// Number → CBOR `Alert`. One row an alert, rewritten when it changes; those that are over go by age and number.
const ALERTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("alerts");
// Number, of those that are pending or fire.
const OPEN: TableDefinition<'_, u64, ()> = TableDefinition::new("alerts_open");
// (node, number). One row an alert.
const OF_NODE: TableDefinition<'_, (u32, u64), ()> = TableDefinition::new("alerts_of");
// Number → CBOR `Silence`. At most `core::alert::SILENCES` rows; gone when they end.
const SILENCES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("alert_silences");
// Node → CBOR `Losses`. One row a node that ever lost anything, or was looked at.
const LOSSES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("alert_losses");
// Number → CBOR `Notice`. Appended; gone when it was taken or given up.
const NOTICES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("alert_notices");
// `place` (seq u64, check u32), `last_alert`, `last_silence`, `last_notice`, `since_ms` (u64 each), `rules` (the texts of
// the rules that count).
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("alert_meta");

/// Alerts that are kept when they are over; the oldest go.
pub const KEPT: u64 = 100_000;
/// Alerts looked at for one page: a filter that fits few of them ends the page early.
const LOOKS: usize = 20_000;
/// Alerts that are over that a start looks through, for when their rules fired last.
const ENDED: usize = 10_000;

/// A word to one receiver that waits to be taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// The receiver.
    pub receiver: String,
    /// `firing`, `resolved` or `test`.
    pub word: String,
    /// The alert as it was then.
    pub alert: Alert,
    /// When it was said, Unix milliseconds.
    pub at_ms: i64,
}

/// One transaction of the engine.
#[derive(Debug, Default)]
pub struct AlertCommit {
    /// What follows from the engine's steps.
    pub effects: Effects,
    /// Words to receivers, in order.
    pub notices: Vec<Notice>,
    /// Words that were taken, or given up.
    pub done: Vec<u64>,
    /// Everything up to here was judged.
    pub place: Option<Place>,
    /// The last numbers given to alerts and silences.
    pub last: (u64, u64),
    /// What was changed, by whom.
    pub audit: Vec<Entry>,
}

/// What the engine finds when it starts.
#[derive(Debug, Default)]
pub struct FoundAlerts {
    /// Where it stood.
    pub engine: Found,
    /// Everything up to here was judged; none before its first start.
    pub place: Option<Place>,
    /// When it was started first, Unix milliseconds.
    pub since_ms: Option<i64>,
}

/// Which alerts to list.
#[derive(Debug, Clone, Default)]
pub struct AlertFilter {
    /// In one of these stages; empty: in any.
    pub stages: Vec<Stage>,
    /// At this node.
    pub node: Option<NodeNo>,
    /// Of this rule.
    pub rule: Option<RuleId>,
    /// At this site.
    pub site: Option<String>,
    /// At least this bad.
    pub least: Option<Severity>,
    /// Without those that another stands for.
    pub causes: bool,
    /// Only those numbered below this (the cursor of the page before).
    pub before: Option<u64>,
    /// At most this many.
    pub limit: usize,
}

impl AlertFilter {
    fn fits(&self, alert: &Alert) -> bool {
        (self.stages.is_empty() || self.stages.contains(&alert.stage))
            && self.node.is_none_or(|node| node == alert.node_no)
            && self.rule.as_ref().is_none_or(|rule| *rule == alert.rule)
            && self.site.as_ref().is_none_or(|site| Some(site) == alert.site.as_ref())
            && self.least.is_none_or(|least| alert.severity >= least)
            && !(self.causes && alert.inhibited_by.is_some())
    }

    fn open_only(&self) -> bool {
        !self.stages.is_empty() && !self.stages.contains(&Stage::Resolved)
    }
}

pub(super) fn open(write: &redb::WriteTransaction) -> Result<(), Error> {
    for table in [ALERTS, SILENCES, NOTICES] {
        write.open_table(table).map_err(store)?;
    }
    write.open_table(OPEN).map_err(store)?;
    write.open_table(OF_NODE).map_err(store)?;
    write.open_table(LOSSES).map_err(store)?;
    write.open_table(META).map_err(store)?;
    Ok(())
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(ALERTS)?;
    copier.table(OPEN)?;
    copier.table(OF_NODE)?;
    copier.table(SILENCES)?;
    copier.table(LOSSES)?;
    copier.table(NOTICES)?;
    copier.table(META)
}

fn number(meta: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<Option<u64>, Error> {
    let row = meta.get(key).map_err(store)?;
    Ok(row.and_then(|row| row.value().try_into().ok()).map(u64::from_le_bytes))
}

fn write_alerts(write: &redb::WriteTransaction, effects: &Effects) -> Result<(), Error> {
    let mut alerts = write.open_table(ALERTS).map_err(store)?;
    let mut open = write.open_table(OPEN).map_err(store)?;
    let mut of_node = write.open_table(OF_NODE).map_err(store)?;
    for (number, alert) in &effects.alerts {
        let Some(alert) = alert else {
            if let Some(row) = alerts.remove(number).map_err(store)? {
                let gone: Alert = decode(row.value(), "an alert")?;
                of_node.remove((gone.node_no, *number)).map_err(store)?;
            }
            open.remove(number).map_err(store)?;
            continue;
        };
        let is_new = alerts.insert(number, cbor::encode(alert).as_slice()).map_err(store)?.is_none();
        if is_new {
            of_node.insert((alert.node_no, *number), ()).map_err(store)?;
        }
        match alert.stage {
            Stage::Pending | Stage::Firing if is_new => drop(open.insert(number, ()).map_err(store)?),
            Stage::Pending | Stage::Firing => {}
            Stage::Resolved => drop(open.remove(number).map_err(store)?),
        }
    }
    // The oldest that are over; those that are open stay, however old.
    let mut excess = alerts.len().map_err(store)?.saturating_sub(KEPT + open.len().map_err(store)?);
    if excess > 0 {
        let mut gone = Vec::new();
        for row in alerts.iter().map_err(store)? {
            let (number, row) = row.map_err(store)?;
            if excess == 0 {
                break;
            }
            if open.get(number.value()).map_err(store)?.is_none() {
                let alert: Alert = decode(row.value(), "an alert")?;
                gone.push((alert.node_no, number.value()));
                excess -= 1;
            }
        }
        for (node, number) in gone {
            alerts.remove(number).map_err(store)?;
            of_node.remove((node, number)).map_err(store)?;
        }
    }
    Ok(())
}

impl StateStore {
    /// Writes one transaction of the engine, durable when it returns; gives the number of the first notice.
    ///
    /// # Errors
    /// [`Error`].
    pub fn apply_alerts(&self, commit: &AlertCommit) -> Result<u64, Error> {
        let write = self.begin_write()?;
        write_alerts(&write, &commit.effects)?;
        let first = {
            let mut meta = write.open_table(META).map_err(store)?;
            let first = number(&meta, "last_notice")?.unwrap_or(0) + 1;
            let (alert, silence) = commit.last;
            for (key, value) in [("last_alert", alert), ("last_silence", silence)] {
                meta.insert(key, &value.to_le_bytes()[..]).map_err(store)?;
            }
            if let Some(Place { seq, check }) = commit.place {
                let place = [&seq.to_le_bytes()[..], &check.to_le_bytes()[..]].concat();
                meta.insert("place", place.as_slice()).map_err(store)?;
            }
            if !commit.notices.is_empty() {
                let last = first + commit.notices.len() as u64 - 1;
                meta.insert("last_notice", &last.to_le_bytes()[..]).map_err(store)?;
            }
            let mut notices = write.open_table(NOTICES).map_err(store)?;
            for (number, notice) in (first..).zip(&commit.notices) {
                notices.insert(number, cbor::encode(notice).as_slice()).map_err(store)?;
            }
            for number in &commit.done {
                notices.remove(number).map_err(store)?;
            }
            let mut silences = write.open_table(SILENCES).map_err(store)?;
            for (number, silence) in &commit.effects.silences {
                match silence {
                    Some(silence) => {
                        drop(silences.insert(number, cbor::encode(silence).as_slice()).map_err(store)?);
                    }
                    None => drop(silences.remove(number).map_err(store)?),
                }
            }
            let mut losses = write.open_table(LOSSES).map_err(store)?;
            for (node, lost) in &commit.effects.losses {
                match lost {
                    Some(lost) => drop(losses.insert(node, cbor::encode(lost).as_slice()).map_err(store)?),
                    None => drop(losses.remove(node).map_err(store)?),
                }
            }
            first
        };
        identities::apply(
            &write,
            &super::Changes { audit: commit.audit.clone(), ..super::Changes::default() },
        )?;
        write.commit().map_err(store)?;
        Ok(first)
    }

    /// Notes that the engine was started first at this time.
    ///
    /// # Errors
    /// [`Error`].
    pub fn begin_alerts(&self, since_ms: i64, place: Place) -> Result<(), Error> {
        let write = self.begin_write()?;
        {
            let mut meta = write.open_table(META).map_err(store)?;
            meta.insert("since_ms", &since_ms.to_le_bytes()[..]).map_err(store)?;
            let place = [&place.seq.to_le_bytes()[..], &place.check.to_le_bytes()[..]].concat();
            meta.insert("place", place.as_slice()).map_err(store)?;
        }
        write.commit().map_err(store)?;
        Ok(())
    }

    /// Where the engine stood.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find_alerts(&self) -> Result<FoundAlerts, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let alerts = read.open_table(ALERTS).map_err(store)?;
        let meta = read.open_table(META).map_err(store)?;
        let mut found = FoundAlerts::default();
        let engine = &mut found.engine;
        for row in read.open_table(OPEN).map_err(store)?.iter().map_err(store)? {
            let (number, _) = row.map_err(store)?;
            if let Some(row) = alerts.get(number.value()).map_err(store)? {
                engine.open.push(decode(row.value(), "an alert")?);
            }
        }
        for row in alerts.iter().map_err(store)?.rev().take(ENDED) {
            let (_, row) = row.map_err(store)?;
            let alert: Alert = decode(row.value(), "an alert")?;
            if alert.stage == Stage::Resolved {
                engine.ended.push(alert);
            }
        }
        for row in read.open_table(SILENCES).map_err(store)?.iter().map_err(store)? {
            engine.silences.push(decode(row.map_err(store)?.1.value(), "a silence")?);
        }
        for row in read.open_table(LOSSES).map_err(store)?.iter().map_err(store)? {
            let (node, row) = row.map_err(store)?;
            engine.losses.push((node.value(), decode::<Losses>(row.value(), "what a node lost")?));
        }
        engine.last = number(&meta, "last_alert")?.unwrap_or(0);
        engine.last_silence = number(&meta, "last_silence")?.unwrap_or(0);
        found.since_ms = number(&meta, "since_ms")?.map(u64::cast_signed);
        let place = meta.get("place").map_err(store)?;
        found.place = place.and_then(|row| {
            let (seq, check) = row.value().split_first_chunk()?;
            Some(Place { seq: u64::from_le_bytes(*seq), check: u32::from_le_bytes(check.try_into().ok()?) })
        });
        Ok(found)
    }

    /// One alert.
    ///
    /// # Errors
    /// [`Error`].
    pub fn alert(&self, number: u64) -> Result<Option<Alert>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let row = read.open_table(ALERTS).map_err(store)?.get(number).map_err(store)?;
        row.map(|row| decode(row.value(), "an alert")).transpose()
    }

    /// Alerts, newest first, and the cursor of the next page: a page may have fewer than asked for although there is
    /// one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn alerts(&self, filter: &AlertFilter) -> Result<(Vec<Alert>, Option<u64>), Error> {
        let read = self.db.begin_read().map_err(store)?;
        let alerts = read.open_table(ALERTS).map_err(store)?;
        let below = filter.before.unwrap_or(u64::MAX);
        let (open, of_node);
        let numbers: Box<dyn Iterator<Item = Result<u64, Error>>> = if filter.open_only() {
            open = read.open_table(OPEN).map_err(store)?;
            let rows = open.range(..below).map_err(store)?.rev();
            Box::new(rows.map(|row| row.map(|(number, _)| number.value()).map_err(store)))
        } else if let Some(node) = filter.node {
            of_node = read.open_table(OF_NODE).map_err(store)?;
            let rows = of_node.range((node, 0)..(node, below)).map_err(store)?.rev();
            Box::new(rows.map(|row| row.map(|(key, _)| key.value().1).map_err(store)))
        } else {
            let rows = alerts.range(..below).map_err(store)?.rev();
            Box::new(rows.map(|row| row.map(|(number, _)| number.value()).map_err(store)))
        };
        let (mut found, mut last) = (Vec::new(), None);
        for (looked, number) in numbers.enumerate() {
            if found.len() == filter.limit || looked == LOOKS {
                return Ok((found, last));
            }
            let number = number?;
            last = Some(number);
            if let Some(row) = alerts.get(number).map_err(store)? {
                let alert: Alert = decode(row.value(), "an alert")?;
                if filter.fits(&alert) {
                    found.push(alert);
                }
            }
        }
        Ok((found, None))
    }

    /// Keeps the texts of rules that count, as whoever reads them wrote them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keep_rules(&self, texts: &[u8]) -> Result<(), Error> {
        let write = self.begin_write()?;
        write.open_table(META).map_err(store)?.insert("rules", texts).map_err(store)?;
        write.commit().map_err(store)?;
        Ok(())
    }

    /// The texts of rules that counted last.
    ///
    /// # Errors
    /// [`Error`].
    pub fn kept_rules(&self) -> Result<Option<Vec<u8>>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let kept = read.open_table(META).map_err(store)?.get("rules").map_err(store)?;
        Ok(kept.map(|kept| kept.value().to_vec()))
    }

    /// Silences that have not ended.
    ///
    /// # Errors
    /// [`Error`].
    pub fn silences(&self) -> Result<Vec<Silence>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut silences = Vec::new();
        for row in read.open_table(SILENCES).map_err(store)?.iter().map_err(store)? {
            silences.push(decode(row.map_err(store)?.1.value(), "a silence")?);
        }
        Ok(silences)
    }

    /// Words that wait for receivers, with their numbers, oldest first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn notices(&self) -> Result<Vec<(u64, Notice)>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut notices = Vec::new();
        for row in read.open_table(NOTICES).map_err(store)?.iter().map_err(store)? {
            let (number, row) = row.map_err(store)?;
            notices.push((number.value(), decode(row.value(), "a notice")?));
        }
        Ok(notices)
    }

    /// Removes alerts that were over before `before_ms`, at most `limit` at once. Returns how many.
    ///
    /// # Errors
    /// [`Error`].
    pub fn expire_alerts(&self, before_ms: i64, limit: usize) -> Result<usize, Error> {
        let write = self.begin_write()?;
        let mut gone = Vec::new();
        {
            let mut alerts = write.open_table(ALERTS).map_err(store)?;
            let open = write.open_table(OPEN).map_err(store)?;
            for row in alerts.iter().map_err(store)? {
                let (number, row) = row.map_err(store)?;
                if gone.len() == limit || open.get(number.value()).map_err(store)?.is_some() {
                    // What is open is young, or holds back those behind it until it is over.
                    break;
                }
                let alert: Alert = decode(row.value(), "an alert")?;
                if alert.resolved_ms.is_none_or(|at_ms| at_ms >= before_ms) {
                    break;
                }
                gone.push((alert.node_no, number.value()));
            }
            let mut of_node = write.open_table(OF_NODE).map_err(store)?;
            for (node, number) in &gone {
                alerts.remove(number).map_err(store)?;
                of_node.remove((*node, *number)).map_err(store)?;
            }
        }
        write.commit().map_err(store)?;
        Ok(gone.len())
    }
}
