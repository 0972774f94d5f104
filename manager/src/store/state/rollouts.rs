//! Rows of rollouts: what was asked and where it stands, who was planned for which wave, where each seat stands, and
//! which releases failed at which nodes. Decides nothing.

use fleet_schemas::{DeviceId, MetricName, cbor, update::Digest};
use redb::{ReadableDatabase, ReadableTable as _, TableDefinition, WriteTransaction};

use super::{Error, StateStore, decode, store};
use crate::core::rollout::{Found, Plan, Rows};

// Rollout → CBOR `Head`. At most 200 rows, rewritten when a rollout or a wave changes its state.
const ROLLOUTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rollouts");
// Rollout → CBOR `Plan`. One row a rollout, never rewritten.
const PLANS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rollout_plans");
// (rollout, node, device; empty: the node itself) → CBOR `Member`. One row a seat, rewritten when it changes.
const SEATS: TableDefinition<'_, (&str, u32, &str), &[u8]> = TableDefinition::new("rollout_seats");
// (node, digest) → CBOR `Strikes`. At most 100,000 rows, one for each release that failed at a node.
const STRIKES: TableDefinition<'_, (u32, &[u8; 32]), &[u8]> = TableDefinition::new("rollout_strikes");

pub(super) fn open(write: &WriteTransaction) -> Result<(), Error> {
    write.open_table(ROLLOUTS).map_err(store)?;
    write.open_table(PLANS).map_err(store)?;
    write.open_table(SEATS).map_err(store)?;
    write.open_table(STRIKES).map_err(store)?;
    Ok(())
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(ROLLOUTS)?;
    copier.table(PLANS)?;
    copier.table(SEATS)?;
    copier.table(STRIKES)
}

pub(super) fn apply(write: &WriteTransaction, rows: &Rows) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut rollouts = write.open_table(ROLLOUTS).map_err(store)?;
    let mut plans = write.open_table(PLANS).map_err(store)?;
    let mut seats = write.open_table(SEATS).map_err(store)?;
    for id in &rows.removed {
        let id = id.as_str();
        rollouts.remove(id).map_err(store)?;
        plans.remove(id).map_err(store)?;
        // No device's name is as long as this.
        let end = "\u{10ffff}".repeat(32);
        seats.retain_in((id, 0, "")..=(id, u32::MAX, end.as_str()), |_, _| false).map_err(store)?;
    }
    for head in &rows.heads {
        rollouts.insert(head.spec.id.as_str(), cbor::encode(head).as_slice()).map_err(store)?;
    }
    for (id, plan) in &rows.plans {
        plans.insert(id.as_str(), cbor::encode(plan).as_slice()).map_err(store)?;
    }
    for (id, (node, device), member) in &rows.members {
        let key = (id.as_str(), *node, device.as_str());
        seats.insert(key, cbor::encode(member).as_slice()).map_err(store)?;
    }
    let mut strikes = write.open_table(STRIKES).map_err(store)?;
    for ((node, digest), row) in &rows.strikes {
        let key = (*node, &digest.0);
        match row {
            Some(row) => drop(strikes.insert(key, cbor::encode(row).as_slice()).map_err(store)?),
            None => drop(strikes.remove(key).map_err(store)?),
        }
    }
    Ok(())
}

fn id(text: &str) -> Result<MetricName, Error> {
    MetricName::parse(text).map_err(|error| Error::Damaged(format!("a rollout: {error}")))
}

