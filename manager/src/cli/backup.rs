//! `fleet backup`: a hub as it is at one moment, to a file or a folder, while it runs or from its data folder.
//!
//! A backup gets its name only when it is whole: it is written beside, synced and read back first. Owns the flags and
//! what is printed; [`take`] writes, [`crate::backup`] makes and reads.

#[cfg(test)]
mod nights;
mod take;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task};

use super::{
    Common, Failure,
    client::Client,
    output::{Format, Out, bytes, count, time},
    target,
};
use crate::{
    backup::{
        Error, SUFFIX,
        make::{self, Ask, Sources},
        prune::{self, Plan},
        read::{self, Checked, Place},
        restore,
        sealed::{Identities, Recipient},
    },
    clock,
    config::{Config, Overrides},
};
use take::{Incoming, Pipe, Taking};

const EXAMPLES: &str = "\
Examples:
  fleet backup /mnt/backup/monday.fleet-backup               of the hub that runs here, while it runs
  fleet backup /mnt/backup/ --telemetry                      into a folder: week files and artifacts are there once
  fleet backup /mnt/backup/ --telemetry --keep 14            every night: the newest 14 stay, older ones go
  fleet backup /mnt/backup/ --keep 14 --dry-run              which would go
  fleet backup hub.fleet-backup --recipient age1…            encrypted; `age-keygen -o key.txt` makes a key
  fleet backup hub.fleet-backup --hub https://hub.example:8080   over the network, with an admin's token
  fleet backup hub.fleet-backup --data /var/lib/fleet        of a folder on which no hub runs
  fleet backup verify /mnt/backup/                           the newest in a folder, every byte of it

It holds what the hub knows, its keys (the CA's, too: keep it as you keep those, or encrypt it), releases, artifacts and
settings; samples of past weeks only with --telemetry, without it those of about the last day. A revocation after the
backup is in revocations.jsonl of the data folder: keep a copy of that elsewhere (`fleet hub --revocations FILE`).
Put it into cron or a timer: exit code 0 means written, synced and read back.";

/// What to back up, and where to.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = EXAMPLES)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    verb: Option<BackupVerb>,
    /// The file to write, which must not be there yet; or a folder, in which it gets a name
    #[arg(value_name = "FILE|DIR", required = true)]
    to: Option<PathBuf>,
    /// With the samples of all weeks that are kept
    #[arg(long)]
    telemetry: bool,
    /// Encrypt for this key of age, such as age1…; repeat for more
    #[arg(long = "recipient", value_name = "AGE1…", value_parser = recipient)]
    recipients: Vec<Recipient>,
    /// In a folder: once this one is written and read back, remove older ones until so many are left, and what only
    /// they needed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Only show what --keep would remove; nothing is written
    #[arg(long, requires = "keep")]
    dry_run: bool,
}

#[derive(Debug, Subcommand)]
enum BackupVerb {
    /// Read a backup to its end, compare all of it with its manifest, and open its stores
    #[command(after_help = "Examples:\n  fleet backup verify monday.fleet-backup\n  \
        fleet backup verify /mnt/backup/                    the newest in a folder\n  \
        fleet backup verify hub.fleet-backup --identity key.txt -o json\n\n\
        Its stores are unpacked beside it for that, and removed again. Exit code 1 when it is damaged.")]
    Verify {
        /// The backup, or a folder of them: then the newest
        #[arg(value_name = "FILE|DIR")]
        from: PathBuf,
        /// The identity file of age that opens it
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
    },
}

fn recipient(text: &str) -> Result<Recipient, String> {
    text.parse().map_err(|error: crate::backup::sealed::SealError| error.to_string())
}

