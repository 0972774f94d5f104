//! The bytes of one connection as the rest of the gate sees them: in the clear, whether they cross the network in
//! plain or in TLS.
//!
//! Owns the socket and the TLS state, and no buffer: a record that came in part is all that is kept between two
//! calls, and what is to be sent is appended to a buffer of the caller (GATE-NOTES 1 for TLS). Never waits, and does
//! not know MQTT.

use std::{io, sync::Arc};

use rustls::{
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{
        ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
    },
};
use tokio::net::TcpStream;

use crate::keys::Keys;

/// One connection's socket.
pub(crate) struct Transport {
    pub(crate) stream: TcpStream,
    tls: Option<Tls>,
}

enum Tls {
    /// Nothing came yet: whoever says nothing costs nothing.
    Due(Arc<dyn Keys>),
    Begun(Box<Begun>),
    /// It broke; nothing more can be read or said.
    Over,
}

struct Begun {
    connection: UnbufferedServerConnection,
    /// What came of a record, or of a handshake message, that is not whole yet.
    partial: Vec<u8>,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// Something, or nothing for now.
    Bytes,
    /// The peer sends no more.
    End,
    /// No TLS, or none that is accepted; the answer has the alert.
    Broken,
}

/// The TLS state cannot encrypt (any more).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsealable;

/// Read at once.
pub(crate) const READ: usize = 64 * 1024;
/// Most that is kept of a record or handshake message: a record has 16 KiB and a little (RFC 8446 §5.2), a client's
/// certificate far less.
const PARTIAL: usize = 20 * 1024;
/// What a caller's buffer has to hold.
pub(crate) const SCRATCH: usize = READ + PARTIAL;
/// Room for a record's header, tag and type, and for the 16 KiB that each may carry.
const OVERHEAD: usize = 64;
const RECORD: usize = 16 * 1024;
/// Most states that TLS may go through without new bytes: more is a fault of ours.
const STATES: usize = 1_024;

impl Transport {
    pub(crate) fn new(stream: TcpStream, keys: Option<Arc<dyn Keys>>) -> Self {
        Self { stream, tls: keys.map(Tls::Due) }
    }

    pub(crate) fn encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether nothing can be said to the peer yet.
    pub(crate) fn handshaking(&self) -> bool {
        match &self.tls {
            None => false,
            Some(Tls::Due(_) | Tls::Over) => true,
            Some(Tls::Begun(begun)) => begun.connection.is_handshaking(),
        }
    }

    /// The peer's own certificate (DER), once the handshake is over and if it has one.
    pub(crate) fn certificate(&self) -> Option<&[u8]> {
        match &self.tls {
            Some(Tls::Begun(begun)) if !begun.connection.is_handshaking() => {
                begun.connection.peer_certificates()?.first().map(AsRef::as_ref)
            }
            Some(Tls::Begun(_) | Tls::Due(_) | Tls::Over) | None => None,
        }
    }

    /// Reads what is there, at most [`READ`] bytes, by way of `bytes` ([`SCRATCH`] long) and `plain`, and gives it in
    /// the clear. `answer` gets what TLS itself has to say, ready for the socket.
    ///
    /// # Errors
    /// Those of the socket; [`io::ErrorKind::WouldBlock`] when nothing is there.
    pub(crate) fn read<'s>(
        &mut self,
        bytes: &'s mut [u8],
        plain: &'s mut Vec<u8>,
        answer: &mut Vec<u8>,
    ) -> io::Result<(Got, &'s [u8])> {
        let held = match &self.tls {
            Some(Tls::Begun(begun)) => &begun.partial[..],
            Some(Tls::Due(_) | Tls::Over) | None => &[],
        };
        bytes[..held.len()].copy_from_slice(held);
        let held = held.len();
        let read = match self.stream.try_read(&mut bytes[held..][..READ])? {
            0 => return Ok((Got::End, &[])),
            n => n,
        };
        let input = &mut bytes[..held + read];
        if let Some(Tls::Due(keys)) = &self.tls {
            self.tls = Some(match UnbufferedServerConnection::new(keys.server_config()) {
                Ok(connection) => Tls::Begun(Box::new(Begun { connection, partial: Vec::new() })),
                Err(_) => Tls::Over,
            });
        }
        plain.clear();
        let got = match &mut self.tls {
            None => return Ok((Got::Bytes, input)),
            Some(Tls::Begun(begun)) => begun.open(input, plain, answer),
            Some(Tls::Due(_) | Tls::Over) => Got::Broken,
        };
        if got == Got::Broken {
            self.tls = Some(Tls::Over);
        }
        Ok((got, plain))
    }

    /// Appends `plain` to `sealed` as it goes over the network.
    ///
    /// # Errors
    /// [`Unsealable`] when TLS is not up, or no more.
    pub(crate) fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>) -> Result<(), Unsealable> {
        match &mut self.tls {
            None => sealed.extend_from_slice(plain),
            Some(Tls::Due(_) | Tls::Over) => return Err(Unsealable),
            Some(Tls::Begun(begun)) => {
                let room = plain.len() + OVERHEAD * (plain.len() / RECORD + 1);
                if begun.write(sealed, room, |traffic, out| traffic.encrypt(plain, out)).is_err() {
                    self.tls = Some(Tls::Over);
                    return Err(Unsealable);
                }
            }
        }
        Ok(())
    }

    /// Appends TLS's own end, so that the peer can tell it from a cut cable (RFC 8446 §6.1). Nothing in plain.
    pub(crate) fn close(&mut self, sealed: &mut Vec<u8>) {
        if let Some(Tls::Begun(begun)) = &mut self.tls
            && !begun.connection.is_handshaking()
        {
            // Whoever cannot be told will see the socket's end.
            let _ = begun.write(sealed, OVERHEAD, |traffic, out| traffic.queue_close_notify(out));
        }
    }

    /// As [`TcpStream::try_write`], of bytes that are ready for the socket.
    ///
    /// # Errors
    /// Those of the socket.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.try_write(bytes)
    }
}

