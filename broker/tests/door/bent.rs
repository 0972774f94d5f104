//! TLS with a byte changed, a piece missing or records cut small: a session opens or the connection ends, and nothing
//! else happens.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::Duration,
};

use fleet_broker::Broker;
use fleet_schemas::enrol;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::{
    corpus::{PANICS, count_panics},
    pki::{ByCertificate, Pki, config, node_uri},
    until,
    wire::{Client, Hello, publish},
};

/// A wire that changes one byte of what goes through it, or ends there.
struct Bent {
    socket: TcpStream,
    sent: usize,
    at: usize,
    /// What is done to the byte; `None`: it and all behind it is lost.
    flip: Option<u8>,
    /// So many bytes at once.
    piece: usize,
}

impl Read for Bent {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.read(bytes)
    }
}

impl Write for Bent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.piece);
        let mut piece = bytes[..n].to_vec();
        if let Some(here) = self.at.checked_sub(self.sent).filter(|here| *here < n) {
            match self.flip {
                Some(flip) => piece[here] ^= flip,
                None => {
                    self.socket.write_all(&piece[..here])?;
                    self.socket.shutdown(Shutdown::Write)?;
                    return Err(ErrorKind::BrokenPipe.into());
                }
            }
        }
        self.socket.write_all(&piece)?;
        self.sent += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a session through a bent wire and publishes; says whether that was acknowledged.
fn session(broker: &Broker, config: &Arc<ClientConfig>, at: usize, flip: Option<u8>, piece: usize) -> bool {
    let socket = TcpStream::connect(broker.mqtts_addr().unwrap()).unwrap();
    // A length that grew lets both sides wait.
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket.set_nodelay(true).unwrap();
    let wire = Bent { socket, sent: 0, at, flip, piece };
    let name = enrol::HUB_NAME.try_into().unwrap();
    let connection = ClientConnection::new(config.clone(), name).unwrap();
    let mut client = Client { stream: StreamOwned::new(connection, wire) };
    let hello = Hello::new(5, "edge-1").bytes();
    let event = publish(5, 0x30, "fleet/v1/edge-1/up/event", 0, &[7; 200]);
    let said = [hello, event, vec![0xC0, 0]].concat();
    let mut answers = vec![0; 256];
    let mut got = vec![];
    if client.stream.write_all(&said).and_then(|()| client.stream.flush()).is_err() {
        return false;
    }
    // The last is the answer to the ping.
    while !got.ends_with(&[0xD0, 0]) {
        match client.stream.read(&mut answers) {
            Ok(0) | Err(_) => return false,
            Ok(n) => got.extend(&answers[..n]),
        }
    }
    true
}

#[test]
fn a_byte_that_changed_on_its_way_opens_nothing_and_harms_nobody() {
    count_panics();
    let pki = Pki::new();
    let (broker, mut link) = Broker::start(config(pki.keys()), Arc::new(ByCertificate)).unwrap();
    let mut small = ClientConfig::clone(&pki.client(Some(&node_uri("edge-1"))));
    let whole = Arc::new(small.clone());
    small.max_fragment_size = Some(64);
    let small = Arc::new(small);
    let mut messages = vec![];
    for (config, piece) in [(&whole, usize::MAX), (&small, usize::MAX), (&small, 7)] {
        assert!(session(&broker, config, usize::MAX, None, piece), "a straight wire");
        let (mut opened, mut at) = (0, 0);
        while at < 1_700 {
            for flip in [Some(0x01), Some(0x80), None] {
                opened += usize::from(session(&broker, config, at, flip, piece));
            }
            // All of the first record's header, and then here and there.
            at += if at < 12 { 1 } else { 67 };
            link.recv(&mut messages, 4_096, Duration::ZERO).unwrap();
            link.taken(&messages);
            messages.clear();
        }
        // The version of a record is nobody's business (RFC 8446 §5.1), and what follows the end is not sent.
        assert!(opened < 40, "{opened} were let in");
    }
    until("all are over", || broker.stats().connections.get() == 0);
    assert!(session(&broker, &whole, usize::MAX, None, usize::MAX), "nobody was harmed");
    broker.shutdown();
    assert_eq!(PANICS.load(std::sync::atomic::Ordering::SeqCst), 0);
}
