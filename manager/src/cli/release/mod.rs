//! `fleet release`: makes keys, signs, and shows what is signed. Keys stay on this machine; the hub gets signatures.

mod keys;
mod sign;
mod verify;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Common, Context, Failure,
    output::{Cell, Table, bytes, read, time, until},
};
use crate::api::shapes::{Release, ReleaseMetadata};
use keys::{KeyArgs, Keys};

pub use keys::FOLDER as RELEASE_KEYS;

const PATH: [&str; 3] = ["api", "v1", "releases"];

/// The verbs on releases.
#[derive(Debug, Subcommand)]
pub(super) enum ReleaseVerb {
    /// Make the keys that sign releases, and have the hub trust them
    #[command(
        after_help = "Examples:\n  fleet release init\n  fleet release init --keys /media/stick/fleet-keys\n\nKeep the folder off the hub, and a copy of it elsewhere: whoever has root.pem and its passphrase decides\nwhat the fleet runs, and without it the keys can never be changed."
    )]
    Init(KeyArgs),
    /// Sign artifacts that were pushed: from then on nodes may run them
    #[command(
        after_help = "Examples:\n  fleet release sign greeter@1.2.0\n  fleet release sign greeter@1.2.1 --epoch 2          1.2.0 may never run again where 1.2.1 ran\n  fleet release sign greeter@1.1.9 --downgrade        nodes that run 1.2.0 may go back to it\n  fleet release sign fleet-agent@0.2.0 --artifact 9f86…0a08 --min-from 0.1.5"
    )]
    Sign(SignArgs),
    /// Take a release back: nodes that do not run it yet refuse it from then on
    #[command(after_help = "Examples:\n  fleet release rm greeter@1.2.0")]
    Rm {
        /// NAME@VERSION
        release: String,
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// List releases
    #[command(after_help = "Examples:\n  fleet release ls\n  fleet release ls -o json")]
    Ls,
    /// Show one release as it is signed
    #[command(after_help = "Examples:\n  fleet release show greeter@1.2.0")]
    Show {
        /// NAME@VERSION
        release: String,
    },
    /// Change keys, or sign anew what would expire
    #[command(
        after_help = "Examples:\n  fleet release rotate --renew     the same keys for another year\n  fleet release rotate --targets   a new key for releases\n  fleet release rotate --root      a new root key"
    )]
    Rotate(RotateArgs),
    /// Read a repository in a folder as a node does; exits 1 when a node would refuse it
    #[command(hide = true)]
    Verify(verify::VerifyArgs),
}

/// What is signed.
#[derive(Debug, Args)]
pub(super) struct SignArgs {
    /// NAME@VERSION, as it was pushed
    release: String,
    /// Only these artifacts, by SHA-256; without it: all that were pushed under this name and version
    #[arg(long, value_name = "DIGEST")]
    artifact: Vec<String>,
    /// The security epoch: nodes that ran it take none of a lower one again; without it: as the releases before
    #[arg(long, value_name = "N")]
    epoch: Option<u64>,
    /// Let nodes that run a higher version go to this one
    #[arg(long)]
    downgrade: bool,
    /// The lowest version that may be updated from; without it: as it was pushed
    #[arg(long, value_name = "VERSION")]
    min_from: Option<String>,
    #[command(flatten)]
    keys: KeyArgs,
}

