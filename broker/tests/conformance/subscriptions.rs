//! SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK and the matching of topics.

use crate::{
    client::{Client, Hello},
    hub::Hub,
};

#[track_caller]
fn tool(hub: &Hub, version: u8, client_id: &str) -> Client {
    hub.open(version, &Hello { client_id: client_id.as_bytes(), ..Hello::new("all") })
}

/// Topics that come until `apps/end` does.
#[track_caller]
fn until_end(ear: &mut Client) -> Vec<String> {
    let mut topics = vec![];
    loop {
        let heard = ear.hear();
        if heard.id != 0 {
            ear.acknowledge(heard.id);
        }
        if heard.topic == "end" {
            return topics;
        }
        topics.push(heard.topic);
    }
}

/// 3.1.1: [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-4] [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.9.3-1] [MQTT-3.9.3-2]
/// 5: [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.8.4-7] [MQTT-3.9.3-1] [MQTT-3.9.3-2];
/// wildcards out of place are refused one by one: [MQTT-4.7.1-1] [MQTT-4.7.1-2]; shared subscriptions are not offered.
#[test]
fn a_suback_has_a_code_for_each_filter_in_their_order() {
    let hub = Hub::start();
    let filters = [
        ("a", 0),
        ("a/#/b", 0),
        ("b/+", 1),
        ("a+", 0),
        ("$share/g/a", 0),
        ("$SYS/#", 1),
        ("c", 2),
        ("a#", 0),
    ];
    let (four, five) = ([0, 0x80, 1, 0x80, 0x80, 0x80, 1, 0x80], [0, 0x8F, 1, 0x8F, 0x9E, 0x87, 1, 0x8F]);
    assert_eq!(tool(&hub, 4, "all").subscribe(&filters), four);
    assert_eq!(tool(&hub, 5, "all").subscribe(&filters), five);
}

/// 3.1.1: [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.2-1] [MQTT-4.7.3-4]; 5: [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.2-1]
/// [MQTT-4.7.3-4]
#[test]
fn filters_match_as_the_standard_says() {
    let hub = Hub::start();
    let topics = ["a", "a/b", "a/b/c", "a/", "/a", "/", "A", "a/B", "b/b", "a//c", " a"];
    for (filter, matched) in [
        ("a/#", &["a", "a/b", "a/b/c", "a/", "a/B", "a//c"][..]),
        ("a/+", &["a/b", "a/", "a/B"]),
        ("+/+", &["a/b", "a/", "/a", "/", "a/B", "b/b"]),
        ("+", &["a", "A", " a"]),
        ("/+", &["/a", "/"]),
        ("+/b/#", &["a/b", "a/b/c", "b/b"]),
        ("a/+/c", &["a/b/c", "a//c"]),
        ("+/", &["a/", "/"]),
        ("A", &["A"]),
        ("#", &topics),
    ] {
        for version in [4, 5] {
            let mut ear = tool(&hub, version, "ear");
            assert_eq!(ear.subscribe(&[(filter, 0), ("end", 0)]), [0, 0]);
            let mut speaker = tool(&hub, version, "speaker");
            topics.iter().for_each(|topic| speaker.say(0x32, topic, b""));
            speaker.say(0x32, "end", b"");
            assert_eq!(until_end(&mut ear), matched, "{filter}");
        }
    }
}

/// 3.1.1: [MQTT-3.3.5-1]; 5: [MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-4] [MQTT-3.3.1-12] [MQTT-3.3.1-13]
#[test]
fn overlapping_subscriptions_get_one_copy_at_the_best_of_their_qos() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut ear = tool(&hub, version, "ear");
        if version == 5 {
            for (filter, identifier) in [("a/#", &[0x0B, 1][..]), ("a/b", &[0x0B, 0xFF, 0xFF, 0xFF, 0x7F])] {
                ear.ask(&[(filter.as_bytes(), u8::from(filter == "a/b"))], identifier);
                assert_eq!(ear.read().unwrap().0, 0x90);
            }
        } else {
            assert_eq!(ear.subscribe(&[("a/#", 0), ("a/b", 1)]), [0, 1]);
        }
        assert_eq!(ear.subscribe(&[("+/b", 0), ("end", 0)]), [0, 0]);
        let mut speaker = tool(&hub, version, "speaker");
        speaker.say(0x32, "a/b", b"x");
        speaker.say(0x32, "end", b"");
        let heard = ear.hear();
        assert_eq!((heard.first, heard.id, &heard.topic[..]), (0x32, 1, "a/b"));
        let mut identifiers: Vec<_> =
            heard.properties.split(|byte| *byte == 0x0B).map(<[u8]>::to_vec).collect();
        identifiers.sort();
        let both = vec![vec![], vec![1], vec![0xFF, 0xFF, 0xFF, 0x7F]];
        assert_eq!(identifiers, if version == 5 { both } else { vec![vec![]] });
        ear.acknowledge(1);
        assert_eq!(until_end(&mut ear), [""; 0]);
    }
}

