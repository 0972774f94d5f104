//! What becomes of devices, told by the events it makes.

use fleet_schemas::batch::Clock;
use proptest::prelude::*;

use super::{watch::AWAKE, *};

const EVERY: u64 = 60;

fn at(up_s: u64) -> Now {
    Now { wall_ms: up_s as i64 * 1_000, up: Duration::from_secs(up_s), clock: Clock::Synced }
}

fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

fn name(text: &str) -> Option<MetricName> {
    Some(MetricName::parse(text).unwrap())
}

fn devices(register: Register) -> Devices {
    let policy = Policy { register, heartbeat: Duration::from_secs(EVERY) };
    Devices::found(policy, Vec::new(), at(0))
}

/// The states that were told, all about one device.
fn told(effects: &Effects) -> Vec<State> {
    assert_eq!(effects.writes.len(), effects.notes.len(), "what is told is written, and the reverse");
    effects.notes.iter().map(|note| note.report.state).collect()
}

fn see(devices: &mut Devices, sight: &Sight, up_s: u64) -> Vec<State> {
    told(&devices.see(&id("shed"), sight, at(up_s)).unwrap())
}

fn word(devices: &mut Devices, up_s: u64) -> Vec<State> {
    see(devices, &Sight::default(), up_s)
}

fn wait(devices: &mut Devices, up_s: u64) -> Vec<State> {
    told(&devices.advance(at(up_s)))
}

fn asleep(seconds: u64) -> Sight {
    Sight { sleep: Some(Duration::from_secs(seconds)), ..Sight::default() }
}

#[test]
fn a_silent_device_is_late_then_offline_and_online_by_its_next_word() {
    let mut devices = devices(Register::Auto);
    assert_eq!(word(&mut devices, 10), [State::Online]);
    assert_eq!(word(&mut devices, 60), [], "still here is no news");
    assert_eq!(wait(&mut devices, 149), []);
    assert_eq!(wait(&mut devices, 150), [State::Late]);
    assert_eq!(wait(&mut devices, 239), []);
    let offline = devices.advance(at(240));
    assert_eq!((told(&offline), offline.notes[0].severity), (vec![State::Offline], Severity::Warning));
    assert_eq!(offline.notes[0].report.last_seen_ms, Some(60_000));
    assert_eq!(devices.due(), None);
    assert_eq!(word(&mut devices, 500), [State::Online]);
    assert_eq!(wait(&mut devices, 500 + 1_000), [State::Late, State::Offline], "a look that comes late");
}

#[test]
fn a_device_has_its_own_heartbeat_and_without_any_is_never_late() {
    let mut devices = devices(Register::Auto);
    let every = |seconds| Declared { heartbeat: Some(Duration::from_secs(seconds)), ..Declared::default() };
    assert!(devices.declare(&id("shed"), every(600), at(0)).unwrap().0);
    assert_eq!(wait(&mut devices, 899), []);
    assert_eq!(wait(&mut devices, 900), [State::Late]);
    assert!(!devices.declare(&id("shed"), every(0), at(900)).unwrap().0);
    assert_eq!(devices.get(&id("shed")).unwrap().heartbeat_ms, None);
    let policy = Policy { register: Register::Auto, heartbeat: Duration::ZERO };
    let mut devices = Devices::found(policy, Vec::new(), at(0));
    word(&mut devices, 1);
    assert_eq!((devices.due(), wait(&mut devices, 1 << 30)), (None, vec![]));
}

#[test]
fn an_open_connection_shows_that_a_device_is_there() {
    let mut devices = devices(Register::Auto);
    word(&mut devices, 0);
    devices.link(&id("shed"), true, at(1));
    assert_eq!(wait(&mut devices, 10_000), []);
    devices.link(&id("shed"), false, at(10_000));
    assert_eq!(wait(&mut devices, 10_089), []);
    assert_eq!(wait(&mut devices, 10_090), [State::Late]);
}

#[test]
fn a_sleeper_is_late_after_its_time_and_a_short_word_does_not_wake_it() {
    let mut devices = devices(Register::Auto);
    assert_eq!(see(&mut devices, &asleep(300), 0), [State::Sleeping]);
    assert_eq!(devices.get(&id("shed")).unwrap().until_ms, Some(300_000));
    // It wakes, says one thing, and sleeps on: no news, but another time.
    assert_eq!(word(&mut devices, 300), []);
    assert_eq!(see(&mut devices, &asleep(300), 302), []);
    assert_eq!(wait(&mut devices, 302 + 60), []);
    assert_eq!(see(&mut devices, &asleep(600), 602), [State::Sleeping], "another span is news");
    // It overslept.
    assert_eq!(wait(&mut devices, 602 + 600 + 149), []);
    assert_eq!(wait(&mut devices, 602 + 600 + 150), [State::Late]);
    assert_eq!(wait(&mut devices, 602 + 1_200), [State::Offline]);
    // It stays awake.
    assert_eq!(see(&mut devices, &asleep(300), 2_000), [State::Sleeping]);
    assert_eq!(word(&mut devices, 2_100), []);
    assert_eq!(wait(&mut devices, 2_100 + AWAKE.as_secs()), [State::Online]);
}