impl Begun {
    /// Takes all whole records out of `input`.
    fn open(&mut self, input: &mut [u8], plain: &mut Vec<u8>, answer: &mut Vec<u8>) -> Got {
        let mut used = 0;
        let mut got = Got::Bytes;
        for _ in 0..STATES + input.len() {
            let UnbufferedStatus { mut discard, state } =
                self.connection.process_tls_records(&mut input[used..]);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let Ok(record) = record else { return Got::Broken };
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => append(answer, |out| data.encode(out)),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                // None is offered, so none comes (RFC 8446 §4.2.10).
                Ok(ConnectionState::ReadEarlyData(_)) => return Got::Broken,
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    used += discard;
                    got = Got::End;
                    break;
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                    used += discard;
                    break;
                }
                Ok(_) => return Got::Broken,
                Err(error) => {
                    tracing::debug!(%error, "TLS broke");
                    self.alert(&mut input[used + discard..], answer);
                    return Got::Broken;
                }
            }
            used += discard;
        }
        if input.len() - used > PARTIAL {
            return Got::Broken;
        }
        self.partial = input[used..].to_vec();
        got
    }

    /// Fetches the alert that an error left behind. Asked twice, rustls would look at the same bytes again, and panic
    /// over its second alert.
    fn alert(&mut self, rest: &mut [u8], answer: &mut Vec<u8>) {
        if let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(mut data)), .. } =
            self.connection.process_tls_records(rest)
        {
            append(answer, |out| data.encode(out));
        }
    }

    /// Has something encrypted behind `sealed`; `room` is what it takes as a rule.
    fn write(
        &mut self,
        sealed: &mut Vec<u8>,
        room: usize,
        mut encrypt: impl FnMut(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), Unsealable> {
        for _ in 0..STATES {
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(&mut self.partial);
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let (at, mut room) = (sealed.len(), room);
                    loop {
                        sealed.resize(at + room, 0);
                        match encrypt(&mut traffic, &mut sealed[at..]) {
                            Ok(n) => {
                                sealed.truncate(at + n);
                                return Ok(());
                            }
                            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size }))
                                if required_size > room =>
                            {
                                room = required_size;
                            }
                            Err(_) => {
                                sealed.truncate(at);
                                return Err(Unsealable);
                            }
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => append(sealed, |out| data.encode(out)),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                // What came after the end of the session.
                Ok(ConnectionState::ReadTraffic(mut traffic)) => while traffic.next_record().is_some() {},
                Ok(ConnectionState::PeerClosed) => {}
                Ok(_) | Err(_) => return Err(Unsealable),
            }
            self.partial.drain(..discard);
        }
        Err(Unsealable)
    }
}

/// Appends what `encode` makes, which says how much room it takes.
fn append(out: &mut Vec<u8>, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    let at = out.len();
    let mut room = 0;
    loop {
        out.resize(at + room, 0);
        match encode(&mut out[at..]) {
            Ok(n) => return out.truncate(at + n),
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size }))
                if required_size > room =>
            {
                room = required_size;
            }
            Err(_) => return out.truncate(at),
        }
    }
}
