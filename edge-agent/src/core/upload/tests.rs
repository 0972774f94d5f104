//! A budget over simulated days.

use fleet_schemas::batch::Clock;

use super::*;

const MIDNIGHT: i64 = 1_790_035_200_000; // 2026-09-22T00:00:00Z

fn at(seconds: i64) -> Now {
    let up = Duration::from_secs(1_000_000_u64.checked_add_signed(seconds).unwrap());
    Now { wall_ms: MIDNIGHT + seconds * 1_000, up, clock: Clock::Synced }
}

fn meter(policy: Policy) -> Meter {
    Meter::new(policy, Spent::default(), at(0))
}

fn hourly(bytes: u64) -> Policy {
    Policy { hour_bytes: Some(bytes), ..Policy::default() }
}

#[test]
fn without_a_budget_everything_goes_and_nothing_is_written() {
    let mut meter = meter(Policy::default());
    assert_eq!(meter.judge(Lane::Backfill, 1 << 20, false, at(0)), Verdict::Go);
    meter.spend(1 << 20, at(0));
    assert_eq!((meter.to_save(), meter.view()), (None, Budgets::default()));
}

/// The example of `fleet-agent run --help`, and a heartbeat as nodes have it: every half minute would take more than there is.
#[test]
fn heartbeats_leave_room_for_records() {
    let mut meter = meter(Policy { day_bytes: Some(1_000_000), ..hourly(100_000) });
    assert_eq!(Meter::new(Policy::default(), Spent::default(), at(0)).hello_every(), Duration::ZERO);
    let (mut next, mut said, mut told) = (0, 0, 0);
    for second in 0..2 * 86_400_i64 {
        if second >= next {
            meter.spend(1_100, at(second));
            said += 1;
            next = second + i64::try_from(meter.hello_every().as_secs()).unwrap().max(30);
        }
        if second % 3_600 == 3_599 && meter.judge(Lane::Event, 400, false, at(second)) == Verdict::Go {
            meter.spend_batch(400, at(second));
            told += 1;
        }
    }
    assert_eq!(told, 48, "an event in each hour goes in that hour");
    assert!((200..500).contains(&said), "{said}");
}

#[test]
fn a_simulated_day_stays_within_hours_and_day_and_live_goes_first() {
    const HOUR: u64 = 100_000;
    const DAY: u64 = 1_000_000;
    let mut meter = meter(Policy { day_bytes: Some(DAY), ..hourly(HOUR) });
    let mut hours = [0_u64; 48];
    let (mut live, mut backlog) = (0_u64, 0_u64);
    // Two days, a look every 30 s: a heartbeat every five minutes, a live batch every two, a backlog without end.
    for look in 0..2 * 24 * 120_i64 {
        let now = at(look * 30);
        let hour = usize::try_from(look / 120).unwrap();
        let mut go = |meter: &mut Meter, payload: usize| {
            meter.spend(payload, now);
            hours[hour] += Meter::wire(payload);
        };
        if look % 10 == 0 {
            go(&mut meter, 100);
        }
        if look % 4 == 0 && meter.judge(Lane::Telemetry, 600, false, now) == Verdict::Go {
            go(&mut meter, 600);
            live += 1;
        }
        while meter.judge(Lane::Backfill, 2_000, false, now) == Verdict::Go {
            go(&mut meter, 2_000);
            backlog += 1;
        }
    }
    assert!(hours.iter().all(|used| *used <= HOUR), "{hours:?}");
    let day = |n: usize| hours[n * 24..(n + 1) * 24].iter().sum::<u64>();
    assert!(day(0) <= DAY && day(1) <= DAY && day(0) > DAY / 2, "{} {}", day(0), day(1));
    assert!(backlog > 0 && live > 600, "live {live}, backlog {backlog}");
}

