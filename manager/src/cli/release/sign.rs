//! Signing: reads what the hub has, holds it against the root that is pinned beside the keys, adds, signs, sends.
//!
//! The hub is not trusted here: what it says is signed is verified first, as a node does.

use std::collections::BTreeMap;

use bytes::Bytes;
use fleet_schemas::update::{Custom, Digest, Target};
use reqwest::Method;
use serde_json::{Value, json};
use tough::schema::{RoleType, Root, Signed, Targets, key};

use super::{
    super::{Common, Context, Failure, output::read},
    PATH, RotateArgs, SignArgs,
    keys::{Keys, ROOT},
    named,
};
use crate::{
    api::shapes::{Artifact, ReleaseMetadata},
    artifact,
    clock::HubClock,
    release::{self, Key, MakeError, Signers, make},
};

/// What the hub has, verified.
struct Present {
    root: Signed<Root>,
    targets: Signed<Targets>,
    standing: ReleaseMetadata,
}

impl Present {
    /// The version of the next targets: a hub that was restored lets some out.
    fn next_targets(&self) -> u64 {
        (self.targets.signed.version.get() + 1).max(self.standing.next_targets)
    }
}

/// `fleet release init`.
pub(super) async fn init(mut keys: Keys, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let standing = standing(context).await?;
    if standing.initialised {
        return Err(Failure::Conflict(
            "releases have keys already; `fleet release rotate` changes them".to_owned(),
        ));
    }
    let (root_key, targets_key) = (keys.make("root")?, keys.make("targets")?);
    let now_ms = now_ms();
    let signers = signers(&standing, vec![root_key.public()], vec![targets_key.public()])?;
    let root = made(make::root(1, &signers, now_ms).and_then(|root| make::sign(root, &[&root_key])))?;
    let targets = made(
        make::targets(1, &BTreeMap::new(), now_ms).and_then(|targets| make::sign(targets, &[&targets_key])),
    )?;
    let body = json!({ "root": root, "targets": targets });
    let value = client.change(Method::PUT, &[&PATH[..], &["metadata"]].concat(), Some(&body)).await?;
    keys.pin(root.as_bytes())?;
    let folder = keys.folder().display().to_string();
    out.show(&value, || {
        format!(
            "The keys of releases are in {folder}; keep it off the hub, and a copy of it elsewhere.\n\
             Nodes trust them from their next update on. Sign what you push: fleet release sign NAME@VERSION\n"
        )
    })
}

/// `fleet release sign`.
pub(super) async fn sign(args: SignArgs, common: &Common, context: &Context) -> Result<(), Failure> {
    let SignArgs { release, artifact, epoch, downgrade, min_from, keys } = args;
    let (name, version) = named(&release)?;
    let mut keys = Keys::new(keys, common.data());
    let present = present(&keys, context).await?;
    let key = signer(&mut keys, &present, "targets", RoleType::Targets)?;
    let wanted = artifact.iter().map(|text| text.parse()).collect::<Result<Vec<Digest>, _>>();
    let wanted = wanted.map_err(|error| Failure::Usage(format!("--artifact: {error}")))?;
    let items: Vec<Value> = context.client.list(&["api", "v1", "artifacts"], &[], None).await?;
    let artifacts: Vec<Artifact> = read(&items)?;
    let mut entries = made(make::entries(&present.targets.signed))?;
    let now_ms = now_ms();
    let mut signed = Vec::new();
    for artifact in &artifacts {
        for pushed in &artifact.pushed {
            let target: Target =
                pushed.target.parse().map_err(|error| Failure::Failed(format!("{error}")))?;
            let digest: Digest =
                artifact.digest.parse().map_err(|error| Failure::Failed(format!("{error}")))?;
            let meant = target.name.as_str() == name && target.version.as_str() == version;
            if !meant || !(wanted.is_empty() || wanted.contains(&digest)) {
                continue;
            }
            let before = entries.iter().filter(|(known, _)| known.name == target.name);
            let highest = before.map(|(_, entry)| entry.custom.epoch).max().unwrap_or(0);
            let custom = Custom {
                epoch: epoch.unwrap_or(highest),
                min_from: min_from.clone().or_else(|| pushed.min_from.clone()),
                downgrade,
                device_kind: pushed.device_kind.clone(),
                signed_ms: now_ms,
            };
            let stored = artifact::Artifact { digest, length: artifact.length, pushed: Vec::new() };
            if signed.iter().any(|(known, _)| *known == target) {
                return Err(Failure::Usage(format!(
                    "more than one artifact was pushed as {target}; choose one by --artifact"
                )));
            }
            release::add(&mut entries, target.clone(), &stored, custom)
                .map_err(|error| Failure::Usage(error.to_string()))?;
            signed.push((target, digest));
        }
    }
    if let Some(missing) = wanted.iter().find(|digest| !signed.iter().any(|(_, signed)| signed == *digest)) {
        return Err(Failure::NotFound(format!(
            "no artifact {missing} was pushed as {release}; see `fleet artifact ls`"
        )));
    }
    if signed.is_empty() {
        return Err(Failure::NotFound(format!(
            "nothing was pushed as {release}; push it with `fleet artifact push FILE --name {name} --version {version}`"
        )));
    }
    let value = send(context, &present, &entries, &key, now_ms).await?;
    context.out.show(&value, || {
        let lines: Vec<String> =
            signed.iter().map(|(target, digest)| format!("  {target}  {digest}\n")).collect();
        format!("{release} is signed:\n{}Roll it out: fleet rollout create {release} --all\n", lines.concat())
    })
}

