//! `fleet release verify`: the agent's verifier over a folder, for whoever doubts a repository, or this verifier.

use std::{fs, io, path::PathBuf};

use clap::Args;
use fleet_edge_agent::core::tuf::{Trusted, TufError, Update};
use serde_json::json;

use super::{super::Out, Failure};
use crate::clock::HubClock;

/// What is read.
#[derive(Debug, Args)]
pub(in crate::cli) struct VerifyArgs {
    /// The folder with timestamp.json, 1.root.json and so on
    folder: PathBuf,
    /// The root to pin; without it: 1.root.json of the folder
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// What an earlier run trusted; read if it is there, written at the end, also when the repository is refused
    #[arg(long, value_name = "FILE")]
    trusted: Option<PathBuf>,
    /// The time by which expiry is judged, Unix milliseconds; now unless given
    #[arg(long, value_name = "MS")]
    at: Option<i64>,
    /// Also ask for this target
    #[arg(long, value_name = "TARGET")]
    target: Option<fleet_schemas::update::Target>,
}

/// Reads the folder, and says what a node would say.
///
/// # Errors
/// [`Failure::Failed`] when a node would refuse it.
pub(super) fn run(args: &VerifyArgs, out: Out) -> Result<(), Failure> {
    let now_ms = args.at.unwrap_or_else(|| HubClock::default().now().wall_ms);
    let kept = args.trusted.as_ref().and_then(|path| fs::read(path).ok());
    let mut trusted = match kept {
        Some(kept) => serde_json::from_slice(&kept)
            .map(Ok)
            .map_err(|error| Failure::Usage(format!("--trusted is not what this verb wrote: {error}")))?,
        None => {
            let path = args.root.clone().unwrap_or_else(|| args.folder.join("1.root.json"));
            let root = fs::read(&path)
                .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", path.display())))?;
            Trusted::pin(&root)
        }
    };
    let mut ended = trusted.as_ref().map(|_| ()).map_err(Clone::clone);
    if let Ok(known) = trusted.clone() {
        let (seen, end) = walk(known, args, now_ms);
        trusted = Ok(seen);
        ended = end;
    }
    if let (Ok(seen), Some(path)) = (&trusted, &args.trusted) {
        let text = serde_json::to_vec(seen).expect("texts make JSON");
        fs::write(path, text)
            .map_err(|error| Failure::Failed(format!("{} cannot be written: {error}", path.display())))?;
    }
    let signed = match (&ended, &trusted, &args.target) {
        (Ok(()), Ok(seen), Some(target)) => Some(seen.target(target)),
        _ => None,
    };
    let signed = match signed.transpose() {
        Ok(signed) => signed,
        Err(error) => {
            ended = Err(error);
            None
        }
    };
    let seen = trusted.as_ref().map(Trusted::seen).unwrap_or_default();
    let value = json!({
        "ok": ended.is_ok(),
        "code": ended.as_ref().err().map(TufError::code),
        "why": ended.as_ref().err().map(ToString::to_string),
        "seen": {"root": seen.root, "timestamp": seen.timestamp, "snapshot": seen.snapshot, "targets": seen.targets},
        "length": signed.as_ref().map(|signed| signed.length),
        "digest": signed.as_ref().map(|signed| signed.digest.to_string()),
    });
    out.show(&value, || format!("{value}\n"))?;
    ended.map_err(|error| Failure::Failed(format!("a node would refuse this: {error}")))
}

/// Hands the verifier one file after the other, and of each no more than it wants.
fn walk(trusted: Trusted, args: &VerifyArgs, now_ms: i64) -> (Trusted, Result<(), TufError>) {
    let mut update = match Update::new(trusted.clone(), now_ms) {
        Ok(update) => update,
        Err(error) => return (trusted, Err(error)),
    };
    while let Some(want) = update.wants() {
        let bytes = read(&args.folder.join(&want.name), want.limit + 1);
        if let Err(error) = update.take(bytes.ok().as_deref()) {
            return (update.finish(), Err(error));
        }
    }
    (update.finish(), Ok(()))
}

fn read(path: &std::path::Path, most: u64) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
