//! `fleet simulate`: the real cores and stores of hub and agents over one seeded queue, with faults; then calm, in
//! which everything must come right within a bounded time.
//!
//! Each seed runs twice and must do exactly the same, unless somebody is content with once. Only the sockets, the disks and the clocks are simulated.

mod edge;
mod faults;
mod large;
mod net;
mod rollouts;
mod settings;
mod site;
mod update;
mod verify;
mod work;
mod world;

pub use faults::Faults;
pub use large::{Large, large};

use world::World;

/// Steps of 200 ms with load and faults: five minutes.
const BUSY_STEPS: u64 = 1_500;
/// Steps within which the fleet must settle: an hour. Resending backs off to five minutes.
const CALM_STEPS: u64 = 18_000;
/// Steps after settling, so that heartbeats tell where the lanes stand: a minute.
const REST_STEPS: u64 = 300;

/// What to simulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Args {
    /// How many nodes.
    pub nodes: usize,
    /// The seed: the same seed does the same.
    pub seed: u64,
    /// How much goes wrong.
    pub faults: Faults,
    /// Whether the operator changes configuration.
    pub config: bool,
    /// How many rollouts the operator makes.
    pub rollouts: usize,
    /// Print every step to the standard error.
    pub trace: bool,
}

/// What came of one seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Records that agents accepted.
    pub accepted: u64,
    /// Commands that began at nodes.
    pub began: u64,
    /// Documents of the hub that machines began to try.
    pub tried: u64,
    /// Times that a node came to run a release that was rolled out.
    pub switched: u64,
    /// Simulated milliseconds until the fleet had settled.
    pub settled_ms: u64,
    /// Digest of everything that happened.
    pub log: [u8; 32],
    /// Rules that do not hold; empty when all is well.
    pub wrong: Vec<String>,
}

/// Runs one seed twice.
#[must_use]
pub fn run(args: Args) -> Report {
    let mut first = once(args);
    let second = once(Args { trace: false, ..args });
    if first != second {
        first.wrong.push("the same seed did something else the second time".to_owned());
    }
    first
}

/// Runs one seed.
#[must_use]
pub fn once(args: Args) -> Report {
    let mut world = World::new(args);
    for _ in 0..BUSY_STEPS {
        world.step(args.faults, true);
    }
    world.calm();
    let mut wrong = Vec::new();
    let settled_ms = settle(&mut world, &mut wrong);
    wrong.extend(verify::check(&world));
    wrong.extend(settings::check(&world, args.faults == Faults::None));
    wrong.extend(rollouts::check(&world, args.faults == Faults::None));
    let accepted = world.truth.values().map(|truth| truth.accepted.len() as u64).sum();
    let began = world.book.starts.values().map(|starts| starts.len() as u64).sum();
    let tried = world.edges.iter().map(|edge| edge.machine.tries).sum();
    let switched = world.edges.iter().filter_map(|edge| edge.updates.as_ref());
    let switched =
        switched.flat_map(|updates| updates.switches.values()).map(|count| u64::from(*count)).sum();
    Report { accepted, began, tried, switched, settled_ms, log: world.log_digest(), wrong }
}

