//! Updates: what a release is, what a node is told to run, and what it says of it. DESIGN sections 6 and 7.
//!
//! The hub orders with a command of kind [`COMMAND`]; that only names a target. What may run is decided at the node by
//! the signed metadata of the releases (TUF 1.0), where the target stands with its length, digest and [`Custom`]. Every
//! step is told by an event of kind [`EVENT`]; what runs, by the birth and by events of kind [`RUNNING`].

mod hours;

use std::{fmt, str::FromStr};

use ciborium::Value;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use hours::Hours;

use crate::{
    command::Reason,
    event::Event,
    id::{CommandId, DeviceId, MetricName},
    limits,
    session::Versions,
};

/// The kind of commands that order an update; its parameters are an [`Order`].
pub const COMMAND: &str = "update";
/// The queue of such commands: one update at a time.
pub const QUEUE: &str = "update";
/// The kind of events that report a step; the data is a [`Report`].
pub const EVENT: &str = "update";
/// The kind of events that tell what runs when that changed in the middle of a session; the data is [`Versions`].
pub const RUNNING: &str = "running";
/// The capability of a node that takes updates, in its births.
pub const CAPABILITY: &str = "update";
/// The name under which the agent itself is released.
pub const AGENT: &str = "fleet-agent";
/// Where signed metadata is on the port for nodes: `{TUF_PATH}/timestamp.json`, `{n}.root.json`, `{n}.snapshot.json`,
/// `{n}.targets.json` (TUF 1.0 §5 and §6.2, consistent snapshots).
pub const TUF_PATH: &str = "/v1/tuf";
/// Where artifacts are on the port for nodes: `{ARTIFACT_PATH}/{digest}`, with `Range` (RFC 9110 §14) and `ETag`.
pub const ARTIFACT_PATH: &str = "/v1/artifacts";
/// An architecture that fits every node.
pub const ANY_ARCH: &str = "any";

/// What an artifact is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A program or data of an app on the node: an archive.
    Skill,
    /// The agent: one executable.
    Agent,
    /// The node's system, put into place by hooks.
    Firmware,
    /// The firmware of a device behind the node.
    DeviceFirmware,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Skill, Self::Agent, Self::Firmware, Self::DeviceFirmware];

    /// The word on the wire, in REST and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skill => "skill",
            Self::Agent => "agent",
            Self::Firmware => "firmware",
            Self::DeviceFirmware => "device-firmware",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that is no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of artifact; there are skill, agent, firmware and device-firmware")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let same = |kind: &Self| kind.as_str() == text;
        Self::ALL.into_iter().find(same).ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// The SHA-256 of an artifact's bytes; 64 lower-case hexadecimal digits wherever it is written, as in TUF metadata.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// Text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is a SHA-256: 64 hexadecimal digits in lower case")]
pub struct NoDigest;

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        if text.len() != 64 || !text.as_bytes().iter().all(digit) {
            return Err(NoDigest);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| NoDigest)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NoDigest)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The name of a target in the signed metadata: `{kind}/{name}/{version}/{arch}`.
///
/// Name, version and arch are of `[A-Za-z0-9._+-]`, begin with a letter or a digit, and have 1 to 63 bytes: a target
/// is a path of files, too. The version is one of semantic versioning 2.0 for kinds `skill` and `agent`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// What for.
    pub kind: Kind,
    /// Such as `greeter`.
    pub name: MetricName,
    /// Such as `1.4.2`.
    pub version: MetricName,
    /// Such as `aarch64`, as the birth's `machine.arch` has it, or [`ANY_ARCH`].
    pub arch: MetricName,
}

/// Text that is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no target; write kind/name/version/arch, each of letters, digits, '.', '_', '+' and '-', at most 63 bytes"
)]
pub struct NoTarget(pub String);

impl Target {
    /// A target of these words.
    ///
    /// # Errors
    /// [`NoTarget`] when one of them cannot be a part of a path.
    pub fn new(kind: Kind, name: &str, version: &str, arch: &str) -> Result<Self, NoTarget> {
        let wrong = || NoTarget(format!("{kind}/{name}/{version}/{arch}"));
        let part = |text: &str| match is_part(text) {
            true => MetricName::parse(text).map_err(|_| wrong()),
            false => Err(wrong()),
        };
        Ok(Self { kind, name: part(name)?, version: part(version)?, arch: part(arch)? })
    }
}

/// Whether a text may stand between two slashes of a target.
#[must_use]
pub fn is_part(text: &str) -> bool {
    let sound = |byte: &u8| byte.is_ascii_alphanumeric() || b"._+-".contains(byte);
    (1..=limits::LABEL_BYTES).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.as_bytes().iter().all(sound)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.kind, self.name, self.version, self.arch)
    }
}

