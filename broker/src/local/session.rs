//! A device's session after CONNACK: a pure state machine of packets and time (MQTT 3.1.1 §4).
//!
//! Owns to which device the session is bound, whether it hears commands, and its keepalive. Knows no socket and no clock.

use std::time::{Duration, Instant};

use fleet_schemas::DeviceId;

use crate::{
    packets::{
        encode::{self, Forward},
        frame::FrameError,
        wire::{self, Ask, Packet, Publish, Unreadable, Version},
    },
    policy::{
        Denial,
        device::{self, Cmd, Leaf},
    },
    stats::Reason,
};

/// One opened session.
#[derive(Debug)]
pub(super) struct Session {
    device: Option<DeviceId>,
    /// Stands for the id in the tree that names nobody.
    client_id: String,
    keepalive: Duration,
    last_packet: Instant,
    hears: Option<Tree>,
}

/// In which tree it hears commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tree {
    Named,
    Old,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Effects {
    /// Bytes for the peer.
    pub(super) write: Vec<u8>,
    /// What follows for whoever listens to devices, in order.
    pub(super) words: Vec<Word>,
    /// What went wrong without ending the session.
    pub(super) notes: Vec<Reason>,
    /// The session ended; `None` for the client's own DISCONNECT.
    pub(super) end: Option<Option<Reason>>,
}

/// What a session tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// It is this device from now on.
    Bound(DeviceId),
    /// The device said something; `id` is to be acknowledged.
    Said { on: On, payload: Vec<u8>, id: Option<u16> },
    /// It hears commands, or does not any more.
    Hears(bool),
}

/// What something was said about: [`Leaf`], owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum On {
    /// One sample, of this type.
    Sensor(String),
    /// Some samples, each with its name.
    Sensors,
    /// How the device is.
    Status,
    /// What it measured before it sleeps again.
    DeepSleep,
    /// Samples, which may be of other devices.
    Batch,
}

/// SUBACK of a filter that is not granted (MQTT 3.1.1 §3.9.3).
const NOT_GRANTED: u8 = 0x80;

impl Session {
    pub(super) fn new(device: Option<DeviceId>, client_id: &str, keepalive: Duration, now: Instant) -> Self {
        Self { device, client_id: client_id.to_owned(), keepalive, last_packet: now, hears: None }
    }

    pub(super) fn device(&self) -> Option<&DeviceId> {
        self.device.as_ref()
    }

    /// A whole packet came.
    pub(super) fn handle_packet(&mut self, first: u8, body: &[u8], now: Instant, out: &mut Effects) {
        self.last_packet = now;
        let packet = match wire::decode(Version::V4, first, body) {
            Ok(packet) => packet,
            Err(Unreadable::Malformed) => return fail(Reason::Malformed, out),
            Err(Unreadable::Protocol) => return fail(Reason::Protocol, out),
        };
        match packet {
            Packet::Publish(publish) => self.publish(&publish, out),
            Packet::Subscribe { id, filters, .. } => self.subscribe(id, &filters, out),
            Packet::Unsubscribe { id, filters } => {
                let heard = self.hears;
                for filter in filters {
                    if self.hears.is_some() && self.tree(filter) == self.hears {
                        self.hears = None;
                    }
                }
                if heard.is_some() && self.hears.is_none() {
                    out.words.push(Word::Hears(false));
                }
                encode::suback(&mut out.write, Version::V4, 0xB0, id, &[]);
            }
            Packet::Ping => encode::pingresp(&mut out.write),
            Packet::Disconnect { .. } => out.end = Some(None),
            // Nothing is sent at QoS 1, so nothing is to be acknowledged.
            Packet::Connect | Packet::PubAck { .. } | Packet::Unexpected => fail(Reason::Protocol, out),
        }
    }

    /// The stream cannot be cut into packets.
    pub(super) fn handle_broken_stream(&mut self, error: FrameError, out: &mut Effects) {
        match error {
            FrameError::TooLarge => fail(Reason::TooLarge, out),
            FrameError::First | FrameError::Length => fail(Reason::Malformed, out),
        }
    }

    /// A command for the device, if it hears any.
    pub(super) fn handle_command(&self, payload: &[u8], out: &mut Vec<u8>) -> bool {
        let (Some(device), Some(tree)) = (&self.device, self.hears) else { return false };
        let topic = device::cmd_topic(device.as_str(), tree == Tree::Old);
        Forward { topic: topic.as_bytes(), payload, ..Forward::default() }.write(out, Version::V4);
        true
    }

