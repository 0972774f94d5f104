//! What fires when, over samples and time.

use std::collections::BTreeSet;

use fleet_schemas::rule::{Scope, read};

use super::*;

const START: i64 = 1_790_000_000_000;

fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).unwrap()
}

fn rules(text: &str) -> Rules {
    with(text, Kept::default())
}

fn with(text: &str, kept: Kept) -> Rules {
    let mut rules = Rules::new("n1", kept, START);
    assert_eq!(rules.replace(read(text, Scope::default()).unwrap(), START), []);
    rules
}

fn seen(name: &str, metric: &str, second: i64, values: &[f64]) -> Seen {
    let one =
        |value: &f64| (device(name), MetricName::parse(metric).unwrap(), START + second * 1_000, *value);
    Seen { devices: BTreeSet::from([device(name)]), values: values.iter().map(one).collect() }
}

fn told(alerts: &[Alert]) -> Vec<String> {
    let one = |alert: &Alert| format!("{} {} {}", alert.transition.as_str(), alert.device, alert.message);
    alerts.iter().map(one).collect()
}

fn feed(rules: &mut Rules, name: &str, metric: &str, second: i64, values: &[f64]) -> Vec<String> {
    let now = START + second * 1_000;
    told(&rules.take(seen(name, metric, second, values), now, now))
}

const HOT: &str =
    "alerts: [{id: hot, sensor: any, field: t, condition: 'value > 27', message: '{{sensor}} {{value}}'}]";

#[test]
fn every_sample_of_a_batch_is_judged() {
    let mut rules = rules(HOT);
    assert_eq!(
        feed(&mut rules, "a", "t", 1, &[20.0, 30.0, 20.0]),
        ["firing a a 30", "resolved a over: a 20"]
    );
    assert_eq!(feed(&mut rules, "b", "t", 2, &[30.0]), ["firing b b 30"]);
    assert_eq!(feed(&mut rules, "b", "other", 2, &[99.0]), Vec::<String>::new());
    assert_eq!(rules.count(), (1, 1));
}

#[test]
fn late_and_disordered_samples_raise_nothing() {
    let mut rules = rules(HOT);
    let late = seen("a", "t", -3_600, &[99.0]);
    assert_eq!(rules.take(late, START, START), []);
    feed(&mut rules, "a", "t", 10, &[20.0]);
    let older = seen("a", "t", 5, &[99.0]);
    assert_eq!(rules.take(older, START + 11_000, START + 11_000), []);
    // A sensor whose clock was far ahead is heard again once it is right.
    feed(&mut rules, "c", "t", 7_200, &[20.0]);
    let right = seen("c", "t", 11, &[99.0]);
    assert_eq!(told(&rules.take(right, START + 11_000, START + 11_000)), ["firing c c 99"]);
}

const SILENT: &str = "alerts: [{id: silent, sensor: any, condition: 'last_seen_s > 120', message: '{{sensor}} {{last_seen_s}}'}]";

#[test]
fn silence_fires_by_the_clock_and_ends_with_the_first_word() {
    let mut rules = rules(SILENT);
    feed(&mut rules, "a", "t", 0, &[1.0]);
    // The node itself is silent too: that is no alert.
    rules.take(Seen { devices: BTreeSet::from([DeviceId::node()]), values: Vec::new() }, START, START);
    assert_eq!(told(&rules.tick(START + 120_000)), Vec::<String>::new());
    assert_eq!(told(&rules.tick(START + 121_000)), ["firing a a 121"]);
    assert_eq!(told(&rules.tick(START + 122_000)), Vec::<String>::new());
    rules.take(seen("a", "t", 123, &[]), START + 123_000, START + 123_000);
    assert_eq!(told(&rules.tick(START + 123_000)), ["resolved a over: a 0"]);
}

#[test]
fn a_named_device_that_never_spoke_is_silent_too() {
    let mut rules = rules("alerts: [{id: s, sensor: door, condition: 'last_seen_s > 60'}]");
    assert_eq!(rules.tick(START + 60_000), []);
    assert_eq!(rules.tick(START + 61_000).len(), 1);
}

#[test]
fn what_fires_goes_on_after_a_restart_and_silence_counts_anew() {
    let text =
        format!("{HOT}\n").replace("}]", "}, {id: silent, sensor: any, condition: 'last_seen_s > 120'}]");
    let mut before = rules(&text);
    feed(&mut before, "a", "t", 1, &[30.0]);
    let kept = before.kept().unwrap();
    assert_eq!(before.kept(), None, "nothing changed since");
    let bytes = fleet_schemas::cbor::encode(&kept);
    let mut after = with(&text, fleet_schemas::cbor::decode(&bytes).unwrap());
    assert_eq!(after.count(), (2, 1));
    assert_eq!(after.tick(START + 1_000), []);
    assert_eq!(feed(&mut after, "a", "t", 2, &[31.0]), Vec::<String>::new(), "no storm");
    assert_eq!(feed(&mut after, "a", "t", 3, &[20.0]), ["resolved a over: a 20"]);
    assert_eq!(after.tick(START + 124_000).len(), 1, "and it is missed when it falls silent");
}

#[test]
fn a_rule_that_is_gone_is_over_and_one_that_stays_goes_on() {
    let mut rules = rules(HOT);
    feed(&mut rules, "a", "t", 1, &[30.0]);
    let hotter = HOT.replace("27", "28");
    assert_eq!(rules.replace(read(&hotter, Scope::default()).unwrap(), START), []);
    assert_eq!(rules.count(), (1, 1));
    let over = rules.replace(Vec::new(), START);
    assert_eq!(told(&over), ["resolved a over: the rule hot is no longer there"]);
    assert_eq!(rules.interest(), Interest::default());
}

#[test]
fn change_over_time_and_other_devices_count() {
    let mut rising = rules("alerts: [{id: r, sensor: a, field: t, condition: \"rate('1m') > 0.5\"}]");
    assert_eq!(feed(&mut rising, "a", "t", 0, &[0.0]), Vec::<String>::new());
    assert_eq!(feed(&mut rising, "a", "t", 30, &[30.0]).len(), 1);
    // The window empties: the rate is not known, and the alert stays.
    assert_eq!(rising.tick(START + 300_000), []);
    let text =
        "alerts: [{id: r, sensor: a, field: t, condition: \"value > 5 && metric('door', 'open') == 1\"}]";
    let mut both = rules(text);
    assert_eq!(feed(&mut both, "a", "t", 0, &[9.0]), Vec::<String>::new());
    assert_eq!(feed(&mut both, "door", "open", 1, &[1.0]), Vec::<String>::new());
    assert_eq!(both.tick(START + 2_000).len(), 1);
}

#[test]
fn ten_thousand_devices_cost_no_more_than_the_limit() {
    let mut rules = rules(
        "alerts: [{id: r, sensor: any, field: t, condition: \"avg_over('1h') > 5 && last_seen_s < 9\"}]",
    );
    for n in 0..10_000 {
        feed(&mut rules, &format!("d{n}"), "t", 1, &[9.0]);
    }
    let kept = rules.kept().unwrap();
    assert!(kept.devices.len() <= limits::DEVICES_PER_NODE + 1, "{}", kept.devices.len());
    assert!(kept.states.len() <= limits::SERIES_PER_NODE, "{}", kept.states.len());
}