/// How a failed backup ends.
pub(super) fn failed(error: &Error, what: &str) -> Failure {
    let text = format!("failed to {what}: {error}");
    match error {
        Error::None(_) => Failure::NotFound(text),
        Error::NotEmpty(_) | Error::Busy(_) | Error::Recipients { .. } => Failure::Conflict(text),
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Failure::NotFound(text),
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Failure::Denied(text)
        }
        Error::Sealed(_) => Failure::Usage(text),
        _ => Failure::Failed(text),
    }
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(args: BackupArgs, common: &Common, out: Out) -> Result<(), Failure> {
    if let Some(BackupVerb::Verify { from, identity }) = args.verb {
        let checked = blocking(move || verify(&from, identity.as_deref(), out)).await?;
        return show(&checked, "good", out);
    }
    let to = args.to.unwrap_or_default();
    let (folder, name) = place(&to)?;
    let keep = args.keep.map(|keep| keep as usize);
    if keep.is_some() && !to.is_dir() {
        let text = format!("--keep counts the backups of a folder; {} is none", to.display());
        return Err(Failure::Usage(text));
    }
    if let Some(keep) = keep.filter(|_| args.dry_run) {
        let plan = blocking(move || {
            prune::plan(&folder, None, keep).map_err(|error| failed(&error, "look at old backups"))
        });
        let plan = plan.await?;
        return out.show(&json!({ "dry_run": true, "pruned": plan }), || would_go(&plan));
    }
    let file = folder.join(&name);
    if file.exists() {
        let text = format!("{} is there already; choose another name, or a folder", file.display());
        return Err(Failure::Conflict(text));
    }
    let is_folder = to.is_dir();
    let alone = is_folder.then(|| prune::Alone::new(&folder)).transpose();
    let alone = alone.map_err(|error| failed(&error, "back up"))?.flatten();
    if is_folder {
        prune::hold_to(&folder, &args.recipients).map_err(|error| failed(&error, "back up"))?;
    }
    if alone.is_some() {
        prune::clear(&folder).map_err(|error| failed(&error, "back up"))?;
    }
    let have =
        if is_folder { read::objects(&folder.join(crate::backup::OBJECTS)) } else { Ok(Default::default()) };
    let have = have.map_err(|error| failed(&error, "back up"))?;
    let have = have.into_keys().collect();
    let ask = Ask { telemetry: args.telemetry, objects: is_folder, have };
    let bar = progress(out);
    let about = Arc::<AtomicU64>::default();
    let (incoming, source) = match source(common)? {
        Source::Hub(client) => {
            let body = json!({ "telemetry": ask.telemetry, "objects": ask.objects, "have": ask.have });
            let mut pieces = client.stream(&["api", "v1", "backup"], &body).await?;
            about.store(pieces.said(make::BYTES_HEADER).unwrap_or(0), Ordering::Relaxed);
            let (to, incoming) = Incoming::pair();
            let source = task::spawn(async move {
                loop {
                    match pieces.next().await {
                        Ok(Some(piece)) => {
                            if to.send(Ok(piece)).await.is_err() {
                                return Ok(());
                            }
                        }
                        Ok(None) => return Ok(()),
                        Err(failure) => {
                            // The writer must not take what came for everything.
                            drop(to.send(Err(std::io::Error::other("the hub broke off"))).await);
                            return Err(failure);
                        }
                    }
                }
            });
            (incoming, source)
        }
        Source::Folder(data) => {
            let (to, incoming) = Incoming::pair();
            let about = about.clone();
            (incoming, task::spawn_blocking(move || offline(&data, &ask, to, &about)))
        }
    };
    let (recipients, bar_there) = (args.recipients, bar.clone());
    let taking = Taking { file: file.clone(), is_folder, recipients, about, bar: bar_there };
    let taken = blocking(move || taking.run(incoming).map_err(|error| failed(&error, "back up"))).await;
    let source = source.await.map_err(|error| Failure::Failed(format!("the backup ended badly: {error}")))?;
    bar.finish_and_clear();
    // What the hub says is the cause of what the writer says.
    source?;
    let taken = taken?;
    let pruned = match keep {
        Some(keep) => blocking(move || Ok(prune_folder(&folder, &file, keep, alone.is_some()))).await?,
        None => Ok(Plan::default()),
    };
    let mut value = json!(taken);
    if let (Some(_), Ok(plan)) = (keep, &pruned) {
        value["pruned"] = json!(plan);
    }
    out.show(&value, || {
        let went = pruned.as_ref().ok().filter(|_| keep.is_some()).map(went).unwrap_or_default();
        text(&taken, "written and read back") + &went
    })?;
    pruned.map(drop).map_err(|error| {
        Failure::Partly(format!("the backup is good, but not all old ones were removed: {error}"))
    })
}

/// Removes what is older than the `keep` newest, `file` among them. It is whole: it has its name.
fn prune_folder(folder: &Path, file: &Path, keep: usize, is_alone: bool) -> Result<Plan, Error> {
    if !is_alone {
        // Another one may count on what lies there.
        let source = std::io::Error::other("its filesystem has no locks, so another backup may be under way");
        return Err(Error::Io { path: folder.to_owned(), source });
    }
    let plan = prune::plan(folder, Some(file), keep)?;
    prune::carry_out(folder, &plan, &mut |path| std::fs::remove_file(path))?;
    Ok(plan)
}

