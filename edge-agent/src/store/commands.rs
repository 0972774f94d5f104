//! The command tables of the outbox's file: what is held, what is over and remembered, and in which order it is
//! forgotten. In the same file as the outbox, so that a state and its report are one transaction.
//!
//! A row is the first 8 bytes of the SHA-256 of the rest, then CBOR: a key may be added when an older agent can do
//! without it.

use fleet_schemas::{CommandId, batch, cbor};
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata as _, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use super::{outbox::Error, rows::Damaged};
use crate::core::queue::{Change, Held, Over};

// Command id → `Held`. At most 1,000 rows; written when it comes and when it begins, deleted when it is over.
const HELD: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("commands");
// Command id → `Over`. At most 100,000 rows; rewritten at most once.
const OVER: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("results");
// (0 for those that may be forgotten early, 1 for the others; order) → command id. One row for each of `results`.
const ORDER: TableDefinition<'_, (u8, u64), &[u8; 16]> = TableDefinition::new("results_order");

/// What was found.
#[derive(Debug, Default)]
pub struct FoundCommands {
    /// Those that are not over.
    pub held: Vec<Held>,
    /// Those whose row is damaged: nobody knows what they were or how far they got.
    pub damaged: Vec<CommandId>,
    /// Results that may be forgotten early.
    pub harmless: u64,
    /// The other results.
    pub others: u64,
    /// Above the order of every result.
    pub next_order: u64,
    /// How long the agent had run when the newest result came, in milliseconds.
    pub lived_ms: u64,
}

/// A row's bytes.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let body = cbor::encode(value);
    let mut row = batch::digest(&body).to_vec();
    row.extend(body);
    row
}

pub(super) fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T, Damaged> {
    let (digest, body) = row.split_at_checked(8).ok_or(Damaged)?;
    if digest != batch::digest(body) {
        return Err(Damaged);
    }
    cbor::decode(body).map_err(|_| Damaged)
}

fn class(harmless: bool) -> u8 {
    u8::from(!harmless)
}

pub(super) fn apply(write: &WriteTransaction, change: &Change) -> Result<(), Error> {
    match change {
        Change::Hold(held) => {
            write.open_table(HELD)?.insert(&held.command.id.0, encode(held).as_slice())?;
        }
        Change::Over(over) => {
            write.open_table(HELD)?.remove(&over.id.0)?;
            write.open_table(OVER)?.insert(&over.id.0, encode(over).as_slice())?;
            write.open_table(ORDER)?.insert((class(over.harmless), over.order), &over.id.0)?;
        }
        Change::Amend(over) => {
            write.open_table(OVER)?.insert(&over.id.0, encode(over).as_slice())?;
        }
    }
    Ok(())
}

/// Forgets the `count` oldest of one kind.
pub(super) fn forget(write: &WriteTransaction, harmless: bool, count: usize) -> Result<(), Error> {
    let mut order = write.open_table(ORDER)?;
    let mut over = write.open_table(OVER)?;
    let rows = order.range((class(harmless), 0)..=(class(harmless), u64::MAX))?.take(count);
    let rows = rows.map(|row| row.map(|(key, id)| (key.value(), *id.value())));
    for (key, id) in rows.collect::<Result<Vec<_>, _>>()? {
        order.remove(key)?;
        over.remove(&id)?;
    }
    Ok(())
}

pub(super) fn result(read: &ReadTransaction, id: CommandId) -> Result<Option<Over>, Error> {
    let row = read.open_table(OVER)?.get(&id.0)?;
    Ok(row.map(|row| decode(row.value()).unwrap_or_else(|Damaged| lost(id))))
}

/// The `count` oldest of one kind, of those whose order is `from` at least.
pub(super) fn oldest(
    read: &ReadTransaction,
    harmless: bool,
    from: u64,
    count: usize,
) -> Result<Vec<Over>, Error> {
    let (order, over) = (read.open_table(ORDER)?, read.open_table(OVER)?);
    let mut found = Vec::new();
    for row in order.range((class(harmless), from)..=(class(harmless), u64::MAX))?.take(count) {
        let (at, id) = row?;
        let id = CommandId(*id.value());
        let row = over.get(&id.0)?;
        let lost = || Over { order: at.value().1, ..lost(id) };
        found.push(row.and_then(|row| decode(row.value()).ok()).unwrap_or_else(lost));
    }
    Ok(found)
}

pub(super) fn find(write: &WriteTransaction) -> Result<FoundCommands, Error> {
    let mut found = FoundCommands { next_order: 1, ..FoundCommands::default() };
    for row in write.open_table(HELD)?.iter()? {
        let (id, row) = row?;
        match decode(row.value()) {
            Ok(held) => found.held.push(held),
            Err(Damaged) => found.damaged.push(CommandId(*id.value())),
        }
    }
    // The number of rows is known without reading them; the two kinds are told apart by the smaller range.
    let (order, over) = (write.open_table(ORDER)?, write.open_table(OVER)?);
    let results = over.len()?;
    for harmless in [true, false] {
        if let Some(last) = order.range((class(harmless), 0)..=(class(harmless), u64::MAX))?.next_back() {
            let (key, id) = last?;
            found.next_order = found.next_order.max(key.value().1 + 1);
            let newest = over.get(&id.value())?.and_then(|row| decode::<Over>(row.value()).ok());
            let lived = newest.and_then(|over| over.lived_ms).unwrap_or(0);
            found.lived_ms = found.lived_ms.max(lived);
        }
    }
    found.others = order.range((class(false), 0)..)?.count() as u64;
    found.harmless = results.saturating_sub(found.others);
    Ok(found)
}

