//! Who sends next: the order of precedence of the lanes, within the hub's credit.

use fleet_schemas::Lane;

/// What one lane wants and has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// Whether it has anything to send.
    pub waiting: bool,
    /// Its batches in flight.
    pub in_flight: u32,
}

/// The lane that sends the next batch, if any may. `wants` is in the order of [`Lane::ALL`].
///
/// Precedence is event, command, telemetry, backfill. A quarter of the credit is backfill's for certain (so that a
/// busy node still catches up), and a quarter is kept free of backfill (so that an event never waits for a
/// backlog).
#[must_use]
pub fn next(wants: &[Want; Lane::ALL.len()], credit: u32) -> Option<Lane> {
    let total: u32 = wants.iter().map(|want| want.in_flight).sum();
    if total >= credit {
        return None;
    }
    let backfill = wants[Lane::Backfill as usize];
    let quarter = credit / 4;
    let owed = backfill.waiting && backfill.in_flight < quarter && total + quarter > credit;
    Lane::ALL.into_iter().find(|lane| {
        wants[*lane as usize].waiting
            && match lane {
                Lane::Event | Lane::Command => true,
                Lane::Telemetry => !owed,
                Lane::Backfill => backfill.in_flight < credit - quarter,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(waiting: [bool; 4], credit: u32) -> [u32; 4] {
        let mut wants = waiting.map(|waiting| Want { waiting, in_flight: 0 });
        while let Some(lane) = next(&wants, credit) {
            wants[lane as usize].in_flight += 1;
        }
        wants.map(|want| want.in_flight)
    }

    #[test]
    fn events_go_first_and_may_use_everything() {
        assert_eq!(drain([true, true, true, true], 16), [16, 0, 0, 0]);
    }

    #[test]
    fn backfill_has_its_quarter_beside_live_data() {
        assert_eq!(drain([false, false, true, true], 16), [0, 0, 13, 3]);
        assert_eq!(drain([false, false, true, true], 1), [0, 0, 1, 0]);
    }

    #[test]
    fn backfill_alone_leaves_a_quarter_free() {
        assert_eq!(drain([false, false, false, true], 16), [0, 0, 0, 12]);
        assert_eq!(drain([false, false, false, true], 1), [0, 0, 0, 1]);
    }

    #[test]
    fn no_credit_no_batch() {
        assert_eq!(drain([true, true, true, true], 0), [0, 0, 0, 0]);
    }
}
