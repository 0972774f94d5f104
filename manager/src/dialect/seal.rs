//! What was said, as the payloads that an agent would send: the hub seals for nodes that cannot. Pure.
//!
//! A node has one stream for ever, whose id says that its records came without a sequence
//! ([`StreamId::unsequenced`]). Its numbers go on from the marks that the hub has committed.

use std::collections::BTreeMap;

use fleet_schemas::{
    Lane, NodeId, SessionId, StreamId, VERSION,
    batch::{Batch, Clock},
    cbor,
    command::Report,
    event::Event,
    session::{Birth, Death, Heartbeat, OutboxUse, Pending, Versions},
    telemetry::{Builder, Sample},
};
use sha2::{Digest as _, Sha256};

use super::{family::Family, said::Hello};
use crate::core::{Now, fleet::Record, mark::Mark, time::millis};

/// Most bytes of one batch of events or reports, before it is compressed: with its envelope it fits a packet.
const BODY_BYTES: usize = 160 * 1024;

/// Records of one batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Body {
    pub lane: Lane,
    pub count: u64,
    pub bytes: Vec<u8>,
}

/// Numbers and seals for one node.
#[derive(Debug, Clone)]
pub(super) struct Sealer {
    pub stream: StreamId,
    boot: [u8; 8],
    next: BTreeMap<Lane, (u64, u64)>,
}

impl Sealer {
    pub(super) fn new(node: &NodeId, boot: [u8; 8]) -> Self {
        let hash = Sha256::digest(node.as_str());
        let mut seed = [0; 8];
        seed.copy_from_slice(&hash[..8]);
        Self { stream: StreamId::unsequenced(seed), boot, next: BTreeMap::new() }
    }

    /// Goes on from what the hub has committed.
    pub(super) fn resume<'a>(&mut self, marks: impl IntoIterator<Item = (&'a (Lane, StreamId), &'a Mark)>) {
        self.next.clear();
        for ((lane, stream), mark) in marks {
            if *stream == self.stream {
                self.next.insert(*lane, (mark.seq + 1, mark.next_record));
            }
        }
    }

    /// Seals a batch; gives its number too.
    pub(super) fn seal(&mut self, body: Body, now: Now) -> (u64, Vec<u8>) {
        let (seq, first) = self.next.get(&body.lane).copied().unwrap_or((1, 1));
        self.next.insert(body.lane, (seq + 1, first + body.count));
        let batch = Batch {
            v: VERSION,
            stream: self.stream,
            seq,
            seq_to: None,
            first,
            count: body.count,
            boot: self.boot,
            up_ms: up_ms(now),
            clock: Clock::Synced,
            sealed_ms: now.wall_ms,
            lost: None,
            body: body.bytes,
        };
        (seq, cbor::encode(&batch))
    }

    /// The birth of a session. What the agent did not say is as the registry has it.
    pub(super) fn birth(
        &self,
        session: SessionId,
        (hello, known): (&Hello, &Record),
        family: Family,
        interval_ms: u64,
        now: Now,
    ) -> Birth {
        let mut machine =
            if hello.machine.is_empty() { known.machine.clone() } else { hello.machine.clone() };
        machine.insert("dialect".to_owned(), family.as_str().to_owned());
        machine.insert("sequence".to_owned(), "none: numbered at the hub".to_owned());
        let or = |said: &Option<String>, known: &str| said.clone().unwrap_or_else(|| known.to_owned());
        let kind = or(&hello.kind, &known.kind);
        Birth {
            v: VERSION,
            session,
            epoch: known.session_epoch + 1,
            boot: self.boot,
            instance: None,
            up_ms: up_ms(now),
            clock: Clock::Synced,
            time_ms: now.wall_ms,
            interval_ms,
            kind: if kind.is_empty() { family.kind().to_owned() } else { kind },
            name: hello.name.clone().or_else(|| known.own_name.clone()),
            capabilities: if hello.capabilities.is_empty() {
                known.capabilities.clone()
            } else {
                hello.capabilities.clone()
            },
            versions: Versions {
                agent: or(&hello.version, &known.versions.agent),
                firmware: hello.firmware.clone().or_else(|| known.versions.firmware.clone()),
                skills: known.versions.skills.clone(),
                running: Vec::new(),
            },
            machine,
            lanes: BTreeMap::new(),
            // Nothing is held here, and of what was on its way before nothing is known yet.
            partial: true,
            pending: Pending::default(),
            // It takes them by asking, not from the bus.
            commands: None,
            config: None,
        }
    }

    pub(super) fn heartbeat(
        &self,
        session: SessionId,
        system: BTreeMap<String, f64>,
        interval_ms: u64,
        now: Now,
    ) -> Heartbeat {
        Heartbeat {
            v: VERSION,
            session,
            boot: self.boot,
            up_ms: up_ms(now),
            clock: Clock::Synced,
            time_ms: now.wall_ms,
            interval_ms,
            system,
            lanes: BTreeMap::new(),
            partial: true,
            pending: Pending::default(),
            outbox: OutboxUse::default(),
            config: None,
        }
    }
}

