//! Chains of causes as an operator reads them.

use std::{sync::Arc, time::Duration};

use ciborium::Value;
use fleet_schemas::{
    CommandId, MetricName, NodeId, SessionId,
    command::{Reason, State as Stage},
};

use super::*;
use crate::core::{
    Now,
    command::Step,
    presence::{self, State},
};

const S: SessionId = SessionId([1; 8]);

fn now(seconds: u64) -> Now {
    Now { wall_ms: i64::try_from(seconds * 1_000).unwrap(), mono: Duration::from_secs(seconds) }
}

/// Born at 10, its link lost at 100, offline since 110.
fn lost() -> Presence {
    let mut presence = Presence::new(0);
    presence.birth(S, 30_000, now(10));
    presence.death(S, None, now(100));
    presence.handle_timeout(now(110));
    assert_eq!(presence.state, State::Offline);
    presence
}

fn command(no: u8) -> Command {
    let word = |text| MetricName::parse(text).unwrap();
    Command {
        id: CommandId([no; 16]),
        no: no.into(),
        kind: word("exec"),
        params: Value::Null,
        params_bytes: 1,
        queue: word("main"),
        priority: 0,
        idempotent: false,
        supersedes: None,
        created_ms: 150_000,
        not_before_ms: None,
        not_after_ms: 300_000,
        timeout_ms: 60_000,
        by: "operator ada".to_owned(),
        selector: Some("site=berlin".to_owned()),
    }
}

fn at(steps: &[(Stage, i64, Option<&str>)]) -> Execution {
    let mut execution = Execution::new(150_000, 150_000);
    execution.history = steps
        .iter()
        .map(|(state, at_ms, why)| Step {
            state: *state,
            at_ms: *at_ms,
            reason: why.map(|message| {
                Box::new(Reason { code: "x".into(), message: message.into(), may_have_executed: false })
            }),
        })
        .collect();
    execution
}

/// A chain as text: seconds, sentences, indents.
fn text(causes: &[Cause]) -> String {
    fn write(cause: &Cause, depth: usize, text: &mut String) {
        let seconds = |ms: Option<i64>| ms.map_or_else(|| "-".to_owned(), |ms| (ms / 1_000).to_string());
        let until = cause.until_ms.map_or_else(String::new, |_| format!("…{}", seconds(cause.until_ms)));
        text.push_str(&format!("{}{}{until} {}\n", "  ".repeat(depth), seconds(cause.at_ms), cause.what));
        cause.because.iter().for_each(|because| write(because, depth + 1, text));
    }
    let mut all = String::new();
    causes.iter().for_each(|cause| write(cause, 0, &mut all));
    all
}

struct Given {
    id: NodeId,
    presence: Presence,
    open: Vec<OpenAt>,
    standing: Option<Standing>,
}

impl Given {
    fn new(presence: Presence) -> Self {
        Self { id: NodeId::parse("edge-1").unwrap(), presence, open: Vec::new(), standing: None }
    }

    fn view(&self) -> NodeView<'_> {
        NodeView {
            id: &self.id,
            presence: &self.presence,
            last_seen_ms: 99_000,
            is_flapping: false,
            standing: self.standing.as_ref(),
            takes: true,
            open: &self.open,
            config: config::State::Unmanaged,
            config_why: &[],
            accounts: &[],
            events: &[],
        }
    }

    fn execution(&self, command: &Command, execution: &Execution) -> String {
        text(&[super::execution(&ExecutionView { node: &self.view(), command, execution })])
    }
}

