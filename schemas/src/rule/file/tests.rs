//! Files as kits ship them, and files that are wrong.

use proptest::prelude::*;

use super::*;

fn refused(text: &str) -> FileError {
    read(text, Scope::default()).expect_err(text)
}

const KIT: &str = r#"
# A kit's rules.
alerts:
  - id: rack-hot
    sensor: dht22
    field: temperature
    condition: "value > 27.0"
    severity: warn
    message: "Rack at {{ value }} °C"
    outputs: [log, webhook, buzzer]
    cooldown_s: 300
  - id: sensor-silent
    sensor: any
    condition: "last_seen_s > 120"
    severity: critical
    message: "{{ sensor }} is silent"
    outputs: [log]
    cooldown_s: 600
"#;

#[test]
fn a_kits_file_is_read_unchanged() {
    let rules = read(KIT, Scope::default()).unwrap();
    assert_eq!(rules.len(), 2);
    assert_eq!(rules[0].id.as_str(), "rack-hot");
    assert_eq!(rules[0].target, Target::Device(DeviceId::parse("dht22").unwrap()));
    assert_eq!((rules[0].severity, rules[0].cooldown), (Severity::Warning, Duration::from_secs(300)));
    assert_eq!(rules[0].outputs, ["log", "webhook", "buzzer"]);
    assert_eq!((rules[1].target.clone(), rules[1].field.clone()), (Target::Any, None));
    assert!(rules[1].condition.uses_time());
}

#[test]
fn everything_else_a_rule_may_say_is_read() {
    let text = "rules:\n- {id: a, device: node, metric: load1, condition: value > 4, clear: value < 2, for: 5m,\n   \
                hysteresis: 0.5, cooldown: 1h, labels: {team: edge}, selector: 'site=a', name: Load, description: x}\n\
                - {id: b, condition: 'last_seen_s > 9', enabled: false}";
    let rules = read(text, Scope::default()).unwrap();
    assert_eq!(rules.len(), 1, "what is not enabled is left out");
    assert_eq!((rules[0].wait, rules[0].cooldown), (Duration::from_secs(300), Duration::from_secs(3_600)));
    assert_eq!(rules[0].target, Target::Device(DeviceId::node()));
    assert_eq!(rules[0].labels["team"], "edge");
    assert_eq!(read("", Scope::default()), Ok(Vec::new()));
    assert_eq!(read("alerts: []", Scope::default()), Ok(Vec::new()));
}

#[test]
fn mistakes_have_a_line_and_a_column() {
    let one = |what: &str| format!("alerts:\n  - id: a\n    field: t\n    {what}\n");
    for (text, line, column, hint) in [
        (one("condition: \"value > > 3\""), 4, 25, "term is missing"),
        (one("condition: value >"), 4, 23, "term is missing"),
        (one("condition: 'value > 3'\n    cooldwon_s: 3"), 5, 5, "cooldwon_s"),
        (one("condition: 'value > 3'\n    severity: loud"), 5, 15, "loud"),
        (one("condition: 'value > 3'\n    for: soon"), 5, 10, "such as 90s"),
        (one("condition: 'value > 3'\n    cooldown_s: -1"), 5, 17, "such as 90s"),
        (one("condition: 'value > 3'\n    hysteresis: -1"), 5, 17, "from 0 on"),
        (one("condition: 'value > 3'\n  - id: a\n    condition: 'last_seen_s > 3'"), 5, 9, "taken"),
        (one("condition: 'value > 3'\n    outputs: [a,a,a,a,a,a,a,a,a]"), 5, 14, "outputs"),
        ("alerts:\n  - id: a/b\n    condition: 'last_seen_s > 3'".to_owned(), 2, 9, "A-Z"),
        ("alerts:\n  - condition: 'last_seen_s > 3'".to_owned(), 2, 5, "id"),
        ("alerts: [".to_owned(), 1, 9, "unclosed"),
        ("alerts: {a: 1}".to_owned(), 1, 9, ""),
        ("alerts:\n  - id: a\n    id: b".to_owned(), 3, 5, "duplicate"),
    ] {
        let error = refused(&text);
        assert!(error.reason.contains(hint), "{text}\n{error}");
        assert_eq!((error.line, error.column), (line, column), "{text}\n{error}");
    }
}

#[test]
fn hostile_files_are_refused() {
    let many: String =
        (0..=RULES).map(|n| format!("- {{id: r{n}, condition: 'last_seen_s > 1'}}\n")).collect();
    assert!(refused(&format!("alerts:\n{many}")).reason.contains("more than"));
    assert!(refused(&"a".repeat(FILE_BYTES + 1)).reason.contains("larger"));
    refused(&format!("alerts: {}{}", "[".repeat(10_000), "]".repeat(10_000)));
    refused("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nalerts: [*b,*b,*b]");
    refused("alerts: [{id: a, condition: 'last_seen_s > 1'}]\n---\nalerts: []");
    refused("alerts: 7");
    refused("\u{0}");
    refused("- x");
}

#[test]
fn messages_tell_device_and_value() {
    struct Warm;
    impl View for Warm {
        fn value(&self, _: &super::super::Series) -> Option<f64> {
            Some(27.25)
        }
        fn last_seen_s(&self) -> Option<f64> {
            Some(3.9)
        }
        fn over(&self, _: &super::super::Series, _: Duration) -> Option<super::super::Aggregate> {
            None
        }
        fn fact(&self, _: &str) -> Option<super::super::Fact<'_>> {
            None
        }
    }
    let rules = read(KIT, Scope::default()).unwrap();
    let device = DeviceId::parse("dht22").unwrap();
    assert_eq!(rules[0].render("n1", &device, &Warm), "Rack at 27.25 °C");
    assert_eq!(rules[1].render("n1", &device, &Warm), "dht22 is silent");
    assert_eq!(rules[1].render("n1", &DeviceId::node(), &Warm), "n1 is silent");
    let plain = read("alerts: [{id: a, condition: 'last_seen_s > 1'}]", Scope::default()).unwrap();
    assert_eq!(plain[0].render("n1", &device, &Warm), "a: last_seen_s > 1 holds at dht22");
    assert_eq!(plain[0].value(&Warm), Some(3.9));
}

proptest! {
    #[test]
    fn no_file_is_taken_amiss(text in "\\PC{0,120}") {
        let _ = read(&text, Scope::default());
    }

    #[test]
    fn no_damaged_file_is_taken_amiss(at in 0..KIT.len(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = KIT.as_bytes().to_vec();
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        let _ = read(&String::from_utf8_lossy(&bytes), Scope::default());
    }
}