pub(super) fn death(session: SessionId) -> Death {
    Death { v: VERSION, session, until_ms: None }
}

fn up_ms(now: Now) -> u64 {
    u64::try_from(millis(now.mono)).unwrap_or(0)
}

/// Events as bodies of batches.
pub(super) fn events(events: Vec<Event>) -> Vec<Body> {
    parts(Lane::Event, events)
}

/// Reports on commands as bodies of batches.
pub(super) fn reports(reports: Vec<Report>) -> Vec<Body> {
    parts(Lane::Command, reports)
}

fn parts<T: serde::Serialize>(lane: Lane, items: Vec<T>) -> Vec<Body> {
    let mut bodies = Vec::new();
    let (mut part, mut bytes) = (Vec::new(), 0);
    for item in items {
        let size = cbor::encode(&item).len();
        if bytes + size > BODY_BYTES && !part.is_empty() {
            bodies.push(body(lane, &std::mem::take(&mut part)));
            bytes = 0;
        }
        bytes += size;
        part.push(item);
    }
    if !part.is_empty() {
        bodies.push(body(lane, &part));
    }
    bodies
}

fn body<T: serde::Serialize>(lane: Lane, items: &[T]) -> Body {
    Body { lane, count: items.len() as u64, bytes: cbor::encode(&items) }
}

/// Samples as bodies of batches.
pub(super) fn samples(samples: Vec<Sample>) -> Vec<Body> {
    let mut bodies = Vec::new();
    let mut builder = Builder::default();
    let mut build = |builder: Builder| {
        let columns = builder.build();
        bodies.push(Body { lane: Lane::Telemetry, count: columns.count(), bytes: columns.encode() });
    };
    for sample in samples {
        if let Some(back) = builder.push(sample) {
            build(std::mem::take(&mut builder));
            // An empty builder takes any sample.
            builder.push(back);
        }
    }
    if !builder.is_empty() {
        build(builder);
    }
    bodies
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleet_schemas::{DeviceId, MetricName, batch::Envelope};

    use super::*;

    const NOW: Now = Now { wall_ms: 1_790_000_000_000, mono: Duration::from_secs(5) };

    fn sample(metric: &str, unit: Option<&str>) -> Sample {
        let name = |text: &str| MetricName::parse(text).unwrap();
        Sample {
            time_ms: 7,
            device: DeviceId::node(),
            metric: name(metric),
            unit: unit.map(name),
            value: 1.0,
        }
    }

    #[test]
    fn numbers_go_on_from_the_marks() {
        let node = NodeId::parse("a").unwrap();
        let mut sealer = Sealer::new(&node, [1; 8]);
        assert_eq!(sealer.stream, Sealer::new(&node, [2; 8]).stream, "the same in every life of the hub");
        let seal = |sealer: &mut Sealer| {
            let (seq, payload) = sealer.seal(samples(vec![sample("t", None)]).remove(0), NOW);
            let Ok(Envelope::Known(batch)) = Batch::decode(&payload) else { panic!("a batch") };
            assert!(batch.stream.is_unsequenced());
            (seq, batch.first)
        };
        assert_eq!([seal(&mut sealer), seal(&mut sealer)], [(1, 1), (2, 2)]);
        let mut mark = Mark::default();
        (mark.seq, mark.next_record) = (1, 9);
        let other = Mark::default();
        sealer.resume(
            [(&(Lane::Telemetry, sealer.stream), &mark), (&(Lane::Telemetry, StreamId([7; 16])), &other)]
                .map(|(key, mark)| (Box::leak(Box::new(*key)) as &_, mark)),
        );
        assert_eq!(seal(&mut sealer), (2, 9));
    }

    #[test]
    fn what_does_not_fit_one_batch_makes_more() {
        let bodies = samples(vec![sample("t", None), sample("t", Some("Cel")), sample("u", None)]);
        assert_eq!(bodies.iter().map(|body| body.count).collect::<Vec<_>>(), [1, 2]);
        let report = |bytes: usize| "x".repeat(bytes);
        let bodies = parts(Lane::Event, vec![report(100_000), report(100_000), report(10)]);
        assert_eq!(bodies.iter().map(|body| body.count).collect::<Vec<_>>(), [1, 2]);
    }
}