/// Lets the calm work until everything has come right, and has stayed so for a rest; gives since when it had.
fn settle(world: &mut World, wrong: &mut Vec<String>) -> u64 {
    let mut steps = 0;
    loop {
        while !world.is_settled() {
            steps += 1;
            if steps > CALM_STEPS {
                let waiting = world.commands_waiting();
                let minutes = CALM_STEPS / 300;
                let open = settings::open(world);
                let rollouts = rollouts::open(world);
                wrong.push(format!(
                    "not settled after {minutes} minutes of calm; commands wait: {waiting:?}; configuration: {open:?}; \
                     rollouts: {rollouts:?}"
                ));
                return world.now;
            }
            world.step(Faults::None, false);
        }
        let settled_ms = world.now;
        for _ in 0..REST_STEPS {
            world.step(Faults::None, false);
        }
        steps += REST_STEPS;
        // What a wrong clock made late may have begun meanwhile: a rollout's deadline, and a node that restarts for it.
        if world.is_settled() {
            return settled_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(seed: u64, faults: Faults, config: bool) -> Report {
        let report = run(Args { nodes: 4, seed, faults, config, rollouts: 0, trace: false });
        assert!(report.accepted > 1_000, "seed {seed}: only {} records", report.accepted);
        assert!(report.began > 5, "seed {seed}: only {} commands began", report.began);
        assert_eq!(report.wrong, Vec::<String>::new(), "seed {seed} with {faults:?} faults");
        report
    }

    fn seeds(faults: Faults, seeds: std::ops::Range<u64>) {
        let reports = seeds.map(|number| seed(number, faults, true));
        let (count, tried) = reports.fold((0, 0), |(count, tried), report| (count + 1, tried + report.tried));
        assert!(tried > 2 * count, "only {tried} documents were tried by {count} seeds");
    }

    /// Seeds per level of faults; `.ci/run --full` asks for more.
    fn count() -> u64 {
        std::env::var("FLEET_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
    }

    fn rolled_out(seed: u64, faults: Faults) -> u64 {
        let report = run(Args { nodes: 4, seed, faults, config: true, rollouts: 2, trace: false });
        assert_eq!(report.wrong, Vec::<String>::new(), "seed {seed} with {faults:?} faults");
        report.switched
    }

    #[test]
    fn rollouts_of_good_and_bad_releases_end_as_they_must() {
        let quiet: u64 = (0..2).map(|seed| rolled_out(seed, Faults::None)).sum();
        let heavy: u64 = (0..count().min(100) / 2).map(|seed| rolled_out(seed, Faults::Heavy)).sum();
        assert!(quiet > 2 && heavy > 2, "releases came to run {quiet} and {heavy} times");
    }

    #[test]
    fn what_a_birth_announced_is_there_when_the_next_hub_asks_for_it() {
        // A small outbox evicted what the old hub had acked, between its birth at the new hub and the answer.
        rolled_out(20_281, Faults::Heavy);
    }

    #[test]
    fn what_a_heartbeat_said_of_unsealed_samples_is_over_with_the_next_birth() {
        // A node restarted for its trial before its next heartbeat: the account waited for samples that were stored.
        rolled_out(40_020, Faults::Heavy);
    }

    #[test]
    fn what_begins_after_the_fleet_had_settled_is_waited_for() {
        // By a wrong clock, deadlines of a rollout ended in the very last moments.
        rolled_out(424, Faults::Heavy);
        rolled_out(5_025, Faults::Heavy);
    }

    #[test]
    fn what_a_full_disk_lets_a_hub_forget_binds_no_rollout() {
        // A node drifted, the disk was full before that was written, and the node moved to another hub.
        rolled_out(25_816, Faults::Heavy);
    }

    #[test]
    fn what_a_restored_hub_offered_too_late_to_be_answered_is_asked_for() {
        // The node had done it before the backup came back, was behind with its reports when it was offered again, and so
        // said nothing; its time was over before the next offer.
        rolled_out(27_527, Faults::Heavy);
    }

    #[test]
    fn what_a_node_runs_is_told_although_its_outbox_is_full() {
        // What was confirmed failed later, the outbox refused the event that said what came back, and the session went on:
        // no birth said it either.
        rolled_out(38_591, Faults::Heavy);
    }

    #[test]
    fn a_large_fleet_is_rolled_out_to_in_waves() {
        let large = large(1_000, 1, 2);
        assert_eq!(large.wrong, Vec::<String>::new());
        assert!(large.confirmed > 900 && large.failed > 0, "{large:?}");
    }

    #[test]
    fn without_faults_everything_is_stored_once() {
        seeds(Faults::None, 0..2);
    }

    #[test]
    fn with_light_faults_everything_is_stored_once() {
        seeds(Faults::Light, 0..count());
    }

    #[test]
    fn commands_end_although_a_stream_of_reports_forked_within_the_session() {
        seed(779, Faults::Heavy, true);
    }

    #[test]
    fn a_forked_stream_of_which_nothing_is_owed_holds_no_command_up() {
        // It ended when the agent swept what it keeps for a hub that is set back, an hour later.
        let report = seed(178, Faults::Heavy, true);
        assert!(report.settled_ms < 1_000_000, "settled after {} ms", report.settled_ms);
    }

    #[test]
    fn the_same_seed_fills_a_disk_at_the_same_moment() {
        // The inbox wrote its rows in the order of a hash map, and a disk that was nearly full took one more or not.
        seed(419, Faults::Heavy, true);
    }

    #[test]
    fn a_late_order_begins_nowhere_before_its_time() {
        // What the order was late was taken off twice, which a twin of the card showed: it goes by the hub's clock.
        seed(10_538, Faults::Heavy, true);
    }

    #[test]
    fn a_clock_that_jumps_by_years_lets_no_result_be_forgotten() {
        // A hub ten years behind, a node ten years ahead, and an agent that is killed after a run was over.
        seed(77, Faults::Heavy, true);
    }

    #[test]
    fn a_fork_keeps_what_was_acked_for_a_hub_that_is_set_back() {
        // A card is cloned, the twin's birth closes the other's stream, that stream forks, the hub is restored.
        seed(51, Faults::Heavy, false);
    }

    #[test]
    fn a_card_set_back_within_its_last_session_is_reported() {
        // The image has the session's count, but not the stream that was opened for it.
        seed(334, Faults::Heavy, false);
    }

    #[test]
    fn with_heavy_faults_everything_is_stored_once_or_accounted_for() {
        seeds(Faults::Heavy, 0..count());
    }
}
