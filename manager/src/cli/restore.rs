//! `fleet restore`: a data folder out of a backup, for a hub that is none but itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::{
    Common, Failure,
    backup::{blocking, failed, progress},
    output::{Out, ago, bytes, count, time},
};
use crate::{
    backup::{
        Error, read,
        restore::{self, Options, Report},
        sealed::Identities,
    },
    clock,
    config::PACKAGED,
};

const EXAMPLES: &str = "\
Examples:
  fleet restore monday.fleet-backup --data /var/lib/fleet
  fleet restore /mnt/backup/ --data /var/lib/fleet                     the newest in a folder
  fleet restore hub.fleet-backup --identity key.txt --data /var/lib/fleet
  fleet restore hub.fleet-backup --revocations /mnt/safe/revocations.jsonl --data /var/lib/fleet

The folder has to be empty. Afterwards start the hub on it: nodes come back by themselves and deliver again what they
keep, up to 48 hours; what nobody has is booked as lost, and `fleet status` shows how far it is. Without a file of
revocations nobody can tell who was shut out since the backup, so look at `fleet node ls` and `fleet access ls`, and open
join tokens end. Commands that are not idempotent and were on their way are held: `fleet command ls`, then
`fleet command approve` or `cancel`. Rollouts that were running are paused.
Never start the old hub again beside the restored one.";

/// Nodes that are named; the rest is counted.
const LISTED: usize = 20;
/// How a node comes back that the hub does not trust, or that does not trust the hub.
const JOIN_AGAIN: &str =
    "`fleet join-token create --replace NODE` here, then `fleet-agent join HUB --token TOKEN --force` there";

/// What to restore, and where to.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RestoreArgs {
    /// The backup, or a folder of them: then the newest
    #[arg(value_name = "FILE|DIR")]
    from: PathBuf,
    /// The identity file of age that opens it
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The revocations.jsonl that outlived the old hub
    #[arg(long, value_name = "FILE")]
    revocations: Option<PathBuf>,
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(args: RestoreArgs, common: &Common, out: Out) -> Result<(), Failure> {
    let data = common.data().to_owned();
    let work = move || {
        let wrong = |error: &Error| failed(error, "restore");
        let place = read::find(&args.from).map_err(|error| wrong(&error))?;
        let keys = args.identity.as_deref().map(Identities::read).transpose();
        let keys = keys.map_err(|error| wrong(&error.into()))?;
        let options = Options {
            place: &place,
            keys: keys.as_ref(),
            data: &data,
            trail: args.revocations.as_deref(),
            now: clock::HubClock::default().now(),
        };
        let bar = progress(out);
        let report = restore::restore(&options, &mut |name, bytes| {
            bar.set_position(bytes);
            bar.set_message(name.to_owned());
        });
        bar.finish_and_clear();
        let report = report.map_err(|error| wrong(&error))?;
        // As the user would name it.
        let data = fs::canonicalize(&data).unwrap_or(data);
        out.show(&json!(report), || text(&report, &data.display().to_string()))
    };
    blocking(work).await
}

fn text(report: &Report, data: &str) -> String {
    let mut text = format!(
        "restored {} to {data}\n  {} files, {}, of {} ({} ago), {} nodes\n",
        report.file,
        count(report.files as u64),
        bytes(report.bytes as f64),
        time(report.backup_ms),
        ago(report.restored_ms, Some(report.backup_ms)),
        count(report.nodes as u64),
    );
    let mut line = |words: String| text.push_str(&format!("  {words}\n"));
    line(format!("a new store, {}; settings count in epoch {}", report.store_id, report.config_epoch));
    if let Some((timestamp, snapshot)) = report.releases {
        line(format!("releases: timestamp {timestamp} and snapshot {snapshot} are issued, above any before"));
        line("  what was signed after the backup is to be signed again: `fleet release sign`".to_owned());
    }
    if report.revocations_given {
        line(format!("{} were shut out after the backup, and are again", count(report.shut_out)));
        if report.authorities > 0 {
            line(
                "the CA was changed after the backup: whom the new one signed comes in, and is signed anew"
                    .to_owned(),
            );
        }
    } else {
        line(format!(
            "no file of revocations was given: whom you shut out after the backup gets in again; {} open join tokens ended",
            count(report.tokens_ended)
        ));
    }
    if !report.revocations_given {
        line(
            "if the CA was changed after the backup (`fleet pki rotate ca`), nodes that renewed since do not get in:".to_owned(),
        );
        line(format!("  {JOIN_AGAIN}"));
    }
    if let Some(at_ms) = report.ca_dropped_ms {
        let nodes = &report.join_again;
        let more = nodes.len().saturating_sub(LISTED);
        let more = if more > 0 {
            format!(" and {} more (-o json lists them)", count(more as u64))
        } else {
            String::new()
        };
        let names = nodes.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        line(format!(
            "the CA of the backup was dropped on {} UTC: nodes that came since do not trust this hub, and join again:",
            time(at_ms)
        ));
        line(format!("  {names}{more}"));
        line(format!("  {JOIN_AGAIN}"));
        line(format!(
            "  nobody has to if you still have its pki/keys.json: put it into {data}/pki/ before you start"
        ));
    }
    if report.unreadable_lines > 0 {
        line(format!("{} lines of the file of revocations do not read", count(report.unreadable_lines)));
    }
    if report.held > 0 {
        line(format!(
            "{} executions of commands may have been done since, and are held: `fleet command ls`, then `approve` or `cancel`",
            count(report.held)
        ));
    }
    if !report.paused.is_empty() {
        line(format!("paused: {}; `fleet rollout resume` lets them go on", report.paused.join(", ")));
    }
    if report.samples_missing > 0 {
        line(format!(
            "{} samples of past weeks are not in the backup, and are booked as lost",
            count(report.samples_missing)
        ));
    }
    let start = if Path::new(data) == Path::new(PACKAGED) {
        "systemctl start fleet-hub".to_owned()
    } else {
        format!("fleet hub --data {data}")
    };
    line(format!("start it with `{start}`; `fleet status` shows who came back and with what"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_says_what_it_did_and_what_to_look_at() {
        let report = Report {
            file: "monday.fleet-backup".to_owned(),
            backup_ms: 1_790_000_000_000,
            restored_ms: 1_790_000_600_000,
            files: 9,
            bytes: 4_000_000,
            store_id: "0123".to_owned(),
            config_epoch: 1,
            nodes: 3,
            tokens_ended: 2,
            held: 1,
            paused: vec!["greeter-1.0.0-1".to_owned()],
            samples_missing: 12_000,
            releases: Some((1_790_000_600, 1_790_000_600)),
            ..Report::default()
        };
        insta::assert_snapshot!(text(&report, "/var/lib/fleet"));
        let rotated = Report {
            revocations_given: true,
            authorities: 1,
            ca_dropped_ms: Some(1_790_000_300_000),
            join_again: (1..=21).map(|n| format!("edge-{n}")).collect(),
            ..report
        };
        let text = text(&rotated, "/var/lib/fleet");
        assert!(
            text.contains("the CA was changed after the backup: whom the new one signed comes in"),
            "{text}"
        );
        assert!(text.contains("was dropped on 2026-09-21 14:18:20 UTC"), "{text}");
        assert!(text.contains("edge-20 and 1 more") && !text.contains("edge-21"), "{text}");
        assert!(text.contains("`fleet join-token create --replace NODE`"), "{text}");
    }
}
