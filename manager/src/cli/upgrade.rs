//! `fleet upgrade`: a data folder brought to this build's formats before a hub starts on it, or back.

use clap::Args;
use serde_json::json;

use super::{
    Common, Failure,
    backup::blocking,
    output::{Out, clean},
    target,
};
use crate::store::{
    disk::{DiskError, Folder},
    state,
    upgrade::{self, Outcome},
};

const EXAMPLES: &str = "\
Examples:
  fleet upgrade --data /var/lib/fleet            every file to this build's format; the old ones are kept beside
  fleet upgrade --back --data /var/lib/fleet     put them back, while no hub has written anything since

`fleet hub` does the same when it starts. Upgrade the hub first, agents after: a hub speaks with agents of the two
releases before it. May be killed at any time: it goes on where it was. A file of a newer build is refused by name.";

/// Which way.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct UpgradeArgs {
    /// Back to the formats of before
    #[arg(long)]
    back: bool,
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(args: UpgradeArgs, common: &Common, out: Out) -> Result<(), Failure> {
    let data = common.data().to_owned();
    if target::runs_on(&data) {
        let text = format!("a hub runs on {}; stop it first", data.display());
        return Err(Failure::Conflict(text));
    }
    if !data.join(state::FILE).exists() {
        return Err(Failure::NotFound(format!("there is no hub's data in {}", data.display())));
    }
    let back = args.back;
    let work = move || {
        let disk = Folder::new(&data);
        let outcomes = match back {
            true => upgrade::back(&disk),
            false => upgrade::upgrade(&disk, &mut |progress| {
                if progress.format < progress.to && progress.steps % 100 == 0 {
                    let (name, says) = (clean(&progress.name), progress.says);
                    eprintln!(
                        "{name}: format {} to {}: {says}, step {}",
                        progress.format, progress.to, progress.steps
                    );
                }
            }),
        };
        outcomes.map_err(|error| failed(&error))
    };
    let outcomes = blocking(work).await?;
    let shown = |one: &Outcome| json!({ "file": one.name, "format": one.format, "changed": one.changed });
    let value = json!({ "files": outcomes.iter().map(shown).collect::<Vec<_>>() });
    out.show(&value, || text(&outcomes, back))
}

fn failed(error: &DiskError) -> Failure {
    let text = format!("failed to upgrade: {error}");
    match error {
        DiskError::Touched { .. } | DiskError::Locked { .. } => Failure::Conflict(text),
        _ => Failure::Failed(text),
    }
}

fn text(outcomes: &[Outcome], back: bool) -> String {
    let mut text = String::new();
    for Outcome { name, format, .. } in outcomes.iter().filter(|outcome| outcome.changed) {
        text.push_str(&format!("{name}  format {format}\n"));
    }
    match (text.is_empty(), back) {
        (true, false) => text.push_str(&format!("{} files, all of this build's formats\n", outcomes.len())),
        (true, true) => text.push_str("there is nothing to put back\n"),
        (false, false) => text.push_str("`fleet upgrade --back` undoes it until a hub writes\n"),
        (false, true) => text.push_str("start the build of before on it\n"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_told_with_the_way_back() {
        let outcome = |changed| Outcome { name: "state.redb".to_owned(), format: 2, changed };
        assert!(text(&[outcome(true)], false).ends_with("until a hub writes\n"));
        assert_eq!(text(&[outcome(false)], false), "1 files, all of this build's formats\n");
        assert_eq!(text(&[outcome(false)], true), "there is nothing to put back\n");
    }
}
