//! `fleet artifact`: bytes that nodes may run, once they are signed.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use fleet_schemas::update::{Digest, Kind};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Context, Failure,
    output::{Cell, Format, Table, bytes, read, time},
};
use crate::api::shapes::{Artifact, Upload};

/// Bytes of one request; each has to be through within the hub's minute.
const PIECE: u64 = 2 * 1024 * 1024;
/// Times in a row that nothing came through before the push is given up; `push` goes on from there.
const ATTEMPTS: u32 = 5;

/// The verbs on artifacts.
#[derive(Debug, Subcommand)]
pub(super) enum ArtifactVerb {
    /// Push a file; pushed again after it broke off, it goes on from there
    #[command(
        disable_version_flag = true,
        after_help = "Examples:\n  fleet artifact push greeter.tar --name greeter --version 1.2.0\n  fleet artifact push fleet-agent --kind agent --name fleet-agent --version 0.2.0 --arch aarch64\n  fleet artifact push esp32.bin --kind device-firmware --name thermo --version 2026.11 --device-kind esp32\n\nThen sign it: fleet release sign greeter@1.2.0"
    )]
    Push(PushArgs),
    /// List artifacts
    #[command(after_help = "Examples:\n  fleet artifact ls\n  fleet artifact ls -o json")]
    Ls,
    /// Remove an artifact that no release names, or an upload that broke off
    #[command(
        after_help = "Examples:\n  fleet artifact rm 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )]
    Rm {
        /// Its SHA-256
        digest: String,
    },
}

/// What is pushed.
#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// The file: for a skill a tar or tar.zst, for the agent its executable, else whatever the hooks or the device take
    file: PathBuf,
    /// What it is for: skill, agent, firmware or device-firmware
    #[arg(long, default_value = "skill")]
    kind: Kind,
    /// Its name, such as greeter
    #[arg(long)]
    name: String,
    /// Its version; semantic versioning for skills and agents
    #[arg(long)]
    version: String,
    /// The machines that it fits, such as aarch64 or x86_64
    #[arg(long, default_value = "any")]
    arch: String,
    /// The lowest version that may be updated from; `fleet release sign` takes it over
    #[arg(long, value_name = "VERSION")]
    min_from: Option<String>,
    /// For device-firmware: the kind of device that it fits; `fleet release sign` takes it over
    #[arg(long, value_name = "KIND")]
    device_kind: Option<String>,
}

const PATH: [&str; 3] = ["api", "v1", "artifacts"];

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: ArtifactVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    match verb {
        ArtifactVerb::Push(args) => push(args, context).await,
        ArtifactVerb::Ls => {
            let items: Vec<Value> = client.list(&PATH, &[], None).await?;
            let artifacts: Vec<Artifact> = read(&items)?;
            out.show(&json!({ "items": items, "next": null }), || match artifacts.is_empty() {
                true => "no artifacts; push one with `fleet artifact push FILE`\n".to_owned(),
                false => table(&artifacts).text(out.color),
            })
        }
        ArtifactVerb::Rm { digest } => {
            client.change(Method::DELETE, &[&PATH[..], &[&digest]].concat(), None).await?;
            out.show(&Value::Null, || format!("artifact {digest} removed\n"))
        }
    }
}

async fn push(args: PushArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let PushArgs { file: path, kind, name, version, arch, min_from, device_kind } = args;
    let (digest, length) = measured(&path)?;
    let digest = digest.to_string();
    let body = json!({
        "kind": kind, "name": name, "version": version, "arch": arch, "length": length, "sha256": digest,
        "min_from": min_from, "device_kind": device_kind,
    });
    let upload = client.change(Method::POST, &PATH, Some(&body)).await?;
    let mut upload: Upload = read(std::slice::from_ref(&upload))?.remove(0);
    let stored = upload.complete;
    let bar = bar(length, out.format == Format::Table);
    let mut file = File::open(&path).map_err(unreadable(&path))?;
    let mut failures = 0;
    while !upload.complete {
        bar.set_position(upload.offset);
        let piece = piece(&mut file, upload.offset, length).map_err(unreadable(&path))?;
        let at = [&PATH[..], &[&digest, "upload"]].concat();
        upload = match client.append(&at, upload.offset, piece).await {
            Ok(more) => {
                failures = 0;
                more
            }
            // Some of it may have come through, or another push is at work.
            Err(Failure::Conflict(_) | Failure::Unreachable(_)) if failures < ATTEMPTS => {
                failures += 1;
                client.get(&at, &[]).await?
            }
            Err(failure) => return Err(failure),
        };
    }
    bar.finish_and_clear();
    let target = format!("{kind}/{name}/{version}/{arch}");
    let shown = json!({ "digest": digest, "length": length, "target": target, "stored_before": stored });
    out.show(&shown, || {
        let how = if stored { "was here already; it is kept as" } else { "is pushed as" };
        format!("{digest} {how} {target}\nNodes may run it when it is signed: fleet release sign {name}@{version}\n")
    })
}

fn bar(length: u64, shown: bool) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}");
    ProgressBar::new(length).with_style(style.expect("the template is sound"))
}

/// A file's digest and length.
fn measured(path: &Path) -> Result<(Digest, u64), Failure> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    let (mut sha, mut length, mut piece) = (Sha256::new(), 0_u64, vec![0; 256 * 1024]);
    loop {
        match file.read(&mut piece).map_err(unreadable(path))? {
            0 => return Ok((Digest(sha.finalize().into()), length)),
            read => {
                sha.update(&piece[..read]);
                length += read as u64;
            }
        }
    }
}

/// The next bytes. None where all have arrived: a hub that was cut before it named them does so when asked to append
/// nothing.
fn piece(file: &mut File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut piece = Vec::new();
    file.take(PIECE.min(length.saturating_sub(offset))).read_to_end(&mut piece)?;
    match piece.is_empty() && offset < length {
        true => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter meanwhile")),
        false => Ok(piece),
    }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> Failure + use<> {
    let path = path.display().to_string();
    move |error| Failure::Usage(format!("{path} cannot be read: {error}"))
}

fn table(artifacts: &[Artifact]) -> Table {
    let mut table = Table::new(&["digest", "size", "pushed as", "pushed", "by", "released"]);
    for artifact in artifacts {
        let last = artifact.pushed.last();
        let names: Vec<&str> = artifact.pushed.iter().map(|pushed| pushed.target.as_str()).collect();
        table.row(vec![
            Cell::left(&artifact.digest),
            Cell::right(bytes(artifact.length as f64)),
            Cell::left(names.join(", ")),
            Cell::left(last.map(|pushed| time(pushed.at_ms)).unwrap_or_default()),
            Cell::left(last.map(|pushed| pushed.by.as_str()).unwrap_or_default()),
            Cell::left(if artifact.released.is_empty() { "no" } else { "yes" }),
        ]);
    }
    table
}