impl FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let wrong = || NoTarget(text.chars().take(300).collect());
        let mut parts = text.split('/');
        let (Some(kind), Some(name), Some(version), Some(arch), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        Self::new(kind.parse().map_err(|_| wrong())?, name, version, arch)
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What the signed metadata says of a target beside its length and digest: TUF's `custom` (TUF 1.0 §4.5). Unknown keys
/// are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custom {
    /// The security epoch: a node that confirmed a release of this name takes none of a lower epoch again, whoever
    /// asks. Raised when an older release must never run again.
    #[serde(default)]
    pub epoch: u64,
    /// The lowest version that may be updated from; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_from: Option<String>,
    /// Whether nodes that run a higher version may go to this one: a signed permission.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downgrade: bool,
    /// For `device-firmware`: the kind of device that it fits; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_kind: Option<String>,
    /// When it was signed, Unix milliseconds.
    #[serde(default)]
    pub signed_ms: i64,
}

/// What a node is to run: the parameters of a command of kind [`COMMAND`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Which target.
    pub target: Target,
    /// Its digest: what the node finds in the signed metadata must be the same.
    pub digest: Digest,
    /// The rollout that this is a part of; 1 to 63 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<MetricName>,
    /// For `device-firmware`: the device behind the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Whether this goes back to a release that the node confirmed before: then a lower version is taken, if its
    /// security epoch is not lower.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
    /// How long the new release is on trial, in milliseconds; absent: the node's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probation_ms: Option<u64>,
    /// When downloading and switching may begin; absent: at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Whether the release may be confirmed although the hub cannot be reached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offline_ok: bool,
}

/// When a node may download and switch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The times of day, `22:00-04:00`, in the site's time zone; the end may lie on the next day. Absent: all day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<String>,
    /// The time zone of `hours`, by its IANA name; absent: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Only while the machine has outside power.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_power: bool,
    /// Not while the link is one that is paid by the byte.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmetered: bool,
}

/// Where an update stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The node was told.
    Offered,
    /// On the node's disk.
    Accepted,
    /// Bytes are coming, or are waited for (window, budget, link).
    Downloading,
    /// All of it is there, and has the digest.
    Downloaded,
    /// Put beside what runs.
    Installing,
    /// The new one is to run from here on.
    Switching,
    /// It runs, on trial.
    Probation,
    /// It runs, and stays.
    Confirmed,
    /// It did not pass, and what ran before runs again.
    RolledBack,
    /// It did not come to run; what ran before runs.
    Failed,
    /// It was not confirmed in time.
    TimedOut,
    /// The node refuses it: its signatures, its length, its arch, its version.
    Rejected,
    /// The node was never offered it, or it runs already.
    Skipped,
    /// Another update took its place.
    Superseded,
    /// Called off.
    Canceled,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Offered,
        Self::Accepted,
        Self::Downloading,
        Self::Downloaded,
        Self::Installing,
        Self::Switching,
        Self::Probation,
        Self::Confirmed,
        Self::RolledBack,
        Self::Failed,
        Self::TimedOut,
        Self::Rejected,
        Self::Skipped,
        Self::Superseded,
        Self::Canceled,
    ];

    /// Whether it never changes again.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self >= Self::Confirmed
    }

    /// Whether a state may follow: forwards only; a broken download begins again without leaving its state.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        !self.is_terminal() && next > self
    }

    /// Whether the new release may be what runs.
    #[must_use]
    pub fn is_switched(self) -> bool {
        (Self::Switching..=Self::Confirmed).contains(&self)
    }

    /// The word on the wire and in REST.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Accepted => "accepted",
            Self::Downloading => "downloading",
            Self::Downloaded => "downloaded",
            Self::Installing => "installing",
            Self::Switching => "switching",
            Self::Probation => "probation",
            Self::Confirmed => "confirmed",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Rejected => "rejected",
            Self::Skipped => "skipped",
            Self::Superseded => "superseded",
            Self::Canceled => "canceled",
        }
    }
}

/// The reason of a [`State::RolledBack`] that is no failure of the release: neither it nor what ran before reached the
/// hub.
pub const INCONCLUSIVE: &str = "inconclusive_link";

/// Codes of failures that say nothing about the release: the link, the node's disk, or bytes that are not those that were
/// signed. Neither end counts them against it.
pub const HARMLESS: [&str; 6] =
    [INCONCLUSIVE, "no_space", "disk", "not_served", "digest_mismatch", "length_mismatch"];

/// A step of an update, as the node tells it: the data of an event of kind [`EVENT`], and the result of the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The command that ordered it.
    pub command: CommandId,
    /// Which target.
    pub target: Target,
    /// Its digest.
    pub digest: Digest,
    /// The rollout that it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<MetricName>,
    /// The device that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Where it stands.
    pub state: State,
    /// Why it stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Bytes that are on the node's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// The digest of what ran before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Digest>,
}

