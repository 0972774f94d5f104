//! A lean MQTT 3.1.1 client: frames by hand, one buffer each way, many sessions on one thread.
//!
//! Made to cost a load generator as little as possible. Knows no payloads.

use std::{io, net::SocketAddr, sync::Arc};

use rustls::ClientConfig;

use super::stream::Stream;

/// What a broker says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// The answer to CONNECT: 0 is yes.
    ConnAck(u8),
    /// The answer to one filter: above 2 is no.
    SubAck(u8),
    /// A publish of ours is taken.
    PubAck,
    /// A message; `id` when it wants an answer.
    Publish {
        /// Its topic.
        topic: &'a [u8],
        /// Its packet id at QoS 1.
        id: Option<u16>,
        /// Its payload.
        payload: &'a [u8],
    },
    /// Anything else.
    Other,
}

/// Who connects, and the last word that the broker says for it.
pub(super) struct Connect<'a> {
    /// Client id and user name.
    pub(super) id: &'a str,
    /// Password.
    pub(super) password: &'a str,
    /// Seconds; 0 turns it off.
    pub(super) keep_alive: u16,
    /// Topic and payload of the will, QoS 1.
    pub(super) will: Option<(&'a str, &'a [u8])>,
    /// Certificate and trust, when it comes over TLS.
    pub(super) tls: Option<&'a Arc<ClientConfig>>,
}

fn header(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        out.push(byte | if length > 0 { 0x80 } else { 0 });
        if length == 0 {
            return;
        }
    }
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("names and wills of the benchmark are short");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// CONNECT with a clean session (MQTT 3.1.1 §3.1).
pub(super) fn connect(out: &mut Vec<u8>, it: &Connect<'_>) {
    let mut body = Vec::with_capacity(128);
    text(&mut body, b"MQTT");
    let will = if it.will.is_some() { 0b0000_1100 } else { 0 };
    body.extend_from_slice(&[4, 0b1100_0010 | will]);
    body.extend_from_slice(&it.keep_alive.to_be_bytes());
    text(&mut body, it.id.as_bytes());
    if let Some((topic, payload)) = it.will {
        text(&mut body, topic.as_bytes());
        text(&mut body, payload);
    }
    text(&mut body, it.id.as_bytes());
    text(&mut body, it.password.as_bytes());
    header(out, 0x10, body.len());
    out.extend_from_slice(&body);
}

/// SUBSCRIBE to one filter (§3.8).
pub(super) fn subscribe(out: &mut Vec<u8>, filter: &str, qos: u8) {
    header(out, 0x82, 2 + 2 + filter.len() + 1);
    out.extend_from_slice(&[0, 1]);
    text(out, filter.as_bytes());
    out.push(qos);
}

/// PUBLISH (§3.3), QoS 1 when it has an id.
pub(super) fn publish(out: &mut Vec<u8>, topic: &str, payload: &[u8], id: Option<u16>) {
    let length = 2 + topic.len() + if id.is_some() { 2 } else { 0 } + payload.len();
    header(out, if id.is_some() { 0x32 } else { 0x30 }, length);
    text(out, topic.as_bytes());
    if let Some(id) = id {
        out.extend_from_slice(&id.to_be_bytes());
    }
    out.extend_from_slice(payload);
}

/// PUBACK (§3.4).
pub(super) fn puback(out: &mut Vec<u8>, id: u16) {
    out.extend_from_slice(&[0x40, 2]);
    out.extend_from_slice(&id.to_be_bytes());
}

/// DISCONNECT (§3.14).
pub(super) fn disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xe0, 0]);
}

/// The packet at the front, and how many bytes it takes; `None` when it is not all there.
pub(super) fn front(bytes: &[u8]) -> io::Result<Option<(Packet<'_>, usize)>> {
    let mut length = 0;
    let mut at = 1;
    loop {
        let Some(byte) = bytes.get(at) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if at > 4 {
            return Err(malformed());
        }
    }
    let Some(body) = bytes.get(at..at + length) else { return Ok(None) };
    let packet = match bytes[0] >> 4 {
        2 => Packet::ConnAck(*body.get(1).ok_or_else(malformed)?),
        3 => {
            let topic = usize::from(number(body, 0)?) + 2;
            let id = if bytes[0] & 0x06 == 0 { None } else { Some(number(body, topic)?) };
            let payload = body.get(topic + if id.is_some() { 2 } else { 0 }..).ok_or_else(malformed)?;
            Packet::Publish { topic: &body[2..topic], id, payload }
        }
        4 => Packet::PubAck,
        9 => Packet::SubAck(*body.get(2).ok_or_else(malformed)?),
        _ => Packet::Other,
    };
    Ok(Some((packet, at + length)))
}