/// `fleet release rm`.
pub(super) async fn remove(release: &str, mut keys: Keys, context: &Context) -> Result<(), Failure> {
    let (name, version) = named(release)?;
    let present = present(&keys, context).await?;
    let key = signer(&mut keys, &present, "targets", RoleType::Targets)?;
    let mut entries = made(make::entries(&present.targets.signed))?;
    let before = entries.len();
    entries.retain(|target, _| target.name.as_str() != name || target.version.as_str() != version);
    if entries.len() == before {
        return Err(Failure::NotFound(format!(
            "there is no release {release}; `fleet release ls` lists them"
        )));
    }
    let value = send(context, &present, &entries, &key, now_ms()).await?;
    context.out.show(&value, || format!("{release} is taken back; its artifacts are kept\n"))
}

/// `fleet release rotate`.
pub(super) async fn rotate(args: RotateArgs, common: &Common, context: &Context) -> Result<(), Failure> {
    let RotateArgs { root, targets, renew, keys } = args;
    if !(root || targets || renew) {
        return Err(Failure::Usage("say what to change: --root, --targets or --renew".to_owned()));
    }
    let mut keys = Keys::new(keys, common.data());
    let present = present(&keys, context).await?;
    let old_root = signer(&mut keys, &present, "root", RoleType::Root)?;
    let old_targets = signer(&mut keys, &present, "targets", RoleType::Targets)?;
    let new_root = root.then(|| keys.make("root.next")).transpose()?;
    let new_targets = targets.then(|| keys.make("targets.next")).transpose()?;
    let root_key = new_root.as_ref().unwrap_or(&old_root);
    let targets_key = new_targets.as_ref().unwrap_or(&old_targets);
    let now_ms = now_ms();
    let signers = signers(&present.standing, vec![root_key.public()], vec![targets_key.public()])?;
    let version = present.root.signed.version.get();
    let text =
        make::root(version + 1, &signers, now_ms).and_then(|next| make::sign(next, &[root_key, &old_root]));
    let root_text = made(text)?;
    let entries = made(make::entries(&present.targets.signed))?;
    let next = present.next_targets();
    let text = make::targets(next, &entries, now_ms).and_then(|next| make::sign(next, &[targets_key]));
    let body = json!({ "root": root_text, "targets": made(text)? });
    let path = [&PATH[..], &["metadata"]].concat();
    let value = context.client.change(Method::PUT, &path, Some(&body)).await?;
    for (role, new) in [("root", new_root.is_some()), ("targets", new_targets.is_some())] {
        if new {
            keys.promote(role, version)?;
        }
    }
    context
        .out
        .show(&value, || format!("root {} and targets {next} are signed, for another year\n", version + 1))
}

