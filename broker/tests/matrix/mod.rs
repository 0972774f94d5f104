//! The matrix of who may do what (`matrix.csv` beside this file), run against the gate.
//!
//! The table is the expectation; `mosquitto.py` runs the same one against a real mosquitto.

use crate::{
    client::{Client, Hello, Will},
    hub::Hub,
};

/// One line of the table.
#[derive(Debug)]
struct Case<'a> {
    who: &'a str,
    action: &'a str,
    topic: &'a str,
    /// For 3.1.1 and 5.
    answers: [&'a str; 2],
}

fn cases(table: &str) -> Vec<Case<'_>> {
    let lines = table.lines().filter(|line| !line.starts_with("# "));
    let case = |line| {
        let columns: Vec<&str> = str::split(line, ',').collect();
        let [who, action, topic, v4, v5, other4, other5, why] = columns[..] else { panic!("{line}") };
        assert_eq!(why.is_empty(), other4.is_empty() && other5.is_empty(), "{line}");
        Case { who, action, topic, answers: [v4, v5] }
    };
    lines.map(case).collect()
}

/// A topic of the table as bytes.
fn expand(topic: &str) -> Vec<u8> {
    let number = |text: &str| text.trim_end_matches('}').parse::<usize>().unwrap();
    if let Some(levels) = topic.strip_prefix("{deep:") {
        return vec!["a"; number(levels)].join("/").into_bytes();
    }
    if let Some((head, length)) = topic.split_once("{long:") {
        return format!("{head}{}", "l".repeat(number(length) - head.len())).into_bytes();
    }
    let text = topic.replace("{empty}", "").replace("{tab}", "\t").replace("{nul}", "\0");
    match text.split_once("{bad}") {
        Some((head, tail)) => [head.as_bytes(), &[0xFF], tail.as_bytes()].concat(),
        None => text.into_bytes(),
    }
}

/// What a case gives, in the words of the table.
fn answer(hub: &Hub, case: &Case<'_>, version: u8) -> String {
    let topic = expand(case.topic);
    let (action, qos) = case.action.split_at(case.action.len() - 1);
    let qos = qos.parse().unwrap_or(0);
    let will = Will { topic: &topic, qos, retain: action == "willretain", ..Will::new("") };
    let who = if case.who == "stranger" { "edge-1" } else { case.who };
    let connects = ["connect", "remembered"].contains(&case.action);
    let remembered: &[u8] = if case.action == "remembered" { &[0x11, 0, 0, 0x0E, 0x10] } else { &[] };
    let mut client = hub.connect(version);
    let connack = client.hello(&Hello {
        password: if case.who == "stranger" { "wrong" } else { crate::hub::PASSWORD },
        client_id: if connects { &topic } else { who.as_bytes() },
        clean: case.action != "remembered",
        properties: remembered,
        will: action.starts_with("will").then_some(will),
        ..Hello::new(who)
    });
    let (first, body) = connack.expect("a CONNACK");
    assert_eq!(first, 0x20);
    let said = |client: Option<&mut Client>| hub.said(client).iter().any(|said| said.as_bytes() == topic);
    if body[1] != 0 {
        assert_eq!(client.read(), None, "a refusal ends the connection");
        assert!(!said(None));
        return format!("connack:{:02x}", body[1]);
    }
    match action {
        "will" | "willretain" => {
            drop(client);
            // The gate notices the loss when it comes to it.
            if (0..1_000).any(|_| said(None)) { "ok".into() } else { "lost".into() }
        }
        "publish" | "retain" => {
            let retain = u8::from(action == "retain");
            client.publish_with(0x30 | (qos << 1) | retain, &topic, 7, &[], b"x");
            let refused = published(&mut client, qos);
            // Where the session goes on, its next ping tells that the gate has done with it.
            let open = refused.as_ref().is_none_or(|word| word.starts_with("puback"));
            match (refused, said(open.then_some(&mut client))) {
                (None, true) => "ok".into(),
                (None, false) => "drop".into(),
                (Some(refused), said) => {
                    assert!(!said, "refused and said");
                    refused
                }
            }
        }
        "subscribe" => subscribed(&mut client, &topic, qos),
        _ => "ok".into(),
    }
}

/// How a PUBLISH is refused, if it is.
fn published(client: &mut Client, qos: u8) -> Option<String> {
    if qos == 0 {
        client.send(&[0xC0, 0]);
    }
    match client.read() {
        Some((0xD0, _)) if qos == 0 => None,
        Some((0x40, body)) if body == [0, 7] => None,
        Some((0x40, body)) => Some(format!("puback:{:02x}", body[2])),
        end => Some(ended(client, end)),
    }
}

fn subscribed(client: &mut Client, filter: &[u8], qos: u8) -> String {
    client.ask(&[(filter, qos)], &[]);
    match client.read() {
        Some((0x90, body)) => match body.last() {
            Some(code @ 0x80..) => format!("refused:{code:02x}"),
            Some(code) => format!("granted:{code}"),
            None => panic!("a SUBACK without a code"),
        },
        end => ended(client, end),
    }
}

fn ended(client: &mut Client, end: Option<(u8, Vec<u8>)>) -> String {
    let word = match end {
        None => return "close".into(),
        Some((0xE0, body)) => format!("disconnect:{:02x}", body[0]),
        Some(other) => panic!("{other:x?}"),
    };
    assert_eq!(client.read(), None, "the connection ends with it");
    word
}

#[test]
fn everybody_may_do_what_the_matrix_says_and_nothing_else() {
    let hub = Hub::start();
    let cases = cases(include_str!("matrix.csv"));
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let mut wrong = vec![];
    for case in &cases {
        for (version, expected) in [4, 5].into_iter().zip(case.answers) {
            let answer = answer(&hub, case, version);
            if answer != expected {
                wrong.push(format!("{answer} in {version}: {case:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), 2 * cases.len(), wrong.join("\n"));
    assert_eq!(hub.broker.stats().router_rebuilds.get(), 0, "nothing of it killed the router");
}
