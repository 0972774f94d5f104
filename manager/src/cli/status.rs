//! `fleet status`: the hub in one look.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::Value;

use super::{
    Context, Failure,
    output::{Tone, clean, count, paint, time, tone},
};
use crate::api::shapes::{Restored, Status};

/// Takes the common flags only.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fleet status\n  fleet status --hub http://10.0.0.5:8080 -o json")]
pub(super) struct StatusArgs {}

/// Runs the verb.
///
/// # Errors
/// [`Failure::Failed`] when the hub is not ready.
pub(super) async fn run(_: StatusArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let value: Value = client.get(&["api", "v1", "status"], &[]).await?;
    let status: Status = serde_json::from_value(value.clone())
        .map_err(|error| Failure::Failed(format!("the hub's status is not understood: {error}")))?;
    out.show(&value, || text(&status, client.base(), out.color))?;
    if status.ready {
        Ok(())
    } else {
        Err(Failure::Failed(format!("the hub is not ready: {}", status.reasons.join("; "))))
    }
}

fn text(status: &Status, base: &str, color: bool) -> String {
    let ready =
        if status.ready { paint("ready", Tone::Good, color) } else { paint("not ready", Tone::Bad, color) };
    let mut text = format!("hub      {base}  version {}  {ready}\n", clean(&status.version));
    for reason in &status.reasons {
        text.push_str(&format!("         {}\n", paint(&clean(reason), Tone::Bad, color)));
    }
    text.push_str(&format!("nodes    {}\n", words(&status.nodes_by_state, color)));
    text.push_str(&format!("ledger   {}\n", words(&status.accounts_by_state, color)));
    let record = |term: &str| count(status.records.get(term).copied().unwrap_or(0));
    text.push_str(&format!(
        "records  {} produced, {} stored, {} at edge, {} lost, {} quarantined\n",
        record("produced"),
        record("stored"),
        record("at_edge"),
        record("lost"),
        record("quarantined"),
    ));
    if !status.listeners.is_empty() {
        let listeners: Vec<_> =
            status.listeners.iter().map(|(name, at)| clean(&format!("{name} {at}"))).collect();
        text.push_str(&format!("listens  {}\n", listeners.join(", ")));
    }
    if let Some(restored) = &status.restored {
        text.push_str(&came(restored, color));
    }
    text
}

/// How far the nodes have come since the hub was restored.
fn came(restored: &Restored, color: bool) -> String {
    let Restored { nodes, nodes_back, nodes_settled, records_again, records_due, records_lost, .. } =
        restored;
    let word = match nodes_settled == nodes && restored.held == 0 {
        true => paint("settled", Tone::Good, color),
        false => paint("under way", Tone::Warning, color),
    };
    let mut text = format!(
        "restored {} from a backup of {}: {word}\n         {} of {} nodes are back, {} settled; {} records came again, \
         {} are due, {} are lost\n",
        time(restored.at_ms),
        time(restored.backup_ms),
        count(*nodes_back),
        count(*nodes),
        count(*nodes_settled),
        count(*records_again),
        count(*records_due),
        count(*records_lost),
    );
    if restored.samples_missing > 0 {
        let missing = count(restored.samples_missing);
        text.push_str(&format!("         {missing} samples of past weeks were not in the backup\n"));
    }
    if restored.held > 0 {
        let held = count(restored.held);
        text.push_str(&format!("         {held} executions wait for `fleet command approve` or `cancel`\n"));
    }
    if !restored.nodes_missing.is_empty() {
        text.push_str(&format!("         not back: {}\n", clean(&restored.nodes_missing.join(", "))));
    }
    text
}

fn words(counts: &BTreeMap<String, u64>, color: bool) -> String {
    if counts.is_empty() {
        return "none yet".to_owned();
    }
    let words = counts.iter().map(|(state, n)| format!("{} {}", count(*n), paint(state, tone(state), color)));
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_told_in_a_few_lines() {
        let status = Status {
            version: "0.1.0".to_owned(),
            ready: false,
            reasons: vec!["disk is full".to_owned()],
            nodes_by_state: [("offline".to_owned(), 2), ("online".to_owned(), 1_500)].into(),
            listeners: [("mqtts".to_owned(), "0.0.0.0:8883".to_owned())].into(),
            records: [("produced".to_owned(), 10_000), ("stored".to_owned(), 9_990)].into(),
            restored: Some(Restored {
                at_ms: 1_790_000_600_000,
                backup_ms: 1_790_000_000_000,
                nodes: 3,
                nodes_back: 2,
                nodes_settled: 1,
                nodes_missing: vec!["edge-3".to_owned()],
                records_again: 1_234,
                records_due: 10,
                records_lost: 5,
                held: 1,
                ..Restored::default()
            }),
            ..Status::default()
        };
        insta::assert_snapshot!(text(&status, "http://127.0.0.1:8080", false), @r"
        hub      http://127.0.0.1:8080  version 0.1.0  not ready
                 disk is full
        nodes    2 offline, 1,500 online
        ledger   none yet
        records  10,000 produced, 9,990 stored, 0 at edge, 0 lost, 0 quarantined
        listens  mqtts 0.0.0.0:8883
        restored 2026-09-21 14:23:20 from a backup of 2026-09-21 14:13:20: under way
                 2 of 3 nodes are back, 1 settled; 1,234 records came again, 10 are due, 5 are lost
                 1 executions wait for `fleet command approve` or `cancel`
                 not back: edge-3
        ");
    }
}