#[test]
fn a_schedule_lets_every_word_be_followed_by_sleep() {
    let mut devices = devices(Register::Explicit);
    let schedule = Declared { schedule: Some(Duration::from_secs(900)), ..Declared::default() };
    assert_eq!(told(&devices.declare(&id("shed"), schedule, at(0)).unwrap().1), [State::Online]);
    assert_eq!(word(&mut devices, 5), [State::Sleeping]);
    assert_eq!(word(&mut devices, 905), []);
    assert_eq!(wait(&mut devices, 1_805), []);
    assert_eq!(wait(&mut devices, 905 + 900 + 225), [State::Late]);
}

#[test]
fn firmware_that_changes_is_told_and_the_first_kind_stays() {
    let mut devices = devices(Register::Auto);
    let sight = |firmware| Sight { kind: name("microclaw"), firmware: name(firmware), ..Sight::default() };
    see(&mut devices, &sight("0.2.0"), 0);
    assert_eq!(see(&mut devices, &sight("0.2.0"), 1), []);
    let changed = devices.see(&id("shed"), &sight("0.3.0"), at(2)).unwrap();
    assert_eq!(changed.notes[0].message, "device shed runs firmware 0.3.0 (before: 0.2.0)");
    let declared = Declared { kind: name("stm32"), ..Declared::default() };
    devices.declare(&id("shed"), declared, at(3)).unwrap();
    assert_eq!(see(&mut devices, &sight("0.3.0"), 4), []);
    assert_eq!(devices.get(&id("shed")).unwrap().kind, name("stm32"));
}

#[test]
fn there_are_only_so_many_and_only_those_that_may_be() {
    let mut devices = devices(Register::Auto);
    for n in 0..limits::DEVICES_PER_NODE {
        devices.see(&id(&n.to_string()), &Sight::default(), at(0)).unwrap();
    }
    assert_eq!(devices.see(&id("more"), &Sight::default(), at(1)), Err(Refused::Full));
    assert_eq!(devices.declare(&id("more"), Declared::default(), at(1)).unwrap_err(), Refused::Full);
    assert_eq!(devices.admit([&id("0"), &DeviceId::node()]), Ok(()));
    assert_eq!(told(&devices.remove(&id("7")).unwrap()), [State::Removed]);
    assert_eq!(devices.remove(&id("7")), None);
    assert_eq!(devices.admit([&id("a"), &id("b")]), Err(Refused::Full), "room for one of the two");
    assert_eq!(devices.admit([&id("a"), &id("a")]), Ok(()));
    let mut devices = self::devices(Register::Explicit);
    let unknown = devices.see(&id("shed"), &Sight::default(), at(0));
    assert_eq!(unknown, Err(Refused::Unknown(id("shed"))));
    let mut devices = self::devices(Register::Off);
    assert_eq!(word(&mut devices, 0), []);
    assert_eq!(devices.all().count(), 0);
}

#[test]
fn a_start_gives_everybody_time_and_keeps_what_they_were() {
    let mut before = devices(Register::Auto);
    before.see(&id("a"), &Sight::default(), at(0)).unwrap();
    before.see(&id("b"), &asleep(300), at(0)).unwrap();
    before.see(&id("c"), &Sight::default(), at(0)).unwrap();
    before.advance(at(100));
    before.see(&id("a"), &Sight::default(), at(100)).unwrap();
    let rows = before.all().cloned().collect();
    // The machine was started again; its wall clock goes on.
    let later = |up_s: u64| Now { up: Duration::from_secs(up_s), ..at(100 + up_s) };
    let mut devices = Devices::found(before.policy, rows, later(0));
    let states = |effects: Effects| -> Vec<_> {
        effects.notes.iter().map(|note| (note.report.device.to_string(), note.report.state)).collect()
    };
    assert_eq!(states(devices.advance(later(89))), []);
    assert_eq!(
        states(devices.advance(later(90))),
        [("a".to_owned(), State::Late), ("c".to_owned(), State::Offline)]
    );
    assert_eq!(
        states(devices.advance(later(200 + 75))),
        [("a".to_owned(), State::Offline), ("b".to_owned(), State::Late)]
    );
}

/// It told the same span every time, which is no news: its row is that of its first sleep.
#[test]
fn a_sleeper_whose_kept_sleep_is_over_has_a_whole_one_after_a_start() {
    let mut before = devices(Register::Auto);
    before.see(&id("shed"), &asleep(300), at(0)).unwrap();
    let rows = before.all().cloned().collect();
    let later = |up_s: u64| Now { up: Duration::from_secs(up_s), ..at(1_000 + up_s) };
    let mut devices = Devices::found(before.policy, rows, later(0));
    assert_eq!(told(&devices.advance(later(300 + 74))), []);
    assert_eq!(told(&devices.advance(later(300 + 75))), [State::Late]);
}

proptest! {
    /// Whatever happens, a look never finds the same deadline again, and states told one after the other differ unless
    /// something else of the device changed.
    #[test]
    fn deadlines_pass_once(steps in prop::collection::vec((0_u64..2_000, 0_u8..5), 1..60)) {
        let mut devices = devices(Register::Auto);
        let mut now = 0;
        for (wait, what) in steps {
            now += wait;
            let effects = devices.advance(at(now));
            let states = told(&effects);
            prop_assert!(states.windows(2).all(|pair| pair[0] != pair[1]), "{states:?}");
            prop_assert!(devices.due().is_none_or(|due| due > at(now).up));
            match what {
                0 => drop(word(&mut devices, now)),
                1 => drop(see(&mut devices, &asleep(wait + 1), now)),
                2 => devices.link(&id("shed"), true, at(now)),
                3 => devices.link(&id("shed"), false, at(now)),
                _ => drop(devices.remove(&id("shed"))),
            }
        }
    }
}
