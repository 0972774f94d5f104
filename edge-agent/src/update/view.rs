//! How updates stand, for the status.

use fleet_schemas::{
    CommandId, DeviceId, MetricName,
    update::{Digest, Report, Running, State, Target},
};
use serde::{Deserialize, Serialize};

use crate::{core::update::Update, store::update::Account};

/// How updates stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatesView {
    /// What runs, by its digest.
    pub running: Vec<Running>,
    /// The update that is under way, and those that wait behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<UpdateView>,
    /// How the last one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<UpdateView>,
    /// Digests that failed here so often that they are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<Digest>,
}

/// One update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateView {
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
    /// Why it stands there, or what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes that are on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

impl UpdatesView {
    pub(super) fn new<'a>(
        current: Option<(&'a Update, Option<u64>, Option<&str>)>,
        waiting: impl Iterator<Item = &'a Update>,
        account: &Account,
        running: Vec<Running>,
    ) -> Self {
        let current = current.map(|(update, bytes, waits)| {
            let view = UpdateView::from(&update.report(bytes));
            UpdateView { reason: view.reason.or_else(|| waits.map(str::to_owned)), ..view }
        });
        let waiting = waiting.map(|update| UpdateView::from(&update.report(None)));
        let is_out = |times: u8| times >= crate::core::update::FAILURES;
        Self {
            running,
            updates: current.into_iter().chain(waiting).collect(),
            last: account.ended.last().map(UpdateView::from),
            quarantined: (account.failed.iter())
                .filter(|failed| is_out(failed.times))
                .map(|failed| failed.digest)
                .collect(),
        }
    }
}

impl From<&Report> for UpdateView {
    fn from(report: &Report) -> Self {
        let Report { command, target, digest, rollout, device, state, reason, bytes, total, .. } =
            report.clone();
        let reason = reason.map(|reason| format!("{}: {}", reason.code, reason.message));
        Self { command, target, digest, rollout, device, state, reason, bytes, total }
    }
}
