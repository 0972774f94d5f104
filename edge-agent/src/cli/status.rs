//! `fleet-agent status`.

use clap::Args;
use comfy_table::{Table, presets};
use fleet_edge_agent::{
    api::{ConfigView, HeldView, StatusView},
    identity::live::IdentityView,
    update::view::{UpdateView, UpdatesView},
};
use fleet_schemas::update::Running;
use jiff::Timestamp;

use super::{Failure, Format, Place, ask, print};

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    place: Place,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl Status {
    pub(super) fn main(self) -> Result<(), Failure> {
        let config = self.place.load()?;
        let status: StatusView = ask::get(&config, "/api/v1/status")?;
        print(&match self.output {
            Format::Json => json(&status),
            Format::Table => table(&status),
        });
        Ok(())
    }
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("our views have text keys");
    text.push('\n');
    text
}

fn table(status: &StatusView) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    let ago = |seconds: u64| format!("{seconds} s ago");
    table
        .add_row(["node", &format!("{} ({})", status.node_id, status.node_name)])
        .add_row(["agent", &format!("{} {}, up {} s", status.kind, status.version, status.uptime)])
        .add_row(["hub", &format!("{}, {}", or_none(status.hub.clone()), status.status)])
        .add_row(["session", &or_none(status.session.map(|session| session.to_string()))])
        .add_row(["last ack", &status.last_ack_s.map_or_else(|| "never".to_owned(), ago)])
        .add_row(["credit", &format!("{} batches", status.credit)])
        .add_row(["clock", &format!("{:?}", status.clock).to_lowercase()])
        .add_row(["identity", &status.identity.as_ref().map_or_else(not_joined, identity)])
        .add_row(["config", &config(&status.config)])
        .add_row(["updates", &status.updates.as_ref().map_or_else(no_updates, updates)])
        .add_row(["outbox", &super::outbox::summary(&status.outbox)]);
    format!("{}\n", table.trim_fmt())
}

fn not_joined() -> String {
    "has not joined (fleet-agent join)".to_owned()
}

fn no_updates() -> String {
    "none are taken (the node has not joined, or enabled = false under [update])".to_owned()
}

/// What is under way, or how the last one ended; then what runs.
fn updates(view: &UpdatesView) -> String {
    let one = |update: &UpdateView| {
        let bytes = match (update.bytes, update.total) {
            (Some(bytes), Some(total)) => format!(", {bytes} of {total} bytes"),
            _ => String::new(),
        };
        let why = update.reason.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
        format!("{} is {}{bytes}{why}", update.target, update.state.as_str())
    };
    let mut parts: Vec<_> = view.updates.iter().map(one).collect();
    if parts.is_empty() {
        parts.push(
            view.last
                .as_ref()
                .map_or_else(|| "none so far".to_owned(), |last| format!("none; {}", one(last))),
        );
    }
    let runs = |running: &Running| format!("{} {}", running.name, running.version);
    let running: Vec<_> = view.running.iter().map(runs).collect();
    parts.push(format!(
        "runs {}",
        if running.is_empty() { "no release".to_owned() } else { running.join(", ") }
    ));
    parts.extend((!view.quarantined.is_empty()).then(|| format!("{} quarantined", view.quarantined.len())));
    parts.join("; ")
}

fn config(config: &ConfigView) -> String {
    let version = |held: &Option<HeldView>| match held {
        Some(held) => format!("{}.{}", held.version.epoch, held.version.n),
        None => "the node's own".to_owned(),
    };
    let mut text = match config.state.as_str() {
        "none" => "the node's own; the hub sent none".to_owned(),
        state => format!("{} is {state}, {} runs", version(&config.received), version(&config.applied)),
    };
    if let Some(failed) = &config.failed {
        text.push_str(&format!("; {}: {}", failed.code, failed.message));
    }
    text
}

fn identity(identity: &IdentityView) -> String {
    let day =
        |ms: i64| Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string());
    let mut text = format!(
        "joined at {}, certificate ends {}, renewed {}{}, trusts {}",
        identity.hub,
        day(identity.certificate_ends_ms),
        day(identity.certificate_renews_ms),
        if identity.renewed { " (a new one waits for the next session)" } else { "" },
        identity.trust.join(", "),
    );
    if let Some(refused) = &identity.refused {
        text.push_str(&format!("; {refused}"));
    }
    text
}
