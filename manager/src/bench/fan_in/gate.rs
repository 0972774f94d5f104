//! Our own gate and router in this process, with the consumer's link, and a third-party subscriber if one is wanted.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use fleet_broker::{Broker, Credentials, Directory, Grants, Identity, Mqtts, PublishLimit, Refusal, Verdict};
use fleet_schemas::{NodeId, topic::ALL_UP};

use super::{
    super::{Error, certificates::Certificates},
    Config,
    load::{Door, SUBSCRIBER, Subscriber, Tally, measure},
};
use crate::{clock::HubClock, pki::Pki};

/// Messages that the consumer takes at once, and how long it waits for them.
const TAKE: (usize, Duration) = (1_000, Duration::from_millis(20));
/// What may wait for a subscriber that reads too slowly, instead of ending its session: all of a run.
const BACKLOG_BYTES: usize = 4 * 1024 * 1024 * 1024;

/// Everybody is the node that its client id says, but for the subscriber.
struct Everybody;

impl Directory for Everybody {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        if credentials.client_id == SUBSCRIBER {
            let grants = Grants { read: vec![ALL_UP.to_owned()], write: Vec::new() };
            return Ok(Identity::Tool { name: SUBSCRIBER.to_owned(), grants }).into();
        }
        NodeId::parse(credentials.client_id).map(Identity::Node).map_err(|_| Refusal::ClientId).into()
    }
}

/// Messages a second at the consumer; and at a third-party subscriber when there is one and it was not cut off for
/// reading too slowly. `pki` is the folder of keys when publishers come over TLS.
pub(super) async fn run(
    config: &Config,
    pki: Option<&Path>,
    subscriber: bool,
) -> Result<(f64, Option<f64>), Error> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let unlimited = PublishLimit { messages_per_s: 0, bytes_per_s: 0, ..PublishLimit::default() };
    let mut settings =
        fleet_broker::Config { mqtt: any, publish_limit: unlimited, ..fleet_broker::Config::default() };
    settings.tool_budget_bytes = BACKLOG_BYTES;
    if let Some(folder) = pki {
        let clock = Arc::new(HubClock::default());
        let pki = Pki::open(folder, &[], Arc::new(move || clock.read()));
        let keys = pki.map_err(|error| Error::Certificate(error.to_string()))?.keys();
        settings.mqtts = Some(Mqtts { addr: any, keys });
    }
    let (broker, mut link) =
        Broker::start(settings, Arc::new(Everybody)).map_err(|error| Error::Child(error.to_string()))?;
    let tally = Arc::new(Tally::default());
    let counting = tally.clone();
    let consumer = thread::spawn(move || {
        let mut messages = Vec::new();
        while link.recv(&mut messages, TAKE.0, TAKE.1).is_ok() {
            counting.add(messages.len());
            link.taken(&messages);
            messages.clear();
        }
    });
    let rates = rates(config, &broker, pki, subscriber, &tally).await;
    let joined = tokio::task::spawn_blocking(move || {
        broker.shutdown();
        consumer.join()
    });
    match joined.await {
        Ok(Ok(())) => rates,
        Ok(Err(_)) | Err(_) => Err(Error::Child("the consumer's thread panicked".to_owned())),
    }
}

async fn rates(
    config: &Config,
    broker: &Broker,
    pki: Option<&Path>,
    subscriber: bool,
    tally: &Arc<Tally>,
) -> Result<(f64, Option<f64>), Error> {
    let certificates = pki.map(Certificates::of).transpose()?.map(Arc::new);
    let address = broker.mqtts_addr().unwrap_or_else(|| broker.mqtt_addr());
    let door = Door { address, certificates };
    let subscriber = subscriber.then(|| Subscriber::start(broker.mqtt_addr(), 0));
    let mut tallies = vec![tally];
    tallies.extend(subscriber.as_ref().map(|subscriber| &subscriber.tally));
    let rates = measure(config, &door, &tallies).await;
    let stayed = match subscriber {
        None => false,
        Some(subscriber) => match subscriber.end().await {
            Ok(()) => true,
            // The gate's own rule for those that do not keep up: a finding, no failure.
            Err(Error::Session { .. }) => false,
            Err(error) => return Err(error),
        },
    };
    let rates = rates?;
    Ok((rates[0], rates.get(1).copied().filter(|_| stayed)))
}