impl StateStore {
    /// All rollouts with their seats, and what failed where.
    ///
    /// # Errors
    /// [`Error`].
    pub fn rollouts(&self) -> Result<Found, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut found = Found::default();
        for row in read.open_table(ROLLOUTS).map_err(store)?.iter().map_err(store)? {
            let (_, value) = row.map_err(store)?;
            found.heads.push(decode(value.value(), "a rollout")?);
        }
        for row in read.open_table(SEATS).map_err(store)?.iter().map_err(store)? {
            let (key, value) = row.map_err(store)?;
            let (rollout, node, device) = key.value();
            let device = DeviceId::parse(device).map_err(|error| Error::Damaged(error.to_string()))?;
            found.members.push((id(rollout)?, (node, device), decode(value.value(), "a seat of a rollout")?));
        }
        for row in read.open_table(STRIKES).map_err(store)?.iter().map_err(store)? {
            let (key, value) = row.map_err(store)?;
            let (node, digest) = key.value();
            found.strikes.push(((node, Digest(*digest)), decode(value.value(), "failures of a release")?));
        }
        Ok(found)
    }

    /// The plan of a rollout, as it was made.
    ///
    /// # Errors
    /// [`Error`].
    pub fn rollout_plan(&self, id: &str) -> Result<Option<Plan>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let plans = read.open_table(PLANS).map_err(store)?;
        let row = plans.get(id).map_err(store)?;
        row.map(|row| decode(row.value(), "the plan of a rollout")).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fleet_schemas::{
        CommandId, StoreId,
        command::Reason,
        update::{Custom, Kind, State as Said, Target, Window},
    };

    use super::*;
    use crate::{
        core::rollout::{
            Approval, Artifact, Head, MaxUnavailable, Member, OnFailure, Placed, Release, Size, Spec, Stage,
            Stand, State, Strikes, Terms, Wave,
        },
        store::{disk::Memory, state::Commit},
    };

    const ID: StoreId = StoreId([3; 16]);

    fn name(text: &str) -> MetricName {
        MetricName::parse(text).unwrap()
    }

    fn head(rollout: &str) -> Head {
        let custom = Custom { epoch: 3, device_kind: Some("esp32".into()), ..Custom::default() };
        let artifact = Artifact { digest: Digest([7; 32]), length: 20, custom };
        let target: Target = "skill/greeter/1.2.0/any".parse().unwrap();
        let terms = Terms {
            waves: vec![Size::Nodes(1), Size::Percent(100.0)],
            soak_ms: 1,
            max_failures: 0.02,
            min_executed: 5,
            max_unavailable: Some(MaxUnavailable { nodes: 1, per_site: true }),
            rate: Some(2.5),
            window: Some(Window { hours: Some("22:00-04:00".into()), ..Window::default() }),
            gates: vec!["has(\"x\")".into()],
            on_failure: OnFailure::Rollback,
            approval: Approval::Other,
            deadline_ms: 4,
            timeout_ms: 5,
            offline_ms: 6,
            probation_ms: Some(7),
            offline_ok: true,
            allowance: 0.1,
        };
        let spec = Spec {
            id: name(rollout),
            no: 9,
            release: Release {
                name: name("greeter"),
                version: name("1.2.0"),
                kind: Kind::Skill,
                targets: [(name("any"), artifact.clone())].into(),
            },
            goals: vec![(target.clone(), artifact.clone())],
            before: [(Digest([6; 32]), (target, artifact))].into(),
            selector: Some("site=roof".into()),
            terms,
            by: "operator ada".into(),
            created_ms: 8,
            back_of: Some(name("other")),
        };
        let wave = Wave {
            name: "1".into(),
            stage: Stage::Soaking,
            since_ms: 3,
            reason: "all came to an end".into(),
            moved: 1,
            forgiven: 2,
            tally: BTreeMap::from([
                (Stand::Waiting, 1),
                (Stand::Said(Said::Confirmed), 2),
                (Stand::Drifted, 3),
            ]),
        };
        Head {
            spec,
            state: State::Paused,
            since_ms: 2,
            reason: "why".into(),
            approved_by: Some("operator bob".into()),
            waves: vec![wave],
            sites: vec![String::new(), "roof".into()],
            next_us: 44,
            back: Some(name("back")),
        }
    }

    fn member() -> Member {
        Member {
            stand: Stand::Said(Said::Probation),
            reason: Some(Box::new(Reason {
                code: "x".into(),
                message: "y".into(),
                may_have_executed: false,
            })),
            again: true,
            command: Some(CommandId([4; 16])),
            told_ms: Some(5),
            claimed_ms: Some(6),
            offline_ms: Some(7),
            down: true,
            settled: true,
            from: Some((name("1.1.0"), Digest([8; 32]))),
            bytes: Some((1, 2)),
            ..Member::new(1, 2, 3, Some(0), 4)
        }
    }

    #[test]
    fn what_is_written_is_found_again_and_what_is_removed_is_gone() {
        let disk = Memory::default();
        let node = DeviceId::node();
        let board = DeviceId::parse("board").unwrap();
        let strikes = Strikes { count: 2, at_ms: 5, reason: "exit code 1".into() };
        let placed = Placed { seat: (1, node.clone()), site: 1, goal: Some(0), left_out: None };
        let plan = Plan {
            names: vec!["1".into(), "trailing".into()],
            waves: vec![vec![placed], Vec::new()],
            text: vec!["wave 1".into()],
            ..Plan::default()
        };
        let rows = Rows {
            heads: vec![head("a"), head("a-b")],
            plans: vec![(name("a"), plan.clone())],
            members: vec![
                (name("a"), (1, node.clone()), member()),
                (name("a"), (1, board.clone()), Member::new(0, 0, 0, None, 1)),
                (name("a-b"), (2, node.clone()), member()),
            ],
            strikes: vec![
                ((1, Digest([1; 32])), Some(strikes.clone())),
                ((2, Digest([1; 32])), Some(strikes.clone())),
            ],
            removed: Vec::new(),
        };
        {
            let state = StateStore::open(&disk, ID).unwrap();
            state.apply(&Commit { rollouts: rows, ..Commit::default() }).unwrap();
        }
        let state = StateStore::open(&disk, ID).unwrap();
        let found = state.rollouts().unwrap();
        assert_eq!(found.heads, [head("a"), head("a-b")]);
        assert_eq!(found.members.len(), 3);
        assert_eq!(found.members[0], (name("a"), (1, node.clone()), member()));
        assert_eq!(found.members[1].1, (1, board));
        assert_eq!(found.strikes.len(), 2);
        assert_eq!(state.rollout_plan("a").unwrap(), Some(plan));
        assert_eq!(state.rollout_plan("b").unwrap(), None);
        let rows =
            Rows { removed: vec![name("a")], strikes: vec![((1, Digest([1; 32])), None)], ..Rows::default() };
        state.apply(&Commit { rollouts: rows, ..Commit::default() }).unwrap();
        let found = state.rollouts().unwrap();
        assert_eq!(found.heads, [head("a-b")]);
        assert_eq!(found.members, [(name("a-b"), (2, node), member())]);
        assert_eq!(found.strikes, [((2, Digest([1; 32])), strikes)]);
        assert_eq!(state.rollout_plan("a").unwrap(), None);
    }
}
