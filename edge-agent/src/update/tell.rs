//! What the hub is told of updates: each step, and what runs.

use std::{fs, path::PathBuf};

use ciborium::Value;
use fleet_schemas::{
    MetricName,
    event::{Event, Severity},
    limits,
    session::Versions,
    update::{AGENT, EVENT, Kind, RUNNING, Report, Running, State},
};

use crate::{
    core::update::Update,
    launch,
    run::VERSION,
    store::update::{Account, Own},
    uplink::{Handed, Name, Names, Submission},
};

/// How often an event is handed in that the outbox does not take.
pub(super) const TRIES: u32 = 3;

/// An event that is stored once, however often it is told.
#[derive(Debug, Clone)]
pub(super) struct Told {
    event: Event,
    name: Name,
    even_if_full: bool,
}

impl From<Told> for Handed {
    fn from(Told { event, name, even_if_full }: Told) -> Self {
        let (submission, names) = (Submission::Events(vec![event]), Names::Each(vec![Some(name)]));
        Self { names, even_if_full, ..submission.into() }
    }
}

/// `update`: `data` is a [`Report`].
pub(super) fn report(report: &Report, time_ms: i64) -> Told {
    let Report { target, state, reason, .. } = report;
    let what = format!("{} {} of kind {}", target.name, target.version, target.kind);
    let mut message = match reason {
        Some(reason) => {
            format!("{what}: {state} ({}: {})", reason.code, reason.message, state = state.as_str())
        }
        None => format!("{what}: {}", state.as_str()),
    };
    message.truncate(message.floor_char_boundary(limits::EVENT_MESSAGE_BYTES));
    let severity = match state {
        State::RolledBack | State::Failed | State::TimedOut => Severity::Error,
        State::Rejected => Severity::Warning,
        State::Offered
        | State::Accepted
        | State::Downloading
        | State::Downloaded
        | State::Installing
        | State::Switching
        | State::Probation
        | State::Confirmed
        | State::Skipped
        | State::Superseded
        | State::Canceled => Severity::Info,
    };
    let event = Event {
        time_ms,
        kind: kind(EVENT),
        severity,
        message,
        data: Some(report.to_data()),
        device: report.device.clone(),
        id: None,
    };
    let name = Name::new(EVENT, &format!("{} {}", report.command, state.as_str()), b"");
    // The command's result says the same in the end.
    Told { event, name, even_if_full: false }
}

/// `running`: `data` is [`Versions`].
pub(super) fn running(update: &Update, versions: &Versions, time_ms: i64) -> Told {
    let data = Value::serialized(versions).expect("versions have only texts under text keys");
    let event = Event {
        time_ms,
        kind: kind(RUNNING),
        severity: Severity::Info,
        message: format!("{} releases run", versions.running.len()),
        data: Some(data.clone()),
        device: None,
        id: None,
    };
    // The same again says nothing new, and something else is another event.
    let content = fleet_schemas::batch::digest(&fleet_schemas::cbor::encode(&data));
    let text = format!("{} {} {content:02x?}", update.command, update.state().as_str());
    // Nothing else tells the hub of this session, which may last for weeks.
    Told { event, name: Name::new(RUNNING, &text, b""), even_if_full: true }
}

/// What the birth says.
pub(crate) fn versions(account: &Account, own: Option<&Running>) -> Versions {
    let others = account.runs.values().filter(|running| running.kind != Kind::Agent);
    let running: Vec<_> = own.into_iter().chain(others).take(limits::RUNNING_PER_NODE).cloned().collect();
    let of = |kind| running.iter().filter(move |running| running.kind == kind && running.device.is_none());
    let skills = of(Kind::Skill).take(limits::SKILLS_PER_NODE);
    Versions {
        agent: VERSION.to_owned(),
        firmware: of(Kind::Firmware).next().map(|running| running.version.to_string()),
        skills: skills.map(|running| (running.name.to_string(), running.version.to_string())).collect(),
        running,
    }
}

/// What this executable is, read anew unless it is the same file as last time. Blocks.
pub(crate) fn own(known: Option<&Own>) -> Option<(Running, Own)> {
    use std::os::unix::fs::MetadataExt as _;
    let path = launch::own();
    let data = fs::metadata(&path).ok()?;
    let shown = fs::read_link(&path).unwrap_or_else(|_| PathBuf::from(&path));
    let mtime_ns = data.mtime().saturating_mul(1_000_000_000).saturating_add(data.mtime_nsec());
    let same = |own: &&Own| {
        own.path == shown && own.size == data.len() && own.mtime_ns == mtime_ns && own.inode == data.ino()
    };
    let digest = match known.filter(same) {
        Some(own) => own.digest,
        None => launch::digest_of(&path).ok()?,
    };
    let name = |text| MetricName::parse(text).ok();
    let running =
        Running { kind: Kind::Agent, name: name(AGENT)?, version: name(VERSION)?, digest, device: None };
    Some((running, Own { path: shown, size: data.len(), mtime_ns, inode: data.ino(), digest }))
}

fn kind(text: &str) -> MetricName {
    MetricName::parse(text).expect("our kinds are valid")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleet_schemas::{CommandId, batch::Clock};

    use super::*;
    use crate::core::{
        Now,
        queue::{Limit, Time},
    };

    #[test]
    fn what_runs_is_handed_in_even_to_a_full_outbox() {
        let text = format!(r#"{{"target": "skill/greeter/1.2.0/any", "digest": "{}"}}"#, "02".repeat(32));
        let order = serde_json::from_str(&text).unwrap();
        let now = Now { wall_ms: 0, up: Duration::ZERO, clock: Clock::Synced };
        let time = Time { now, boot: [1; 8], true_ms: None };
        let limit = Limit::after(Duration::from_secs(60), &time);
        let update = Update::new(CommandId([1; 16]), order, limit);
        let runs = Handed::from(running(&update, &Versions::default(), 0));
        let step = Handed::from(report(&update.report(None), 0));
        assert_eq!((runs.even_if_full, step.even_if_full), (true, false));
    }
}
