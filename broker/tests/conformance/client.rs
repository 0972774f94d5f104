//! A client that says exactly what it is told to, and shows exactly what comes back.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::hub::PASSWORD;

/// A connection.
pub(crate) struct Client {
    socket: TcpStream,
    pub(crate) version: u8,
}

/// A CONNECT; the fields are what cases vary.
#[derive(Clone, Copy)]
pub(crate) struct Hello<'a> {
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
    pub(crate) client_id: &'a [u8],
    pub(crate) keepalive: u16,
    /// Clean session, clean start.
    pub(crate) clean: bool,
    /// Of MQTT 5, without their length.
    pub(crate) properties: &'a [u8],
    pub(crate) will: Option<Will<'a>>,
}

/// A will.
#[derive(Clone, Copy)]
pub(crate) struct Will<'a> {
    pub(crate) topic: &'a [u8],
    pub(crate) payload: &'a [u8],
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Of MQTT 5, without their length.
    pub(crate) properties: &'a [u8],
}

/// A PUBLISH that came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Its first byte: type, DUP, QoS, RETAIN.
    pub(crate) first: u8,
    pub(crate) topic: String,
    pub(crate) id: u16,
    pub(crate) properties: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl<'a> Hello<'a> {
    pub(crate) fn new(user: &'a str) -> Self {
        let client_id = user.as_bytes();
        Self { user, password: PASSWORD, client_id, keepalive: 60, clean: true, properties: &[], will: None }
    }

    pub(crate) fn bytes(&self, version: u8) -> Vec<u8> {
        let properties = |body: &mut Vec<u8>, properties: &[u8]| {
            if version == 5 {
                body.push(u8::try_from(properties.len()).unwrap());
                body.extend(properties);
            }
        };
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', version];
        let will = self.will.map_or(0, |will| 4 | (will.qos << 3) | (u8::from(will.retain) << 5));
        body.push(0xC0 | (u8::from(self.clean) << 1) | will);
        body.extend(self.keepalive.to_be_bytes());
        properties(&mut body, self.properties);
        text(&mut body, self.client_id);
        if let Some(will) = self.will {
            properties(&mut body, will.properties);
            text(&mut body, will.topic);
            text(&mut body, will.payload);
        }
        text(&mut body, self.user.as_bytes());
        text(&mut body, self.password.as_bytes());
        packet(0x10, &body)
    }
}

impl<'a> Will<'a> {
    pub(crate) fn new(topic: &'a str) -> Self {
        Self { topic: topic.as_bytes(), payload: b"will", qos: 0, retain: false, properties: &[] }
    }
}

