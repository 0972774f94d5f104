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
    fleet simulate --seed 1 --seeds 1000 --faults heavy\n  fleet simulate --seed 42 --faults heavy --trace 2>log\n\n\
    A seed always does the same; each runs twice to prove it."
)]
pub(super) struct SimulateArgs {
    /// How many nodes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=200))]
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
    /// Rollouts under way; updates are not part of this build
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=0))]
    rollouts: u16,
    /// Print every step to the standard error
    #[arg(long)]
    trace: bool,
}

pub(super) fn run(args: &SimulateArgs, out: Out) -> Result<(), Failure> {
    let SimulateArgs { nodes, seed, seeds, faults, rollouts: _, trace } = *args;
    let bar = if seeds > 1 && !trace { ProgressBar::new(seeds) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (mut accepted, mut wrong, mut longest) = (0, Vec::new(), 0);
    for seed in seed..seed.saturating_add(seeds) {
        let report = simulate::run(simulate::Args { nodes: nodes.into(), seed, faults, config: true, trace });
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