    /// Its reading was held up by us until `now`: its silence was our doing.
    pub(super) fn handle_resume(&mut self, now: Instant) {
        self.last_packet = now;
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.last_packet + self.keepalive * 3 / 2
    }

    /// Time has come to `now`.
    pub(super) fn handle_timeout(&mut self, now: Instant, out: &mut Effects) {
        if now >= self.poll_timeout() {
            fail(Reason::KeepAlive, out);
        }
    }

    fn publish(&mut self, publish: &Publish<'_>, out: &mut Effects) {
        if publish.qos > 1 {
            return fail(Reason::Qos, out);
        }
        let place = match device::place(publish.topic) {
            Ok(place) => place,
            Err(_) => return fail(Reason::PublishDenied, out),
        };
        if !self.bind(place.id, out) {
            return fail(Reason::PublishDenied, out);
        }
        let on = match place.leaf {
            Leaf::Sensor(kind) => On::Sensor(kind.to_owned()),
            Leaf::Sensors => On::Sensors,
            Leaf::Status => On::Status,
            Leaf::DeepSleep => On::DeepSleep,
            Leaf::Batch => On::Batch,
        };
        let id = (publish.qos == 1).then_some(publish.id);
        out.words.push(Word::Said { on, payload: publish.payload.to_vec(), id });
    }

    fn subscribe(&mut self, id: u16, filters: &[Ask<'_>], out: &mut Effects) {
        let heard = self.hears.is_some();
        let mut codes = Vec::with_capacity(filters.len());
        for ask in filters {
            let whose = match device::cmd(ask.filter) {
                Ok(Cmd::Of(id)) => Ok(Some(id)),
                Ok(Cmd::Unnamed) => Ok(None),
                Err(denial) => Err(denial),
            };
            let bound = whose.and_then(|id| if self.bind(id, out) { Ok(()) } else { Err(Denial::NotYours) });
            codes.push(match bound {
                Ok(()) => {
                    self.hears = self.tree(ask.filter);
                    // Commands are said once, at QoS 0, as boards in the field take them.
                    0
                }
                Err(_) => {
                    out.notes.push(Reason::SubscribeDenied);
                    NOT_GRANTED
                }
            });
        }
        encode::suback(&mut out.write, Version::V4, 0x90, id, &codes);
        if !heard && self.hears.is_some() {
            out.words.push(Word::Hears(true));
        }
    }

    fn tree(&self, filter: &str) -> Option<Tree> {
        match device::cmd(filter) {
            Ok(Cmd::Of(_)) => Some(Tree::Named),
            Ok(Cmd::Unnamed) => Some(Tree::Old),
            Err(_) => None,
        }
    }

    /// Holds the session to one device: the one of its password, else the first it names. Says whether this is it.
    fn bind(&mut self, id: Option<&str>, out: &mut Effects) -> bool {
        match (&self.device, id) {
            (Some(device), Some(id)) => device.as_str() == id,
            (Some(_), None) => true,
            (None, id) => {
                let text = id.unwrap_or(&self.client_id);
                let Ok(device) = DeviceId::parse(text) else { return false };
                if device.is_node() || !is_level(text) {
                    return false;
                }
                out.words.push(Word::Bound(device.clone()));
                self.device = Some(device);
                true
            }
        }
    }
}

/// Whether a text can stand as one level of a topic: a client id may be anything.
fn is_level(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'+' | b'#'))
}

