//! A directory that lets anyone in, as a tool who gives a user name, and raw clients, for the tests that measure.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use fleet_broker::{Config, Credentials, Directory, Grants, Identity, Refusal, Verdict};
use fleet_schemas::{NodeId, topic::ALL_UP};

pub(crate) struct Anyone;

impl Directory for Anyone {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        if let Some(user) = credentials.user {
            let grants = Grants { read: vec![ALL_UP.to_owned()], write: vec![] };
            return Verdict::Now(Ok(Identity::Tool { name: user.to_owned(), grants }));
        }
        let node =
            NodeId::parse(credentials.client_id).map(Identity::Node).map_err(|_| Refusal::NotAuthorized);
        node.into()
    }
}

pub(crate) fn config() -> Config {
    Config { mqtt: "127.0.0.1:0".parse().unwrap(), ..Config::default() }
}

pub(crate) fn connect(addr: SocketAddr, id: &str) -> TcpStream {
    let mut body = b"\0\x04MQTT\x04\x02\x0E\x10".to_vec();
    body.extend(u16::try_from(id.len()).unwrap().to_be_bytes());
    body.extend(id.as_bytes());
    hello(addr, &body)
}

/// Opens a session with the body of a CONNECT.
pub(crate) fn hello(addr: SocketAddr, body: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(addr).unwrap();
    let mut packet = vec![0x10, u8::try_from(body.len()).unwrap()];
    packet.extend(body);
    socket.write_all(&packet).unwrap();
    let mut connack = [0; 4];
    socket.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    socket
}

/// QoS 1, packet id 1, 150 bytes of payload.
pub(crate) fn publish(id: &str) -> Vec<u8> {
    let topic = format!("fleet/v1/{id}/up/telemetry");
    let length = 2 + topic.len() + 2 + 150;
    let mut packet =
        vec![0x32, u8::try_from(length & 0x7F | 0x80).unwrap(), u8::try_from(length >> 7).unwrap()];
    packet.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
    packet.extend(topic.as_bytes());
    packet.extend([0, 1]);
    packet.extend([7; 150]);
    packet
}

#[cfg(target_os = "linux")]
pub(crate) fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