impl Report {
    /// What an event says of an update; `None` for events about something else.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        if event.kind.as_str() != EVENT {
            return None;
        }
        Self::read(event.data.as_ref()?)
    }

    /// What the result of a command says of an update.
    #[must_use]
    pub fn read(data: &Value) -> Option<Self> {
        let report: Self = data.deserialized().ok()?;
        let short = report.reason.as_ref().is_none_or(|reason| {
            reason.code.len() <= limits::LABEL_BYTES && reason.message.len() <= limits::EVENT_MESSAGE_BYTES
        });
        short.then_some(report)
    }

    /// As the data of an event, or the result of a command.
    #[must_use]
    pub fn to_data(&self) -> Value {
        Value::serialized(self).expect("a report has only texts and numbers under text keys")
    }
}

/// Something that runs, by its digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Running {
    /// What it is for.
    pub kind: Kind,
    /// Its name.
    pub name: MetricName,
    /// Its version.
    pub version: MetricName,
    /// Its digest, of the artifact that it was made of; for the agent, of the file that runs.
    pub digest: Digest,
    /// The device that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
}

/// What an event says of all that runs; `None` for events about something else.
#[must_use]
pub fn running(event: &Event) -> Option<Versions> {
    if event.kind.as_str() != RUNNING {
        return None;
    }
    let versions: Versions = event.data.as_ref()?.deserialized().ok()?;
    versions.check().is_ok().then_some(versions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Severity;

    fn report() -> Report {
        Report {
            command: CommandId([1; 16]),
            target: "skill/greeter/1.2.0/any".parse().unwrap(),
            digest: Digest([0xab; 32]),
            rollout: None,
            device: None,
            state: State::Probation,
            reason: None,
            bytes: None,
            total: None,
            from: None,
        }
    }

    fn event(kind: &str, data: Value) -> Event {
        Event {
            time_ms: 1,
            kind: MetricName::parse(kind).unwrap(),
            severity: Severity::Info,
            message: String::new(),
            data: Some(data),
            device: None,
            id: None,
        }
    }

    #[test]
    fn states_go_forwards_and_end_once() {
        for from in State::ALL {
            for to in State::ALL {
                assert!(
                    !(from.may_become(to) && (to.may_become(from) || from.is_terminal())),
                    "{from:?} {to:?}"
                );
            }
        }
        assert!(State::Confirmed.is_terminal() && !State::Probation.is_terminal());
        assert!(State::Probation.is_switched() && !State::RolledBack.is_switched());
        let words: std::collections::BTreeSet<_> = State::ALL.map(State::as_str).into();
        assert_eq!(words.len(), State::ALL.len());
    }

    #[test]
    fn targets_are_four_sound_parts() {
        let target: Target = "device-firmware/esp32/2026.11+b1/any".parse().unwrap();
        assert_eq!(target.to_string(), "device-firmware/esp32/2026.11+b1/any");
        for bad in [
            "",
            "skill/a/1",
            "skill/a/1/any/x",
            "tool/a/1/any",
            "skill/../1/any",
            "skill/.a/1/any",
            "skill//1/any",
            "skill/a b/1/any",
            "skill/a/1/\u{e4}",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        assert!(Target::new(Kind::Skill, &"a".repeat(64), "1", "any").is_err());
        assert!(Target::new(Kind::Skill, "a/b", "1", "any").is_err());
    }

    #[test]
    fn digests_are_written_one_way() {
        let digest = Digest([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.to_string().to_uppercase().parse::<Digest>(), Err(NoDigest));
        assert_eq!("ab".parse::<Digest>(), Err(NoDigest));
    }

    #[test]
    fn reports_and_what_runs_go_through_events() {
        assert_eq!(Report::of(&event(EVENT, report().to_data())), Some(report()));
        assert_eq!(Report::of(&event("door", report().to_data())), None);
        let long = Reason { code: "x".repeat(64), message: String::new(), may_have_executed: false };
        let long = Report { reason: Some(long), ..report() };
        assert_eq!(Report::of(&event(EVENT, long.to_data())), None);
        let name = MetricName::parse(AGENT).unwrap();
        let version = MetricName::parse("0.1.0").unwrap();
        let one = Running { kind: Kind::Agent, name, version, digest: Digest([7; 32]), device: None };
        let versions = Versions { agent: "0.1.0".into(), running: vec![one.clone()], ..Versions::default() };
        let data = Value::serialized(&versions).unwrap();
        assert_eq!(running(&event(RUNNING, data)), Some(versions));
        let many = Versions { running: vec![one; limits::RUNNING_PER_NODE + 1], ..Versions::default() };
        assert_eq!(running(&event(RUNNING, Value::serialized(&many).unwrap())), None);
    }

    #[test]
    fn orders_are_read_as_people_write_them() {
        let text = format!(r#"{{"target": "skill/greeter/1.2.0/any", "digest": "{}"}}"#, Digest([1; 32]));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let order: Order = Value::serialized(&value).unwrap().deserialized().unwrap();
        assert_eq!(order.target.name.as_str(), "greeter");
        assert!(!order.back && order.window.is_none());
    }
}