fn fail(reason: Reason, out: &mut Effects) {
    out.end = Some(Some(reason));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn session(device: Option<&str>, client_id: &str) -> Session {
        let device = device.map(|id| DeviceId::parse(id).unwrap());
        Session::new(device, client_id, Duration::from_secs(60), clock::now())
    }

    fn publish(session: &mut Session, topic: &str, payload: &str, qos: u8) -> Effects {
        let mut packet = vec![];
        let id = if qos > 0 { 7 } else { 0 };
        Forward { topic: topic.as_bytes(), payload: payload.as_bytes(), qos, id, ..Forward::default() }
            .write(&mut packet, Version::V4);
        let mut out = Effects::default();
        session.handle_packet(packet[0], &packet[2..], clock::now(), &mut out);
        out
    }

    fn subscribe(session: &mut Session, filter: &str) -> Effects {
        let mut body = vec![0, 9, 0, u8::try_from(filter.len()).unwrap()];
        body.extend_from_slice(filter.as_bytes());
        body.push(1);
        let mut out = Effects::default();
        session.handle_packet(0x82, &body, clock::now(), &mut out);
        out
    }

    fn bound(id: &str) -> Word {
        Word::Bound(DeviceId::parse(id).unwrap())
    }

    #[test]
    fn an_open_session_is_bound_by_its_first_topic_and_held_to_it() {
        let mut open = session(None, "ESP8266Client-1f");
        let out = publish(&mut open, "clawland/shed/status", "{}", 0);
        let said = |id| Word::Said { on: On::Status, payload: b"{}".to_vec(), id };
        assert_eq!(out.words, [bound("shed"), said(None)]);
        assert_eq!(publish(&mut open, "clawland/shed/status", "{}", 1).words, [said(Some(7))]);
        let foreign = publish(&mut open, "clawland/barn/status", "{}", 0);
        assert_eq!(foreign, Effects { end: Some(Some(Reason::PublishDenied)), ..Effects::default() });
    }

    #[test]
    fn a_password_binds_before_any_topic() {
        let mut known = session(Some("shed"), "x");
        assert_eq!(publish(&mut known, "clawland/shed/sensors/t", "1", 0).words.len(), 1);
        let foreign = publish(&mut known, "clawland/barn/sensors/t", "1", 0);
        assert_eq!(foreign.end, Some(Some(Reason::PublishDenied)));
    }

    #[test]
    fn in_the_old_tree_the_client_id_is_the_name_if_it_can_be_one() {
        let mut old = session(None, "shed");
        assert_eq!(publish(&mut old, "microclaw/status", "{}", 0).words[0], bound("shed"));
        for bad in ["", "a/b", "a b", "+", "é"] {
            let out = publish(&mut session(None, bad), "microclaw/status", "{}", 0);
            assert_eq!(out.end, Some(Some(Reason::PublishDenied)), "{bad:?}");
        }
    }

    #[test]
    fn commands_are_heard_while_subscribed_and_where_they_were_asked_for() {
        let mut shed = session(None, "c");
        let mut none = vec![];
        assert!(!shed.handle_command(b"{}", &mut none) && none.is_empty());
        let out = subscribe(&mut shed, "clawland/shed/cmd");
        assert_eq!(out.words, [bound("shed"), Word::Hears(true)]);
        assert_eq!(out.write, [0x90, 3, 0, 9, 0], "QoS 0 is granted");
        let mut packet = vec![];
        assert!(shed.handle_command(b"{}", &mut packet));
        let Ok(Packet::Publish(read)) = wire::decode(Version::V4, packet[0], &packet[2..]) else {
            panic!("{packet:x?}")
        };
        assert_eq!((read.topic, read.payload, read.qos), ("clawland/shed/cmd", &b"{}"[..], 0));
        let foreign = subscribe(&mut shed, "clawland/barn/cmd");
        assert_eq!(foreign.write, [0x90, 3, 0, 9, 0x80]);
        assert_eq!((foreign.notes, foreign.end), (vec![Reason::SubscribeDenied], None));
        let mut body = vec![0, 3, 0, 17];
        body.extend_from_slice(b"clawland/shed/cmd");
        let mut out = Effects::default();
        shed.handle_packet(0xA2, &body, clock::now(), &mut out);
        assert_eq!((out.write, out.words), (vec![0xB0, 2, 0, 3], vec![Word::Hears(false)]));
        assert!(!shed.handle_command(b"{}", &mut vec![]));
    }

    #[test]
    fn silence_of_one_and_a_half_keepalives_ends_it() {
        let start = clock::now();
        let mut shed = Session::new(None, "c", Duration::from_secs(60), start);
        let mut out = Effects::default();
        shed.handle_timeout(start + Duration::from_secs(89), &mut out);
        assert_eq!(out.end, None);
        shed.handle_packet(0xC0, &[], start + Duration::from_secs(89), &mut out);
        assert_eq!(out.write, [0xD0, 0]);
        shed.handle_timeout(start + Duration::from_secs(100), &mut out);
        assert_eq!(out.end, None);
        shed.handle_timeout(start + Duration::from_secs(179), &mut out);
        assert_eq!(out.end, Some(Some(Reason::KeepAlive)));
    }

    #[test]
    fn qos_2_and_packets_of_a_server_end_it() {
        assert_eq!(
            publish(&mut session(None, "c"), "clawland/a/status", "1", 2).end,
            Some(Some(Reason::Qos))
        );
        let mut out = Effects::default();
        session(None, "c").handle_packet(0x40, &[0, 1], clock::now(), &mut out);
        assert_eq!(out.end, Some(Some(Reason::Protocol)));
    }
}