pub(crate) fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend(bytes);
}

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut out, mut length) = (vec![first], body.len());
    loop {
        let byte = u8::try_from(length & 0x7F).unwrap();
        length >>= 7;
        out.push(byte | if length > 0 { 0x80 } else { 0 });
        if length == 0 {
            out.extend(body);
            return out;
        }
    }
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr, version: u8) -> Self {
        let socket = TcpStream::connect(addr).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, version }
    }

    /// Says hello; gives the answer.
    #[track_caller]
    pub(crate) fn hello(&mut self, hello: &Hello<'_>) -> Option<(u8, Vec<u8>)> {
        self.send(&hello.bytes(self.version));
        self.read()
    }

    /// A socket whose other end is gone takes nothing: what matters is what it said before.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// A PUBLISH without properties; `first` has type and flags.
    pub(crate) fn publish(&mut self, first: u8, topic: &str, id: u16, payload: &[u8]) {
        self.publish_with(first, topic.as_bytes(), id, &[], payload);
    }

    pub(crate) fn publish_with(
        &mut self,
        first: u8,
        topic: &[u8],
        id: u16,
        properties: &[u8],
        payload: &[u8],
    ) {
        let mut body = vec![];
        text(&mut body, topic);
        if first & 6 != 0 {
            body.extend(id.to_be_bytes());
        }
        if self.version == 5 {
            body.push(u8::try_from(properties.len()).unwrap());
            body.extend(properties);
        }
        body.extend(payload);
        self.send(&packet(first, &body));
    }

    /// Publishes at QoS 1 and expects to be acknowledged.
    #[track_caller]
    pub(crate) fn say(&mut self, first: u8, topic: &str, payload: &[u8]) {
        self.publish(first, topic, 7, payload);
        assert_eq!(self.read(), Some((0x40, vec![0, 7])), "{topic}");
    }

    /// A SUBSCRIBE with packet id 9; `properties` without their length.
    pub(crate) fn ask(&mut self, filters: &[(&[u8], u8)], properties: &[u8]) {
        let mut body = vec![0, 9];
        if self.version == 5 {
            body.push(u8::try_from(properties.len()).unwrap());
            body.extend(properties);
        }
        for (filter, options) in filters {
            text(&mut body, filter);
            body.push(*options);
        }
        self.send(&packet(0x82, &body));
    }

    /// Subscribes and gives the codes.
    #[track_caller]
    pub(crate) fn subscribe(&mut self, filters: &[(&str, u8)]) -> Vec<u8> {
        let filters: Vec<_> = filters.iter().map(|(filter, options)| (filter.as_bytes(), *options)).collect();
        self.ask(&filters, &[]);
        self.acknowledged(0x90)
    }

    /// Unsubscribes and gives the codes.
    #[track_caller]
    pub(crate) fn unsubscribe(&mut self, filters: &[&str]) -> Vec<u8> {
        let mut body = vec![0, 9];
        body.extend((self.version == 5).then_some(0));
        filters.iter().for_each(|filter| text(&mut body, filter.as_bytes()));
        self.send(&packet(0xA2, &body));
        self.acknowledged(0xB0)
    }

    #[track_caller]
    fn acknowledged(&mut self, kind: u8) -> Vec<u8> {
        let head: &[u8] = if self.version == 5 { &[0, 9, 0] } else { &[0, 9] };
        let (first, body) = self.read().expect("it is acknowledged");
        assert_eq!((first, &body[..head.len()]), (kind, head));
        body[head.len()..].to_vec()
    }

    /// Asks whether the session lives; nothing else may come before the answer.
    #[track_caller]
    pub(crate) fn ping(&mut self) {
        self.send(&[0xC0, 0]);
        assert_eq!(self.read(), Some((0xD0, vec![])));
    }

    pub(crate) fn acknowledge(&mut self, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.send(&[0x40, 2, high, low]);
    }

    /// The next packet, which has to be a PUBLISH.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> Heard {
        let (first, body) = self.read().expect("the session lives");
        assert_eq!(first >> 4, 3, "{first:x} {body:x?}");
        let mut at = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8(body[2..at].to_vec()).unwrap();
        let mut id = 0;
        if first & 6 != 0 {
            id = u16::from_be_bytes([body[at], body[at + 1]]);
            at += 2;
        }
        let mut properties = vec![];
        if self.version == 5 {
            let length = usize::from(body[at]);
            assert!(length < 128);
            properties = body[at + 1..=at + length].to_vec();
            at += 1 + length;
        }
        Heard { first, topic, id, properties, payload: body[at..].to_vec() }
    }

    /// The next packet; `None` when the connection ended.
    #[track_caller]
    pub(crate) fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.fill(&mut head)?;
        let (mut length, mut shift) = (usize::from(head[1] & 0x7F), 7);
        while head[1] & 0x80 != 0 {
            self.fill(&mut head[1..])?;
            length |= usize::from(head[1] & 0x7F) << shift;
            shift += 7;
        }
        let mut body = vec![0; length];
        self.fill(&mut body)?;
        Some((head[0], body))
    }

    /// Expects the session to end: in MQTT 5 with this DISCONNECT, in 3.1.1 without a word.
    #[track_caller]
    pub(crate) fn ends(&mut self, code: u8) {
        if self.version == 5 {
            assert_eq!(self.read(), Some((0xE0, vec![code])));
        }
        assert_eq!(self.read(), None);
    }

    #[track_caller]
    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.socket.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                None
            }
            Err(error) => panic!("nothing came: {error}"),
        }
    }
}
