//! Back-pressure: a hub that does not take what it received bounds memory, loses nothing and cuts nobody.

use super::*;
use crate::Reason;

#[test]
fn a_consumer_that_does_not_take_stops_the_reading_and_loses_nothing() {
    const BUDGET: usize = 256 * 1024;
    const EACH: u32 = 3_000;
    const NODES: usize = 4;
    let (broker, mut link) = plane_with(|config| config.budget_bytes = BUDGET);
    let addr = broker.mqtt_addr();
    let senders: Vec<_> = (0..NODES)
        .map(|n| {
            thread::spawn(move || {
                let id = format!("edge-{n}");
                let mut client = Client::open(addr, &Hello { keepalive: 2, ..Hello::new(V5, &id) });
                let mut reader = Client { socket: client.socket.try_clone().unwrap() };
                let acks = thread::spawn(move || {
                    let (mut acks, mut pings) = (0, 0);
                    while acks < EACH {
                        match reader.read().expect("the session lives").0 {
                            0x40 => acks += 1,
                            0xD0 => pings += 1,
                            other => panic!("{other:x}"),
                        }
                    }
                    pings
                });
                let topic = format!("fleet/v1/{id}/up/telemetry");
                for i in 0..EACH {
                    let mut payload = vec![0; 400];
                    payload[..4].copy_from_slice(&i.to_be_bytes());
                    client.send(&publish(V5, 0x32, &topic, u16::try_from(i + 1).unwrap(), &payload));
                }
                (acks.join().unwrap(), client)
            })
        })
        .collect();
    let stats = broker.stats();
    let mut messages = vec![];
    let asleep = clock::now();
    // Longer than one and a half keepalives: silence that the gate made must not be held against anyone.
    while clock::now() < asleep + Duration::from_secs(5) {
        link.recv(&mut messages, 100_000, Duration::from_millis(50)).unwrap();
        assert!(stats.in_flight_bytes.get() < 4 * BUDGET as u64, "{}", stats.in_flight_bytes.get());
    }
    assert!(messages.len() < NODES * EACH as usize / 2, "{}", messages.len());
    assert_eq!(stats.paused_sessions.get(), NODES as u64);
    let first = messages.len();
    link.taken(&messages);
    messages.extend(receive(&mut link, NODES * EACH as usize - first));
    let mut next = std::collections::HashMap::new();
    for message in messages {
        let next = next.entry(message.topic).or_insert(0_u32);
        assert_eq!(message.payload[..4], next.to_be_bytes());
        *next += 1;
    }
    let (pings, clients): (Vec<u32>, Vec<_>) =
        senders.into_iter().map(|sender| sender.join().unwrap()).unzip();
    assert!(pings.iter().all(|pings| *pings >= 2), "{pings:?}");
    assert_eq!((stats.reason(Reason::KeepAlive), stats.sessions.get()), (0, clients.len() as u64));
    assert_eq!((stats.in_flight_bytes.get(), stats.paused_sessions.get()), (0, 0));
}

#[test]
fn room_that_comes_at_any_moment_is_noticed() {
    const EACH: u16 = 1_500;
    const NODES: usize = 8;
    // Room for two messages, so that everybody is paused and goes on all the time.
    let (broker, mut link) = plane_with(|config| config.budget_bytes = 1024);
    let addr = broker.mqtt_addr();
    let senders: Vec<_> = (0..NODES)
        .map(|n| {
            thread::spawn(move || {
                let id = format!("edge-{n}");
                // Nothing but room wakes it: its keepalive is longer than the test.
                let mut client = Client::open(addr, &Hello { keepalive: 600, ..Hello::new(V4, &id) });
                let topic = format!("fleet/v1/{id}/up/telemetry");
                for id in 1..=EACH {
                    client.send(&publish(V4, 0x32, &topic, id, b"a message"));
                    assert_eq!(client.read().expect("the session lives").0, 0x40);
                }
                client
            })
        })
        .collect();
    assert_eq!(receive(&mut link, NODES * usize::from(EACH)).len(), NODES * usize::from(EACH));
    assert!(broker.stats().pauses.get() > 10, "{} pauses", broker.stats().pauses.get());
    senders.into_iter().for_each(|sender| drop(sender.join().unwrap()));
}