/// What stands for a damaged result: it is over, and that is all that is known.
fn lost(id: CommandId) -> Over {
    use fleet_schemas::command::State;

    use crate::core::queue::{Origin, reason};
    let message = "the node's record of how it ended is damaged; check its storage";
    Over {
        id,
        kind: None,
        state: State::Failed,
        time_ms: 0,
        true_ms: None,
        lived_ms: None,
        reason: Some(reason("agent_state_lost", message, true)),
        exit_code: None,
        result: None,
        output: Vec::new(),
        origin: Origin::Hub,
        too_late: false,
        harmless: false,
        order: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ciborium::Value;
    use fleet_schemas::{MetricName, batch::Clock};

    use super::*;
    use crate::{
        core::{
            Now,
            queue::{Command, Limit, Origin, Stage, Time},
        },
        store::{
            outbox::{Outbox, Write},
            sim_disk::SimFile,
        },
    };

    fn held(number: u8) -> Held {
        let now = Now { wall_ms: 5, up: Duration::from_secs(1), clock: Clock::Unsynced };
        let time = Time { now, boot: [7; 8], true_ms: Some(9) };
        let name = |text: &str| MetricName::parse(text).unwrap();
        let command = Command {
            id: CommandId([number; 16]),
            no: u64::from(number),
            queue: name("main"),
            priority: -3,
            kind: name("exec"),
            params: Value::Map(vec![(Value::Text("argv".into()), Value::Array(vec![Value::Bytes(vec![1])]))]),
            timeout_ms: 1_000,
            idempotent: false,
            supersedes: Some(name("key")),
            origin: Origin::Hub,
            opens: None,
            closes: Limit::after(Duration::from_secs(60), &time),
        };
        Held { command, arrival: u64::from(number), stage: Stage::Waiting { begun: 0 } }
    }

    fn over(number: u8, harmless: bool) -> Over {
        Over { harmless, order: u64::from(number), ..lost(CommandId([number; 16])) }
    }

    fn write(outbox: &Outbox, changes: Vec<Change>) {
        let writes: Vec<_> = changes.into_iter().map(Write::Command).collect();
        outbox.apply(&writes).unwrap();
    }

    #[test]
    fn commands_survive_and_results_take_their_place() {
        let disk = SimFile::new();
        let (outbox, _) = Outbox::open(disk.backend()).unwrap();
        write(&outbox, vec![Change::Hold(Box::new(held(1))), Change::Hold(Box::new(held(2)))]);
        write(&outbox, vec![Change::Over(Box::new(over(1, false)))]);
        drop(outbox);
        let (outbox, found) = Outbox::open(disk.backend()).unwrap();
        assert_eq!(found.commands.held, [held(2)]);
        assert_eq!((found.commands.harmless, found.commands.others, found.commands.next_order), (0, 1, 2));
        assert_eq!(outbox.result(CommandId([1; 16])).unwrap(), Some(over(1, false)));
        assert_eq!(outbox.result(CommandId([2; 16])).unwrap(), None);
    }

    #[test]
    fn the_oldest_of_each_kind_is_forgotten_first() {
        let (outbox, _) = Outbox::open(SimFile::new().backend()).unwrap();
        let results = [over(1, false), over(2, true), over(3, true), over(4, false)];
        write(&outbox, results.into_iter().map(|over| Change::Over(Box::new(over))).collect());
        assert_eq!(outbox.oldest_results(true, 0, 9).unwrap(), [over(2, true), over(3, true)]);
        let forget = |harmless| Write::ForgetResults { harmless, count: 1 };
        outbox.apply(&[forget(true), forget(false)]).unwrap();
        assert_eq!(outbox.oldest_results(true, 0, 1).unwrap(), [over(3, true)]);
        assert_eq!(outbox.oldest_results(false, 2, 9).unwrap(), [over(4, false)]);
        assert_eq!(outbox.result(CommandId([1; 16])).unwrap(), None);
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let row = encode(&held(1));
        assert_eq!(decode::<Held>(&row), Ok(held(1)));
        for bit in 0..row.len() * 8 {
            let mut damaged = row.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode::<Held>(&damaged), Err(Damaged));
        }
    }

    #[test]
    fn rows_keep_their_format() {
        let row = encode(&held(1));
        let read: Value = cbor::decode(&row[8..]).unwrap();
        let keys = |value: &Value| -> Vec<String> {
            value.as_map().unwrap().iter().map(|(key, _)| key.as_text().unwrap().to_owned()).collect()
        };
        assert_eq!(keys(&read), ["command", "arrival", "stage"]);
        let command = &read.as_map().unwrap()[0].1;
        let expected = [
            "id",
            "no",
            "queue",
            "priority",
            "kind",
            "params",
            "timeout_ms",
            "idempotent",
            "supersedes",
            "origin",
            "opens",
            "closes",
        ];
        assert_eq!(keys(command), expected);
    }
}
