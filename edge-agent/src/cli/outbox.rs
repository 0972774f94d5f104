//! `fleet-agent outbox`: from the running agent, or from the file of a stopped one, which is not changed.

use clap::Args;
use comfy_table::{Table, presets};
use fleet_edge_agent::{
    api::{BudgetView, OutboxView},
    clock::Clock,
    config::Config,
    outbox::{self, OpenError},
    run,
};
use fleet_schemas::Lane;

use super::{Failure, Format, Place, ask, packaged, print, status::json};

#[derive(Debug, Args)]
pub(super) struct Outbox {
    #[command(flatten)]
    place: Place,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl Outbox {
    pub(super) fn main(self) -> Result<(), Failure> {
        let config = self.place.load()?;
        packaged::become_owner(&config.data, None)?;
        let view = match ask::get(&config, "/api/v1/outbox") {
            Ok(view) => view,
            Err(Failure::Unreachable(unreachable)) => match inspect(&config) {
                Ok(view) => view,
                // Somebody runs on it, only not where we asked: that is the more useful thing to say.
                Err(OpenError::InUse { .. }) => return Err(Failure::Unreachable(unreachable)),
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    return Err(Failure::Failed(
                        error.context("no agent answers, and its outbox cannot be looked at"),
                    ));
                }
            },
            Err(failure) => return Err(failure),
        };
        print(&match self.output {
            Format::Json => json(&view),
            Format::Table => table(&view),
        });
        Ok(())
    }
}

fn inspect(config: &Config) -> Result<OutboxView, OpenError> {
    // The id does not matter: nothing is sent.
    let node = fleet_schemas::NodeId::parse("inspect").expect("a valid node id");
    let now = Clock::new(config.clock).now();
    let status = outbox::inspect(&config.outbox, &config.data, &run::profile(config, &node), now)?;
    Ok(OutboxView::from(&status))
}

pub(super) fn summary(view: &OutboxView) -> String {
    let budget = |name: &str, budget: Option<BudgetView>| {
        budget.map_or_else(String::new, |budget| {
            format!(", {} of {} bytes of this {name}", budget.used_bytes, budget.budget_bytes)
        })
    };
    let waits = if view.waits_for_budget { ", waits for its budget" } else { "" };
    format!(
        "{} records ({} batches not acknowledged, {} samples not sealed), {} of {} bytes, {} lost{}{}{waits}",
        view.held_records,
        view.unacked_batches,
        view.pending_samples,
        view.bytes,
        view.quota_bytes,
        view.lost_records,
        budget("hour", view.hour_budget),
        budget("day", view.day_budget),
    )
}

fn table(view: &OutboxView) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["LANE", "STREAM", "MARK", "HELD", "RECORDS", "LOST", "IN FLIGHT"]);
    for lane in Lane::ALL {
        let Some(state) = view.lanes.get(&lane) else { continue };
        for stream in &state.streams {
            table.add_row([
                lane.to_string(),
                stream.stream.to_string(),
                stream.mark.to_string(),
                format!("{}..{}", stream.floor_seq, stream.next_seq),
                stream.records.to_string(),
                stream.lost_records.to_string(),
                state.in_flight.to_string(),
            ]);
        }
    }
    format!("{}\n{}\n", summary(view), table.trim_fmt())
}
