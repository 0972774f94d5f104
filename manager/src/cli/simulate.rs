//! `fleet simulate`: flags and report of [`crate::simulate`].

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Failure,
    output::{self, Format, Out},
};
use crate::simulate::{self, Faults};

/// Flags of `fleet simulate`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  fleet simulate\n  fleet simulate --nodes 8 --seed 42 --faults heavy\n  \
    fleet simulate --seed 1 --seeds 1000 --faults heavy\n  \
    fleet simulate --seed 42 --faults heavy --trace 2>log; grep ^fleet/ log | fleet decode\n\n\
    A seed always does the same; each runs twice to prove it, unless --once is given."
)]
pub(super) struct SimulateArgs {
    /// How many nodes; above 200, only rollouts are simulated, without disks, a network and faults
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    nodes: u16,
    /// The seed, or the first of them
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// How much goes wrong
    #[arg(long, value_enum, default_value = "heavy")]
    faults: Faults,
    /// How many rollouts the operator makes: of releases that work, crash, hang or fail later
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=8))]
    rollouts: u16,
    /// Run each seed once, in half the time, and do not prove that it always does the same
    #[arg(long)]
    once: bool,
    /// Print every step to the standard error
    #[arg(long)]
    trace: bool,
}

/// Most nodes of which everything is simulated.
const FULL: u16 = 200;

fn large(nodes: u16, seed: u64, rollouts: u16, out: Out) -> Result<(), Failure> {
    if rollouts == 0 {
        return Err(Failure::Usage(format!("more than {FULL} nodes are for rollouts; give --rollouts 1")));
    }
    let simulate::Large { confirmed, failed, over_ms, longest, ends, wrong } =
        simulate::large(nodes.into(), seed, rollouts.into());
    match out.format {
        Format::Json | Format::Yaml | Format::Csv => {
            let report = serde_json::json!({
                "confirmed": confirmed, "failed": failed, "over_after_ms": over_ms,
                "longest_step_ms": longest.as_secs_f64() * 1_000.0, "rollouts": ends, "wrong": wrong,
            });
            out.print(&output::json(&report))?;
        }
        Format::Table => {
            println!(
                "{confirmed} seats confirmed, {failed} failed, over after {} simulated seconds; the longest step of the \
                 hub took {:.1} ms",
                over_ms / 1_000,
                longest.as_secs_f64() * 1_000.0
            );
            ends.iter().for_each(|end| println!("{end}"));
            wrong.iter().for_each(|rule| println!("WRONG  {rule}"));
        }
    }
    match wrong.len() {
        0 => Ok(()),
        rules => Err(Failure::Failed(format!("{rules} rules did not hold"))),
    }
}

pub(super) fn run(args: &SimulateArgs, out: Out) -> Result<(), Failure> {
    let SimulateArgs { nodes, seed, seeds, faults, rollouts, once, trace } = *args;
    if nodes > FULL {
        return large(nodes, seed, rollouts, out);
    }
    let bar = if seeds > 1 && !trace { ProgressBar::new(seeds) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (mut accepted, mut wrong, mut longest) = (0, Vec::new(), 0);
    for seed in seed..seed.saturating_add(seeds) {
        let (nodes, rollouts) = (nodes.into(), rollouts.into());
        let args = simulate::Args { nodes, seed, faults, config: true, rollouts, trace };
        let report = if once { simulate::once(args) } else { simulate::run(args) };
        accepted += report.accepted;
        longest = longest.max(report.settled_ms);
        wrong.extend(report.wrong.into_iter().map(|rule| format!("seed {seed}: {rule}")));
        bar.inc(1);
    }
    bar.finish_and_clear();
    match out.format {
        Format::Json | Format::Yaml | Format::Csv => {
            let report = serde_json::json!({
                "seeds": seeds, "accepted": accepted, "settled_after_ms": longest, "wrong": wrong,
            });
            out.print(&output::json(&report))?;
        }
        Format::Table => {
            println!(
                "{seeds} seeds, {accepted} records accepted; settled after {} simulated seconds at most",
                longest / 1_000
            );
            wrong.iter().for_each(|rule| println!("WRONG  {rule}"));
        }
    }
    match wrong.len() {
        0 => Ok(()),
        rules => Err(Failure::Failed(format!("{rules} rules did not hold; run the seed again with --trace"))),
    }
}