fn number(body: &[u8], at: usize) -> io::Result<u16> {
    let bytes = body.get(at..at + 2).ok_or_else(malformed)?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn malformed() -> io::Error {
    io::Error::other("the broker sent a packet that is none")
}

/// A connection with what was read and what is to be written.
pub(super) struct Socket {
    stream: Stream,
    read: Vec<u8>,
    parsed: usize,
    /// Packets to send.
    pub(super) out: Vec<u8>,
    written: usize,
}

impl Socket {
    async fn open(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let stream = Stream::open(address, tls).await?;
        Ok(Self { stream, read: Vec::new(), parsed: 0, out: Vec::new(), written: 0 })
    }

    /// Opens a connection and a session, subscribed to `filter`.
    pub(super) async fn session(
        address: SocketAddr,
        who: &Connect<'_>,
        filter: Option<(&str, u8)>,
    ) -> io::Result<Self> {
        let mut socket = Self::open(address, who.tls).await?;
        connect(&mut socket.out, who);
        if let Some((filter, qos)) = filter {
            subscribe(&mut socket.out, filter, qos);
        }
        loop {
            socket.step().await?;
            while let Some(packet) = socket.next()? {
                match packet {
                    Packet::ConnAck(0) if filter.is_none() => return Ok(socket),
                    Packet::ConnAck(0) | Packet::PubAck | Packet::Publish { .. } | Packet::Other => {}
                    Packet::ConnAck(3) => {
                        let why = "the broker has no room for the session now";
                        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
                    }
                    Packet::ConnAck(code) => {
                        return Err(io::Error::other(format!(
                            "the broker refuses the session with code {code}"
                        )));
                    }
                    Packet::SubAck(0..=2) => return Ok(socket),
                    Packet::SubAck(_) => return Err(io::Error::other("the broker refuses the subscription")),
                }
            }
        }
    }

    /// The next packet that was read whole.
    pub(super) fn next(&mut self) -> io::Result<Option<Packet<'_>>> {
        Ok(front(&self.read[self.parsed..])?.map(|(packet, length)| {
            self.parsed += length;
            packet
        }))
    }

    /// Waits until something can be read (or written, when something is to be), and does it. Safe to cancel.
    pub(super) async fn step(&mut self) -> io::Result<()> {
        self.read.drain(..std::mem::take(&mut self.parsed));
        self.flush()?;
        let ready = self.stream.ready(!self.out.is_empty()).await?;
        if ready.is_readable() {
            self.stream.read(&mut self.read)?;
        }
        if ready.is_writable() {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what the system takes now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        loop {
            // Asked with nothing left, too: TLS may have something of its own to say.
            match self.stream.write(&self.out[self.written..])? {
                0 => break,
                count => self.written += count,
            }
        }
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        Ok(())
    }

    /// Gives memory back that a quiet session does not need.
    pub(super) fn rest(&mut self) {
        self.read = self.read.split_off(std::mem::take(&mut self.parsed));
        self.read.shrink_to_fit();
        self.out.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_read_as_it_was_written_however_it_is_cut() {
        for (length, id) in [(0, None), (5, Some(7)), (200, Some(65_535)), (20_000, None)] {
            let payload = vec![3; length];
            let mut out = Vec::new();
            publish(&mut out, "a/b", &payload, id);
            for cut in [0, 1, 2, out.len() - 1] {
                assert_eq!(front(&out[..cut]).unwrap(), None);
            }
            let whole = out.len();
            out.push(9);
            let expected = Packet::Publish { topic: b"a/b", id, payload: &payload };
            assert_eq!(front(&out).unwrap(), Some((expected, whole)));
        }
    }

    #[test]
    fn answers_are_told_apart_and_nonsense_is_refused() {
        assert_eq!(front(&[0x20, 2, 0, 5]).unwrap(), Some((Packet::ConnAck(5), 4)));
        assert_eq!(front(&[0x90, 3, 0, 1, 0x80]).unwrap(), Some((Packet::SubAck(0x80), 5)));
        assert_eq!(front(&[0x40, 2, 0, 1]).unwrap(), Some((Packet::PubAck, 4)));
        assert!(front(&[0x30, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
        assert!(front(&[0x32, 3, 0, 9, 1]).is_err());
    }
}