/// What is changed.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct RotateArgs {
    /// Make a new root key
    #[arg(long)]
    root: bool,
    /// Make a new key for releases
    #[arg(long)]
    targets: bool,
    /// Sign root and releases anew, for another year
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    keys: KeyArgs,
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(
    verb: ReleaseVerb,
    common: &Common,
    context: impl FnOnce() -> Result<Context, Failure>,
) -> Result<(), Failure> {
    let keys = |args| Keys::new(args, common.data());
    match verb {
        ReleaseVerb::Verify(args) => verify::run(&args, super::Out::new(common.output)),
        ReleaseVerb::Init(args) => sign::init(keys(args), &context()?).await,
        ReleaseVerb::Sign(args) => sign::sign(args, common, &context()?).await,
        ReleaseVerb::Rm { release, keys: args } => sign::remove(&release, keys(args), &context()?).await,
        ReleaseVerb::Rotate(args) => sign::rotate(args, common, &context()?).await,
        ReleaseVerb::Ls => list(&context()?).await,
        ReleaseVerb::Show { release } => show(&release, &context()?).await,
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let items: Vec<Value> = client.list(&PATH, &[], None).await?;
    let metadata: Value = client.get(&[&PATH[..], &["metadata"]].concat(), &[]).await?;
    let standing: ReleaseMetadata = read(std::slice::from_ref(&metadata))?.remove(0);
    let now_ms = super::node::now(context).await?;
    let releases: Vec<Release> = read(&items)?;
    out.show(&json!({ "items": items, "next": null, "metadata": metadata }), || {
        let mut text = match (standing.initialised, releases.is_empty()) {
            (false, _) => {
                return "releases have no keys yet; make them with `fleet release init`\n".to_owned();
            }
            (true, true) => "no releases; sign one with `fleet release sign NAME@VERSION`\n".to_owned(),
            (true, false) => table(&releases).text(out.color),
        };
        let ends = |role: &crate::api::shapes::ReleaseRole| {
            format!("{} {} ends in {}", role.role, role.version, until(now_ms, Some(role.expires_ms)))
        };
        let roles: Vec<String> = standing.roles.iter().map(ends).collect();
        text.push_str(&format!("\nsigned: {}\n", roles.join(", ")));
        text
    })
}

async fn show(release: &str, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let items: Vec<Value> = client.list(&PATH, &[], None).await?;
    let found = items.into_iter().find(|item| item["id"] == release);
    let value = found.ok_or_else(|| {
        Failure::NotFound(format!("there is no release {release}; `fleet release ls` lists them"))
    })?;
    let found: Release = read(std::slice::from_ref(&value))?.remove(0);
    out.show(&value, || {
        let mut table =
            Table::new(&["arch", "size", "epoch", "from", "downgrade", "device", "signed", "digest"]);
        for target in &found.targets {
            table.row(vec![
                Cell::left(&target.arch),
                Cell::right(bytes(target.length as f64)),
                Cell::right(target.epoch),
                Cell::left(target.min_from.as_deref().unwrap_or("any")),
                Cell::left(if target.downgrade { "allowed" } else { "no" }),
                Cell::left(target.device_kind.as_deref().unwrap_or("")),
                Cell::left(time(target.signed_ms)),
                Cell::left(&target.digest),
            ]);
        }
        format!("{} ({})\n\n{}", found.id, found.kind, table.text(out.color))
    })
}

fn table(releases: &[Release]) -> Table {
    let mut table = Table::new(&["release", "kind", "arch", "size", "epoch", "signed"]);
    for release in releases {
        let archs: Vec<&str> = release.targets.iter().map(|target| target.arch.as_str()).collect();
        let most = release.targets.iter().map(|target| target.length).max().unwrap_or_default();
        let epoch = release.targets.iter().map(|target| target.epoch).max().unwrap_or_default();
        let signed = release.targets.iter().map(|target| target.signed_ms).max().unwrap_or_default();
        table.row(vec![
            Cell::left(&release.id),
            Cell::left(&release.kind),
            Cell::left(archs.join(", ")),
            Cell::right(bytes(most as f64)),
            Cell::right(epoch),
            Cell::left(time(signed)),
        ]);
    }
    table
}

/// A release's name and version.
fn named(release: &str) -> Result<(&str, &str), Failure> {
    let wrong =
        || Failure::Usage(format!("{release:?} is no release; write NAME@VERSION, such as greeter@1.2.0"));
    release
        .split_once('@')
        .filter(|(name, version)| !name.is_empty() && !version.is_empty())
        .ok_or_else(wrong)
}
