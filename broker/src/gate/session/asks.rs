//! What a client asks for: publishes, subscriptions and their end, judged by the policy and answered in its version.
//!
//! A node's subscriptions are five at most and live here; a tool's are in `tool`.

use std::time::Instant;

use crate::{
    gate::{
        encode::{self, code},
        session::{Effects, Party, Say, Session},
        wire::{Ask, Publish, Version},
    },
    policy::{self, Denial, DownFilter},
    router::pipe::Parcel,
    stats::Reason,
};

impl Session {
    /// MQTT 3.1.1 has no way to refuse a publish but to close (§3.3.5); an acknowledgement of what is thrown away
    /// would be a lie. MQTT 5 says it in the PUBACK; at QoS 0 it is counted and dropped.
    pub(super) fn publish(&mut self, publish: &Publish<'_>, out: &mut Effects) {
        if publish.alias {
            return self.fail(Reason::NotOffered, code::ALIAS, out);
        }
        let judged = match &mut self.party {
            Party::Node(node) => policy::node_publish(node, publish.topic, publish.qos, publish.retain),
            Party::Tool(tool) => match tool.publish(publish) {
                Ok(saying) => {
                    out.say = Some(Say { saying, id: (publish.qos > 0).then_some(publish.id) });
                    return;
                }
                Err(denial) => Err(denial),
            },
        };
        match judged {
            Ok(topic) => {
                out.publish.push(Parcel::new(topic, publish.topic, publish.payload, publish.qos));
                if publish.qos > 0 {
                    encode::puback(&mut out.write, self.version, publish.id, 0);
                }
            }
            Err(Denial::Qos) => self.fail(Reason::Qos, code::QOS, out),
            Err(Denial::Retain) => self.fail(Reason::Retain, code::RETAIN, out),
            Err(denial @ (Denial::Form | Denial::NotYours | Denial::Shared)) => {
                let refusal = if denial == Denial::Form { code::TOPIC_NAME } else { code::NOT_AUTHORIZED };
                match (self.version, publish.qos) {
                    (Version::V4, _) => self.end(Reason::PublishDenied, out),
                    (Version::V5, 0) => out.notes.push(Reason::PublishDenied),
                    (Version::V5, _) => {
                        out.notes.push(Reason::PublishDenied);
                        encode::puback(&mut out.write, self.version, publish.id, refusal);
                    }
                }
            }
        }
    }

    pub(super) fn subscribe(
        &mut self,
        id: u16,
        asks: &[Ask<'_>],
        identifier: Option<u32>,
        now: Instant,
        out: &mut Effects,
    ) {
        let node = match &mut self.party {
            Party::Node(_) if identifier.is_some() => {
                return self.fail(Reason::NotOffered, code::SUBSCRIPTION_ID, out);
            }
            Party::Node(node) => node,
            Party::Tool(tool) => {
                if !tool.subscribe(self.version, id, asks, identifier, now, out) {
                    self.fail(Reason::FilterLimit, code::QUOTA, out);
                }
                return;
            }
        };
        let mut codes = Vec::with_capacity(asks.len());
        for ask in asks {
            codes.push(match (policy::node_subscribe(node, ask.filter), self.version) {
                (Ok(down), _) => {
                    let granted = ask.qos.min(1);
                    self.granted[down.index()] = Some(granted);
                    granted
                }
                (Err(denial), version) => {
                    out.notes.push(Reason::SubscribeDenied);
                    refused_filter(version, denial)
                }
            });
        }
        encode::suback(&mut out.write, self.version, 0x90, id, &codes);
    }

    pub(super) fn unsubscribe(&mut self, id: u16, filters: &[&str], out: &mut Effects) {
        let node = match &mut self.party {
            Party::Node(node) => node,
            Party::Tool(tool) => return tool.unsubscribe(self.version, id, filters, out),
        };
        let mut codes = Vec::with_capacity(filters.len());
        for filter in filters {
            let held = policy::node_subscribe(node, filter)
                .is_ok_and(|down| self.granted[down.index()].take().is_some());
            codes.push(if held { 0 } else { code::NO_SUBSCRIPTION });
        }
        let codes = if self.version == Version::V5 { &codes[..] } else { &[] };
        encode::suback(&mut out.write, self.version, 0xB0, id, codes);
    }

    /// The best QoS of those of a node's subscriptions that a message is for.
    pub(super) fn granted_qos(&self, parcel: &Parcel) -> Option<u8> {
        let fleet_schemas::Topic::Down(_, down) = parcel.topic else { return None };
        let of = |filter: DownFilter| self.granted[filter.index()];
        of(DownFilter::Tree).max(of(DownFilter::Level)).max(of(DownFilter::One(down)))
    }
}

/// The code of a filter that is refused.
pub(super) fn refused_filter(version: Version, denial: Denial) -> u8 {
    match (version, denial) {
        (Version::V4, _) => 0x80,
        (Version::V5, Denial::Shared) => code::SHARED,
        (Version::V5, Denial::Form) => code::FILTER,
        (Version::V5, Denial::NotYours | Denial::Retain | Denial::Qos) => code::NOT_AUTHORIZED,
    }
}
