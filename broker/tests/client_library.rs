//! A client library that knows nothing of this gate gets along with it, in both versions of MQTT.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fleet_broker::{Broker, Config, Credentials, Directory, Grants, Identity, Link, Refusal, Verdict};
use fleet_schemas::{
    NodeId, Topic,
    topic::{ALL_UP, Down},
};

struct Secret;

impl Directory for Secret {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        if credentials.password != Some(b"secret") {
            return Verdict::Now(Err(Refusal::BadCredentials));
        }
        let user = credentials.user.unwrap_or_default();
        if user == "tool" {
            let grants = Grants { read: vec![ALL_UP.to_owned()], write: vec![] };
            return Verdict::Now(Ok(Identity::Tool { name: user.to_owned(), grants }));
        }
        NodeId::parse(user).map(Identity::Node).map_err(|_| Refusal::NotAuthorized).into()
    }
}

fn plane() -> (Broker, Link) {
    let config = Config { mqtt: "127.0.0.1:0".parse().unwrap(), ..Config::default() };
    Broker::start(config, Arc::new(Secret)).unwrap()
}

fn receive_one(link: &mut Link) -> Bytes {
    let mut messages = vec![];
    while link.recv(&mut messages, 1, Duration::from_secs(1)).unwrap() == 0 {}
    link.taken(&messages);
    messages.remove(0).payload
}

/// What both versions of the library do, in the same words.
macro_rules! gets_along {
    ($($module:ident)::+, $qos:path, $packet:path) => {{
        use $($module)::+::{Client, Event, MqttOptions};
        let (broker, mut link) = plane();
        let mut options = MqttOptions::new("edge-1", "127.0.0.1", broker.mqtt_addr().port());
        options.set_credentials("edge-1", "secret").set_keep_alive(Duration::from_secs(5));
        let (client, mut connection) = Client::new(options, 10);
        client.subscribe("fleet/v1/edge-1/down/#", $qos).unwrap();
        client.publish("fleet/v1/edge-1/up/birth", $qos, false, "hello").unwrap();
        let publisher = link.publisher();
        let (mut granted, mut acknowledged, mut heard) = (false, false, 0);
        for event in connection.iter() {
            use $packet as Packet;
            match event.unwrap() {
                Event::Incoming(Packet::SubAck(_)) => granted = true,
                Event::Incoming(Packet::PubAck(_)) => acknowledged = true,
                Event::Incoming(Packet::Publish(publish)) => {
                    assert_eq!(publish.payload, "order");
                    heard += 1;
                }
                _ => continue,
            }
            if granted && acknowledged && heard == 0 {
                let topic = Topic::Down(NodeId::parse("edge-1").unwrap(), Down::Command);
                publisher.publish(&topic, Bytes::from_static(b"order")).unwrap();
            }
            if heard == 1 {
                break;
            }
        }
        assert_eq!(receive_one(&mut link), "hello");
        drop((client, connection));
        broker.shutdown();
    }};
}

#[test]
fn mqtt_3_1_1() {
    gets_along!(rumqttc, rumqttc::QoS::AtLeastOnce, rumqttc::Packet);
}

#[test]
fn mqtt_5() {
    gets_along!(rumqttc::v5, rumqttc::v5::mqttbytes::QoS::AtLeastOnce, rumqttc::v5::mqttbytes::v5::Packet);
}

/// A tool and a node of the same library; the node speaks once the tool's subscription was granted.
macro_rules! hears {
    ($($module:ident)::+, $qos:path, $packet:path) => {{
        use $packet as Packet;
        use $($module)::+::{Client, Event, MqttOptions};
        const COUNT: u32 = 1_000;
        let (broker, mut link) = plane();
        let client = |id: &str, user: &str| {
            let mut options = MqttOptions::new(id, "127.0.0.1", broker.mqtt_addr().port());
            options.set_credentials(user, "secret").set_keep_alive(Duration::from_secs(5));
            Client::new(options, 10)
        };
        let (tool, mut hearing) = client("dashboard", "tool");
        tool.subscribe("fleet/v1/+/up/telemetry", $qos).unwrap();
        let (mut next, mut node) = (0, None);
        for event in hearing.iter() {
            match event.unwrap() {
                Event::Incoming(Packet::SubAck(_)) => {
                    let (client, mut connection) = client("edge-1", "edge-1");
                    node = Some(std::thread::spawn(move || {
                        let speaking = std::thread::spawn(move || {
                            for i in 0..COUNT {
                                let topic = "fleet/v1/edge-1/up/telemetry";
                                client.publish(topic, $qos, false, i.to_string()).unwrap();
                            }
                            client.disconnect().unwrap();
                        });
                        connection.iter().take_while(Result::is_ok).for_each(drop);
                        speaking.join().unwrap();
                    }));
                }
                Event::Incoming(Packet::Publish(publish)) => {
                    assert_eq!(publish.payload, next.to_string());
                    next += 1;
                }
                _ => {}
            }
            if next == COUNT {
                break;
            }
        }
        node.unwrap().join().unwrap();
        assert_eq!(receive_one(&mut link), "0");
        drop((tool, hearing));
        broker.shutdown();
    }};
}

#[test]
fn a_tool_hears_in_mqtt_3_1_1() {
    hears!(rumqttc, rumqttc::QoS::AtLeastOnce, rumqttc::Packet);
}

#[test]
fn a_tool_hears_in_mqtt_5() {
    hears!(rumqttc::v5, rumqttc::v5::mqttbytes::QoS::AtLeastOnce, rumqttc::v5::mqttbytes::v5::Packet);
}