#[test]
fn events_may_use_what_samples_leave() {
    let mut meter = meter(hourly(10_000));
    while meter.judge(Lane::Telemetry, 500, false, at(0)) == Verdict::Go {
        meter.spend(500, at(0));
    }
    assert!(meter.view().hour.unwrap().used <= 9_000);
    assert_eq!(meter.judge(Lane::Backfill, 10, false, at(0)), Verdict::Wait);
    assert_eq!(meter.judge(Lane::Event, 500, false, at(0)), Verdict::Go);
    assert_eq!(meter.judge(Lane::Backfill, 50, true, at(0)), Verdict::Go, "a tombstone too");
    meter.spend(1_000, at(0));
    assert_eq!(meter.judge(Lane::Event, 500, false, at(0)), Verdict::Wait);
    assert_eq!(meter.due(), Some(at(3_600).up), "the next hour");
    assert_eq!(meter.judge(Lane::Event, 500, false, at(3_600)), Verdict::Go);
}

#[test]
fn what_is_larger_than_a_budget_goes_once_and_is_paid_for() {
    let mut meter = meter(hourly(10_000));
    assert_eq!(meter.judge(Lane::Telemetry, 25_000, false, at(0)), Verdict::Go);
    meter.spend_batch(25_000, at(0));
    assert_eq!(meter.judge(Lane::Telemetry, 25_000, false, at(10)), Verdict::Wait, "once an hour");
    assert_eq!(meter.judge(Lane::Telemetry, 100, false, at(3_600)), Verdict::Wait, "15,000 left to pay");
    // Heartbeats do not keep it from going.
    meter.spend(100, at(2 * 3_600));
    assert_eq!(meter.judge(Lane::Telemetry, 100, false, at(2 * 3_600)), Verdict::Go);
    assert_eq!(meter.judge(Lane::Telemetry, 25_000, false, at(2 * 3_600)), Verdict::Go);
    meter.spend_batch(100, at(2 * 3_600));
    assert_eq!(meter.judge(Lane::Telemetry, 25_000, false, at(2 * 3_600)), Verdict::Wait);
}

#[test]
fn a_crash_forgets_no_use() {
    let mut meter = meter(hourly(32_000));
    let mut disk = Spent::default();
    for _ in 0..10 {
        meter.spend(500, at(10));
        disk = meter.to_save().unwrap_or(disk);
        let after = Meter::new(hourly(32_000), disk, at(20));
        assert!(after.view().hour.unwrap().used >= meter.view().hour.unwrap().used);
    }
    assert!(disk[0].used <= meter.view().hour.unwrap().used + 1_000, "by little");
    // It is not written for every message.
    let mut written = 0;
    for _ in 0..10 {
        meter.spend(0, at(11));
        written += u32::from(meter.to_save().is_some());
    }
    assert!(written <= 3, "{written}");
}

#[test]
fn a_clock_that_is_set_back_and_forth_gives_no_second_budget() {
    let mut meter = meter(hourly(10_000));
    meter.spend(9_000, at(0));
    let back = Now { wall_ms: 5_000, ..at(10) };
    assert_eq!(meter.judge(Lane::Telemetry, 500, false, back), Verdict::Wait);
    assert_eq!(meter.judge(Lane::Telemetry, 500, false, at(20)), Verdict::Wait);
    // But it does not lock the node out either.
    let later = Now { wall_ms: 3_600_000, ..at(3_700) };
    assert_eq!(meter.judge(Lane::Telemetry, 500, false, later), Verdict::Go);
}

#[test]
fn samples_are_sealed_at_the_zones_times_and_batches_fit_budgets() {
    let zone = TimeZone::fixed(jiff::tz::offset(2));
    let cron = Schedule::Cron("0 6 * * *".parse().unwrap());
    let scheduled = meter(Policy { schedule: Some(cron), zone, ..Policy::default() });
    let every = Duration::from_secs(90);
    assert_eq!(scheduled.next_seal(every, at(0)), at(4 * 3_600).up);
    assert_eq!(scheduled.sooner(at(9 * 3_600).up, at(0)), at(4 * 3_600).up, "the clock was set");
    assert_eq!(meter(Policy::default()).next_seal(every, at(0)), at(90).up);
    assert_eq!(meter(hourly(64_000)).batch_samples(5_000), 500);
    assert_eq!(meter(hourly(1)).batch_samples(5_000), 1);
    assert_eq!(meter(Policy::default()).batch_samples(5_000), 5_000);
}
