//! MQTT packets as bytes, and a client that says whatever it is told to, in plain or in TLS.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A client on any stream.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: S,
}

/// A CONNECT; the fields are what tests vary.
pub(crate) struct Hello<'a> {
    pub(crate) version: u8,
    pub(crate) client_id: &'a str,
    /// Whether there is a will for `fleet/v1/{client_id}/up/death`.
    pub(crate) will: bool,
    pub(crate) keepalive: u16,
    pub(crate) login: Option<(&'a str, &'a str)>,
}

impl<'a> Hello<'a> {
    pub(crate) fn new(version: u8, client_id: &'a str) -> Self {
        Self { version, client_id, will: false, keepalive: 60, login: None }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let properties: &[u8] = if self.version == 5 { &[0] } else { &[] };
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', self.version];
        let will = if self.will { 0x04 } else { 0 };
        body.push(2 | will | if self.login.is_some() { 0xC0 } else { 0 });
        body.extend(self.keepalive.to_be_bytes());
        body.extend(properties);
        text(&mut body, self.client_id.as_bytes());
        if self.will {
            body.extend(properties);
            text(&mut body, format!("fleet/v1/{}/up/death", self.client_id).as_bytes());
            text(&mut body, b"will");
        }
        if let Some((user, password)) = self.login {
            text(&mut body, user.as_bytes());
            text(&mut body, password.as_bytes());
        }
        packet(0x10, &body)
    }
}

pub(crate) fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend(bytes);
}

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    loop {
        let byte = u8::try_from(length & 0x7F).unwrap();
        length >>= 7;
        if length == 0 {
            out.push(byte);
            break;
        }
        out.push(byte | 0x80);
    }
    out.extend(body);
    out
}

/// A PUBLISH; `first` has type and flags.
pub(crate) fn publish(version: u8, first: u8, topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![];
    text(&mut body, topic.as_bytes());
    if first & 6 != 0 {
        body.extend(id.to_be_bytes());
    }
    if version == 5 {
        body.push(0);
    }
    body.extend(payload);
    packet(first, &body)
}

impl Client<TcpStream> {
    /// A connection in plain, without a word said.
    pub(crate) fn plain(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }
}

impl<S: Read + Write> Client<S> {
    /// Says hello and expects to be let in.
    #[track_caller]
    pub(crate) fn open(mut self, hello: &Hello<'_>) -> Self {
        self.send(&hello.bytes());
        let (first, body) = self.read().expect("CONNACK");
        assert_eq!((first, &body[..2]), (0x20, &[0, 0][..]));
        self
    }

    /// Says hello and expects this refusal.
    #[track_caller]
    pub(crate) fn refused(mut self, hello: &Hello<'_>, code: u8) {
        self.send(&hello.bytes());
        let (first, body) = self.read().expect("CONNACK");
        assert_eq!((first, body[1]), (0x20, code), "{:x?}", body);
        assert_eq!(self.read(), None);
    }

    /// Publishes at QoS 1 and waits for the acknowledgement.
    #[track_caller]
    pub(crate) fn say(&mut self, version: u8, topic: &str, payload: &[u8]) {
        self.send(&publish(version, 0x32, topic, 7, payload));
        assert_eq!(self.read(), Some((0x40, vec![0, 7])));
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
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

    #[track_caller]
    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
                ) =>
            {
                None
            }
            Err(error) => panic!("nothing came: {error}"),
        }
    }
}