#[test]
fn a_queued_command_waits_for_an_offline_node() {
    let given = Given::new(lost());
    insta::assert_snapshot!(given.execution(&command(1), &at(&[(Stage::Queued, 150_000, None)])), @"
    150 exec is queued for edge-1
      110 edge-1 is offline
        100 its connection ended, or its agent said goodbye, and it did not return within 10 s
      -…300 it expires if it has not begun
      150 made by operator ada for all that match site=berlin
    ");
}

#[test]
fn an_expired_command_names_the_time_when_the_node_was_away() {
    let mut given = Given::new(lost());
    given.presence.birth(S, 30_000, now(400));
    let why = "its time ended before the node could be told";
    let execution = at(&[(Stage::Queued, 150_000, None), (Stage::Expired, 300_000, Some(why))]);
    insta::assert_snapshot!(given.execution(&command(1), &execution), @"
    300 exec expired at edge-1
      300 its time ended before the node could be told
      100…400 edge-1: it was offline
      150 made by operator ada for all that match site=berlin
    ");
}

#[test]
fn the_rate_and_the_queue_keep_a_command_back() {
    let mut presence = Presence::new(0);
    presence.birth(S, 30_000, now(10));
    let mut given = Given::new(presence);
    let first = at(&[(Stage::Queued, 150_000, None), (Stage::Running, 151_000, None)]);
    given.open = vec![
        OpenAt { command: Arc::new(command(1)), execution: first },
        OpenAt { command: Arc::new(command(2)), execution: Execution::new(150_000, 170_000) },
    ];
    let mut second = Execution::new(150_000, 170_000);
    insta::assert_snapshot!(given.execution(&command(2), &second), @"
    150 exec is queued for edge-1
      150…170 its turn under the command's rate comes then
      151 it waits behind 1 command in queue main: first comes exec 01010101-0101-0101-0101-010101010101, running
      -…300 it expires if it has not begun
      150 made by operator ada for all that match site=berlin
    ");
    let later = Command { not_before_ms: Some(230_000), ..command(3) };
    second.slot_ms = 170_000;
    assert!(given.execution(&later, &second).contains("150…170 it is not to begin before"));
}

#[test]
fn a_rejected_and_a_lost_command_give_their_reasons() {
    let given = Given::new(lost());
    let why = "\"rm\" is not allowed; add these lines\n[command.rm]";
    let rejected = at(&[(Stage::Queued, 150_000, None), (Stage::Rejected, 151_000, Some(why))]);
    assert!(given.execution(&command(1), &rejected).contains("add these lines\n[command.rm]"));
    let mut lost = at(&[
        (Stage::Queued, 150_000, None),
        (Stage::Sent, 151_000, None),
        (Stage::Accepted, 152_000, None),
        (Stage::Failed, 200_000, Some("the node accepted it and has it no more")),
    ]);
    lost.history[3].reason.as_mut().unwrap().may_have_executed = true;
    lost.cancel_ms = Some(160_000);
    insta::assert_snapshot!(given.execution(&command(1), &lost), @"
    200 exec failed at edge-1
      200 the node accepted it and has it no more; it may have been done, wholly or in part
      160 an operator wanted it canceled; it ended before
      152 it was accepted
      151 it was sent
      150 made by operator ada for all that match site=berlin
    ");
}

#[test]
fn a_node_tells_its_state_and_what_else_is_the_matter() {
    let mut given = Given::new(lost());
    given.standing = Some(Standing::Revoked { at_ms: 99_000, reason: "stolen".to_owned() });
    given.open = vec![OpenAt { command: Arc::new(command(1)), execution: Execution::new(150_000, 150_000) }];
    let event =
        |at_ms, is_bad| Told { at_ms, kind: "edge_rollback".into(), message: "set back".into(), is_bad };
    let events = [event(90_000, true), event(80_000, false)];
    let settings =
        ["edge-1 is offline: version 1.3 waits at the hub".to_owned(), "site berlin sets a".to_owned()];
    let config = config::State::Offline;
    let causes = node(&NodeView { events: &events, config, config_why: &settings, ..given.view() });
    insta::assert_snapshot!(text(&causes), @"
    110 edge-1 is offline
      100 its connection ended, or its agent said goodbye, and it did not return within 10 s
    99 it was shut out: stolen; `fleet join-token create --replace edge-1` makes a token that lets it in again
    150 1 command not over (1 queued)
      150 queued exec in queue main; `fleet why 01010101-0101-0101-0101-010101010101`
    - edge-1 is offline: version 1.3 waits at the hub
      - site berlin sets a
    90 edge_rollback: set back
    ");
}

#[test]
fn every_presence_has_its_reason() {
    let mut presence = Presence::new(0);
    let says = |presence: &Presence| text(&node(&Given::new(presence.clone()).view()));
    assert!(says(&presence).contains("fleet-agent join"));
    presence.birth(S, 30_000, now(10));
    assert_eq!(says(&presence), "10 edge-1 is online\n  0…10 it had never been heard\n");
    presence.handle_timeout(now(60));
    assert!(says(&presence).contains("a heartbeat is late: one is due every 30 s"), "{}", says(&presence));
    presence.handle_timeout(now(110));
    assert!(says(&presence).contains("three of its heartbeat intervals (30 s each)"));
    presence.birth(S, 30_000, now(200));
    assert!(says(&presence).contains("110…200 it was offline"), "{}", says(&presence));
    presence.death(S, Some(900_000), now(210));
    assert!(says(&presence).contains("210…900 edge-1 is sleeping"), "{}", says(&presence));
    presence.handle_timeout(now(1_000));
    assert!(says(&presence).contains("900 it was to wake then"), "{}", says(&presence));
    presence.birth(S, 30_000, now(1_100));
    presence.hub_restart(now(1_200));
    assert!(says(&presence).contains("the hub was started again"), "{}", says(&presence));
    assert_eq!(presence.state, State::Suspect { cause: presence::Cause::HubRestart });
}