fn went(plan: &Plan) -> String {
    let Plan { kept, removed, objects, bytes: size } = plan;
    let (left, gone) = (backups(kept.len()), backups(removed.len()));
    if removed.is_empty() {
        return format!("  in the folder: {left}; nothing is removed\n");
    }
    let (objects, size) = (count(objects.len() as u64), bytes(*size as f64));
    format!("  removed: {gone}, and of what only they needed {objects} files, {size}; left: {left}\n")
}

fn would_go(plan: &Plan) -> String {
    let Plan { kept, removed, objects, bytes: size } = plan;
    if removed.is_empty() {
        return format!("nothing would go; with the next one: {}\n", backups(kept.len() + 1));
    }
    let mut text = String::new();
    for path in removed.iter().chain(objects) {
        text.push_str(&format!("would remove {}\n", path.display()));
    }
    text + &format!(
        "would go: {}, and of what only they needed {} files, {}; left with the next one: {}\n",
        backups(removed.len()),
        count(objects.len() as u64),
        bytes(*size as f64),
        backups(kept.len() + 1)
    )
}

fn backups(many: usize) -> String {
    format!("{} backup{}", count(many as u64), if many == 1 { "" } else { "s" })
}

enum Source {
    Hub(Client),
    Folder(PathBuf),
}

/// The hub that is named or runs, else the folder without one.
fn source(common: &Common) -> Result<Source, Failure> {
    let data = common.data();
    let idle =
        common.hub.is_none() && !target::runs_on(data) && data.join(crate::store::state::FILE).exists();
    match idle {
        true => Ok(Source::Folder(data.to_owned())),
        false => Ok(Source::Hub(Client::new(target::find(common)?)?)),
    }
}

/// Backs up a folder on which no hub runs; says in `about` how many bytes it reads.
fn offline(
    data: &Path,
    ask: &Ask,
    to: mpsc::Sender<std::io::Result<bytes::Bytes>>,
    about: &AtomicU64,
) -> Result<(), Failure> {
    let wrong = |error: &Error| failed(error, "back up");
    let now_ms = clock::wall_ms();
    let (state, samples) =
        restore::stores(data, clock::HubClock::default().now()).map_err(|error| wrong(&error))?;
    let moment = samples.moment(&state).map_err(|error| wrong(&error.into()))?;
    let moment = moment.map_err(|error| wrong(&error.into()))?;
    let config = Config::load(data, &Overrides::default())
        .map_err(|error| Failure::Failed(format!("failed to back up: {error}")))?;
    let trail = config.trail();
    let sources = Sources {
        data: data.to_owned(),
        moment,
        releases: None,
        trail: make::trail_elsewhere(data, &trail),
        store_id: state.store_id().to_string(),
        now_ms,
    };
    about.store(make::estimate(&sources, ask), Ordering::Relaxed);
    let gone = to.clone();
    let go_on = || !gone.is_closed();
    let mut pipe = Pipe::new(to);
    match make::write(sources, ask, &mut pipe, &go_on) {
        Ok(_) => Ok(()),
        // Whoever took it has failed, and says why.
        Err(_) if gone.is_closed() => Ok(()),
        Err(error) => {
            pipe.fail(&error.to_string());
            Err(wrong(&error))
        }
    }
}

/// The folder that a backup goes to, and its name there.
fn place(to: &Path) -> Result<(PathBuf, String), Failure> {
    if to.is_dir() {
        let now = jiff::Timestamp::from_millisecond(clock::wall_ms()).unwrap_or_default();
        let at = now.strftime("%Y-%m-%dT%H%M%SZ");
        return Ok((to.to_owned(), format!("{at}{SUFFIX}")));
    }
    let wrong = || Failure::Usage(format!("{} is no name of a file", to.display()));
    let name = to.file_name().and_then(|name| name.to_str()).ok_or_else(wrong)?;
    let folder = match to.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    if to.to_string_lossy().ends_with('/') || !folder.is_dir() {
        return Err(Failure::NotFound(format!("there is no folder {}; make it first", folder.display())));
    }
    Ok((folder, name.to_owned()))
}

fn verify(from: &Path, identity: Option<&Path>, out: Out) -> Result<Checked, Failure> {
    let wrong = |error: &Error| failed(error, "verify");
    let place = read::find(from).map_err(|error| wrong(&error))?;
    let keys = identity.map(Identities::read).transpose().map_err(|error| wrong(&error.into()))?;
    let bar = progress(out);
    let checked = verify_at(&place, keys.as_ref(), &bar).map_err(|error| wrong(&error))?;
    bar.finish_and_clear();
    Ok(checked)
}