/// 3.1.1: [MQTT-3.8.4-3]; 5: [MQTT-3.8.4-3]
#[test]
fn the_same_filter_again_replaces_the_subscription_and_loses_nothing() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut ear = tool(&hub, version, "ear");
        assert_eq!(ear.subscribe(&[("a", 0), ("end", 0)]), [0, 0]);
        let mut speaker = tool(&hub, version, "speaker");
        let speaking = std::thread::spawn(move || {
            (0..500_u16).for_each(|n| speaker.say(0x32, "a", &n.to_be_bytes()));
            speaker.say(0x32, "end", b"");
            speaker
        });
        let (mut next, mut ended) = (0_u16, false);
        for round in 0..20 {
            ear.ask(&[(b"a", round % 2)], &[]);
        }
        let mut subacks = 0;
        while !ended || subacks < 20 {
            let (first, body) = ear.read().expect("the session lives");
            match first {
                0x90 => subacks += 1,
                _ if body.starts_with(b"\0\x03end") => ended = true,
                _ => {
                    assert!(body.ends_with(&next.to_be_bytes()), "{next} is missing or comes twice");
                    if first == 0x32 {
                        ear.send(&[&[0x40, 2][..], &body[3..5]].concat());
                    }
                    next += 1;
                }
            }
        }
        assert_eq!(next, 500);
        speaking.join().unwrap();
    }
}

/// 3.1.1: [MQTT-3.10.4-1] [MQTT-3.10.4-2] [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-3.10.4-6]; 5: [MQTT-3.10.4-1]
/// [MQTT-3.10.4-2] [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-3.10.4-6] [MQTT-3.11.3-1] [MQTT-3.11.3-2]
#[test]
fn an_unsubscribe_takes_exactly_its_filters_and_is_always_answered() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut ear = tool(&hub, version, "ear");
        assert_eq!(ear.subscribe(&[("a/+", 0), ("a/b", 0), ("c", 0), ("end", 0)]), [0, 0, 0, 0]);
        let codes = ear.unsubscribe(&["a/+", "a/#", "c", "c", "A/b"]);
        assert_eq!(codes, if version == 5 { &[0, 0x11, 0, 0x11, 0x11][..] } else { &[] });
        let mut speaker = tool(&hub, version, "speaker");
        ["a/x", "a/b", "c", "end"].iter().for_each(|topic| speaker.say(0x32, topic, b""));
        assert_eq!(until_end(&mut ear), ["a/b"]);
    }
}

/// 3.1.1: [MQTT-3.10.4-3]; 5: [MQTT-3.10.4-3]
#[test]
fn what_is_on_its_way_when_an_unsubscribe_comes_is_still_acknowledged() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut ear = tool(&hub, version, "ear");
        assert_eq!(ear.subscribe(&[("a", 1)]), [1]);
        tool(&hub, version, "speaker").say(0x32, "a", b"x");
        let heard = ear.hear();
        ear.unsubscribe(&["a"]);
        ear.acknowledge(heard.id);
        ear.ping();
    }
}

/// [MQTT-3.8.3-3]
#[test]
fn no_local_keeps_a_client_from_hearing_itself_and_nobody_else() {
    let hub = Hub::start();
    let mut client = tool(&hub, 5, "one");
    assert_eq!(client.subscribe(&[("a", 4), ("end", 0)]), [0, 0]);
    client.say(0x32, "a", b"own");
    let mut other = tool(&hub, 5, "two");
    other.say(0x32, "a", b"other's");
    other.say(0x32, "end", b"");
    assert_eq!(client.hear().payload, b"other's");
    assert_eq!(until_end(&mut client), [""; 0]);
}

/// What nodes subscribe to follows the same rules.
#[test]
fn a_node_is_granted_its_own_and_nothing_else() {
    let hub = Hub::start();
    let filters = [("fleet/v1/edge-1/down/#", 2), ("fleet/v1/edge-2/down/#", 0), ("#", 0)];
    assert_eq!(hub.session(4, "edge-1").subscribe(&filters), [1, 0x80, 0x80]);
    let mut node = hub.session(5, "edge-1");
    assert_eq!(node.subscribe(&filters), [1, 0x87, 0x87]);
    assert_eq!(node.unsubscribe(&["fleet/v1/edge-1/down/#", "#"]), [0, 0x11]);
    node.ask(&[(b"fleet/v1/edge-1/down/#", 0)], &[0x0B, 1]);
    node.ends(0xA1);
}