async fn send(
    context: &Context,
    present: &Present,
    entries: &BTreeMap<Target, release::Entry>,
    key: &Key,
    now_ms: i64,
) -> Result<Value, Failure> {
    let next = present.next_targets();
    let text = made(make::targets(next, entries, now_ms).and_then(|targets| make::sign(targets, &[key])))?;
    let path = [&PATH[..], &["metadata"]].concat();
    context.client.change(Method::PUT, &path, Some(&json!({ "targets": text }))).await
}

/// What the hub has, read as a node reads it that trusts the root beside the keys.
async fn present(keys: &Keys, context: &Context) -> Result<Present, Failure> {
    let standing = standing(context).await?;
    let version = |of: &str| standing.roles.iter().find(|role| role.role == of).map(|role| role.version);
    let (Some(root), Some(targets), Some(snapshot)) =
        (version("root"), version("targets"), version("snapshot"))
    else {
        return Err(Failure::Usage(
            "releases have no keys yet; make them with `fleet release init`".to_owned(),
        ));
    };
    let mut names: Vec<String> = (1..=root).map(|version| format!("{version}.root.json")).collect();
    names.extend([
        "timestamp.json".to_owned(),
        format!("{snapshot}.snapshot.json"),
        format!("{targets}.targets.json"),
    ]);
    let mut files: BTreeMap<String, Bytes> = BTreeMap::new();
    for name in names {
        let path = [&PATH[..], &["metadata", &name]].concat();
        let text = context.client.text(&path, &[], "application/json").await?;
        files.insert(name, text.into());
    }
    match keys.root() {
        Some(pinned) => drop(files.insert(ROOT.to_owned(), pinned.into())),
        None => keys.pin(&files[ROOT])?,
    }
    // Signing anew mends what has expired, so that is no reason not to.
    release::verify(&files, i64::MIN).map_err(|error| {
        Failure::Failed(format!(
            "what the hub has is not what these keys signed: {error}. Is it the right hub, and the right --keys?"
        ))
    })?;
    let root = made(make::read(&files[&format!("{root}.root.json")]))?;
    let targets = made(make::read(&files[&format!("{targets}.targets.json")]))?;
    Ok(Present { root, targets, standing })
}

async fn standing(context: &Context) -> Result<ReleaseMetadata, Failure> {
    let value: Value = context.client.get(&[&PATH[..], &["metadata"]].concat(), &[]).await?;
    Ok(read(std::slice::from_ref(&value))?.remove(0))
}

/// The key that signs for a role today; ends a change of keys that was cut short after the hub had it.
fn signer(keys: &mut Keys, present: &Present, name: &str, role: RoleType) -> Result<Key, Failure> {
    let holds = |key: &Key| present.root.signed.keys(role).any(|known| *known == key.public());
    if let Some(key) = keys.find(name)?.filter(holds) {
        return Ok(key);
    }
    if let Some(next) = keys.find(&format!("{name}.next"))?.filter(holds) {
        keys.promote(name, present.root.signed.version.get().saturating_sub(1))?;
        return Ok(next);
    }
    keys.get(name)?;
    Err(Failure::Usage(format!(
        "{} does not sign for {name} at this hub; name the folder of the right keys with --keys",
        keys.folder().join(format!("{name}.pem")).display()
    )))
}

fn signers(
    standing: &ReleaseMetadata,
    root: Vec<key::Key>,
    targets: Vec<key::Key>,
) -> Result<Signers, Failure> {
    let key = |value: &Value| {
        serde_json::from_value(value.clone())
            .map_err(|error| Failure::Failed(format!("the hub's key is not understood: {error}")))
    };
    Ok(Signers {
        root,
        targets,
        snapshot: key(&standing.snapshot_key)?,
        timestamp: key(&standing.timestamp_key)?,
    })
}

fn made<T>(made: Result<T, MakeError>) -> Result<T, Failure> {
    made.map_err(|error| Failure::Failed(error.to_string()))
}

fn now_ms() -> i64 {
    HubClock::default().now().wall_ms
}