/// Verifies with its stores unpacked beside it.
fn verify_at(place: &Place, keys: Option<&Identities>, bar: &ProgressBar) -> Result<Checked, Error> {
    let folder = match place.file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let scratch = tempfile::Builder::new().prefix(prune::SCRATCH).tempdir_in(folder);
    let scratch = scratch.map_err(|source| Error::Io { path: folder.to_owned(), source })?;
    read::verify(place, keys, scratch.path(), &mut |name, bytes| {
        bar.set_position(bytes);
        bar.set_message(format!("reads back {name}"));
    })
}

/// How far it is, on a terminal.
pub(super) fn progress(out: Out) -> ProgressBar {
    if out.format != Format::Table || !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {bytes}  {bytes_per_sec}  {wide_msg}");
    ProgressBar::new_spinner().with_style(style.expect("the template is sound"))
}

/// Runs what waits for disks.
pub(super) async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Failure> + Send + 'static,
) -> Result<R, Failure> {
    task::spawn_blocking(work).await.map_err(|error| Failure::Failed(format!("it ended badly: {error}")))?
}

fn show(checked: &Checked, word: &str, out: Out) -> Result<(), Failure> {
    let value: Value = json!(checked);
    out.show(&value, || text(checked, word))
}

fn text(checked: &Checked, word: &str) -> String {
    let Checked { file, made_ms, version, telemetry, encrypted, files, size, counts, opened, .. } = checked;
    let counts: Vec<_> =
        counts.iter().map(|(what, n)| format!("{} {}", count(*n), what.replace('_', " "))).collect();
    let mut text = format!(
        "{}  {word}\n  {}, {} files of {}, made {} by version {version}\n",
        file.display(),
        bytes(*size as f64),
        count(*files as u64),
        bytes(checked.bytes as f64),
        time(*made_ms),
    );
    text.push_str(&format!("  {}\n", counts.join(", ")));
    let stores = match opened {
        0 => "every byte as its manifest has it; its stores can be opened with --identity only".to_owned(),
        opened => format!("every byte as its manifest has it, {opened} stores opened and sound"),
    };
    text.push_str(&format!("  {stores}\n"));
    if !telemetry {
        text.push_str("  without the samples of past weeks (--telemetry)\n");
    }
    // Weeks that were not asked for are told above, and what a demo keeps for its nodes is not the hub's.
    let missing = |name: &&String| name.as_str() != "nodes" && !name.starts_with("telemetry/");
    let missing: Vec<_> = checked.left_out.iter().filter(missing).map(String::as_str).collect();
    if !missing.is_empty() {
        text.push_str(&format!("  NOT in it: {}\n", missing.join(", ")));
    }
    text.push_str(match encrypted {
        true => "  encrypted\n",
        false => "  NOT encrypted: it holds the hub's keys, keep it where only you can read it\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_told_in_a_few_lines() {
        let checked = Checked {
            file: PathBuf::from("/mnt/monday.fleet-backup"),
            made_ms: 1_790_000_000_000,
            version: "0.1.0".to_owned(),
            store_id: "00".to_owned(),
            telemetry: false,
            encrypted: false,
            files: 9,
            bytes: 5_000_000,
            size: 400_000,
            counts: [("nodes", 3), ("batches_in_inbox", 1_200)].into(),
            opened: 2,
            left_out: Vec::new(),
        };
        insta::assert_snapshot!(text(&checked, "good"));
    }

    #[test]
    fn what_goes_is_told_and_what_would() {
        let path = |name: &str| PathBuf::from(name);
        let plan = Plan {
            kept: vec![path("c")],
            removed: vec![path("a"), path("b")],
            objects: vec![path("objects/x")],
            bytes: 3 << 20,
        };
        let told = "removed: 2 backups, and of what only they needed 1 files, 3.0 MiB; left: 1 backup";
        assert_eq!(went(&plan), format!("  {told}\n"));
        insta::assert_snapshot!(would_go(&plan), @r"
        would remove a
        would remove b
        would remove objects/x
        would go: 2 backups, and of what only they needed 1 files, 3.0 MiB; left with the next one: 2 backups
        ");
        let first = Plan { kept: vec![path("c")], ..Plan::default() };
        assert_eq!(went(&first), "  in the folder: 1 backup; nothing is removed\n");
        assert_eq!(would_go(&first), "nothing would go; with the next one: 2 backups\n");
    }

    #[test]
    fn a_name_needs_a_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        assert!(place(folder.path()).unwrap().1.ends_with(SUFFIX));
        assert_eq!(place(&folder.path().join("a")).unwrap(), (folder.path().to_owned(), "a".to_owned()));
        assert_eq!(place(&folder.path().join("none/a")).unwrap_err().code(), 3);
    }
}
