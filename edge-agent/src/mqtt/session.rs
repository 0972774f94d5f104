//! One connection: a fresh client, a clean session, and nothing left of it afterwards.
//!
//! rumqttc drops what it holds when a broker forgets the session, and can wedge on resuming one: so none is resumed.

use std::{sync::Arc, time::Duration};

use fleet_schemas::{SessionId, Topic, limits, topic};
use rumqttc::{
    AsyncClient, ClientError, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions,
    NetworkOptions, Outgoing as Sent, Packet, QoS, StateError, SubscribeReasonCode, TlsConfiguration,
    TlsError, Transport,
};
use rustls::ClientConfig;
use tokio::{select, sync::mpsc, time};
use tracing::{debug, info};

use super::{Account, Proof, Secret};
use crate::{
    clock::random,
    identity::{
        live::{Live, Which},
        trust::Trouble,
    },
    metrics::Metrics,
    outbox::{self, Silent},
    stop::Stop,
    uplink::Outgoing,
};

/// Messages without a PUBACK, one more than batches in flight and a birth: rumqttc must never hold back an event.
const IN_FLIGHT: u16 = 2 * limits::IN_FLIGHT_BATCHES as u16;
/// Messages that wait for the socket.
const QUEUE: usize = IN_FLIGHT as usize;
/// Time to reach the hub, and to have its CONNACK and SUBACK.
const OPEN: Duration = Duration::from_secs(10);
/// Time to say goodbye: the agent has to stop within 5 s.
const GOODBYE: Duration = Duration::from_millis(1_400);

/// Why a session did not come about or ended. The text fits after "not connected: ".
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the hub refused this node: {0}; check the node id and identity/secret in the data folder")]
    Refused(String),
    #[error(
        "the hub refused this node's certificate: {0}; it was revoked or replaced, or has ended. Ask who runs the \
         hub (`fleet node get`), or join again with a new token: fleet-agent join HUB --token T --force"
    )]
    RefusedCertificate(String),
    #[error("{0}")]
    Tls(Trouble),
    #[error("the hub has no room or is not ready")]
    Busy,
    #[error("the session makes way for one with the renewed certificate")]
    Outdated,
    #[error(
        "the hub does not let this node subscribe; check that it runs a version of Clawland Fleet that fits"
    )]
    Subscription,
    #[error("the hub did not answer within {OPEN:?}; check the address and the network")]
    Slow,
    #[error("{0}")]
    Connection(#[source] Box<ConnectionError>, bool),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("the connection's task ended badly; please report the message above")]
    Task,
    #[error(transparent)]
    Outbox(#[from] Silent),
}

impl End {
    /// Whether a session was open before.
    pub(super) fn was_open(&self) -> bool {
        matches!(self, Self::Connection(_, true))
    }
}

/// Runs one session to its end: `Ok` when the agent stops and has said goodbye.
pub(super) async fn run(
    account: &Account,
    outbox: &outbox::Handle,
    metrics: &Arc<Metrics>,
    stop: &mut Stop,
) -> Result<(), End> {
    let session = SessionId(random());
    let (topic, payload) = outbox.will(session).await?;
    let dialled = Dialled::of(&account.proof);
    let (client, mut connection) = AsyncClient::new(options(account, &dialled, &topic, payload), QUEUE);
    let mut network = NetworkOptions::new();
    // Also the limit on a write: a hub that is behind stops reading for a while, and that is no broken connection.
    network.set_connection_timeout(account.keep_alive.max(OPEN).as_secs()).set_tcp_nodelay(true);
    connection.set_network_options(network);
    let opened = select! {
        opened = time::timeout(OPEN, open(&client, &mut connection, account)) => opened.unwrap_or(Err(End::Slow)),
        () = stop.wanted() => return Ok(()),
    };
    dialled.ended_or_opened(opened.as_ref().err());
    opened?;
    info!(hub = %account.hub, %session, "connected");
    metrics.sessions.increment(1);
    metrics.connected.set(1.0);
    let mut messages = outbox.connected(session, QUEUE).await;
    // Polling has a task of its own: a connection that is not polled looks dead to the hub.
    let poll = tokio::spawn(poll(connection, outbox.clone(), account.proof.clone()));
    let mut poll = Owned(poll);
    let end = select! {
        ended = &mut poll.0 => Err(ended.unwrap_or(End::Task)),
        end = forward(&client, &mut messages) => Err(end),
        () = dialled.outdated() => {
            // No goodbye: the node is back in a moment. A proper end keeps the hub from saying the will.
            let left = async {
                client.disconnect().await?;
                let _ = (&mut poll.0).await;
                Ok::<_, ClientError>(())
            };
            let _ = time::timeout(GOODBYE, left).await;
            Err(End::Outdated)
        }
        () = stop.wanted() => {
            let last = outbox.goodbye().await;
            if !last.is_empty() {
                let said = async {
                    for message in last {
                        publish(&client, message).await?;
                    }
                    client.disconnect().await?;
                    // The hub closes when it has read everything; to close first could tear what is on its way.
                    let _ = (&mut poll.0).await;
                    Ok::<_, ClientError>(())
                };
                let _ = time::timeout(GOODBYE, said).await;
            }
            Ok(())
        }
    };
    outbox.disconnected().await;
    end
}

/// A task that ends with its owner.
struct Owned(tokio::task::JoinHandle<End>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What this session proves the node with.
enum Dialled<'a> {
    Secret(&'a Secret),
    Certificate(&'a Live, Which, Arc<ClientConfig>),
}

impl<'a> Dialled<'a> {
    fn of(proof: &'a Proof) -> Self {
        match proof {
            Proof::Secret(secret) => Self::Secret(secret),
            Proof::Certificate(live) => {
                let (which, tls) = live.dial();
                Self::Certificate(live, which, tls)
            }
        }
    }

    fn ended_or_opened(&self, end: Option<&End>) {
        match (self, end) {
            (Self::Secret(_), _) => {}
            (Self::Certificate(live, which, _), None) => live.opened(*which),
            (Self::Certificate(live, which, _), Some(end)) => {
                let refused = matches!(end, End::RefusedCertificate(_) | End::Tls(_));
                live.failed(*which, refused.then(|| end.to_string()));
            }
        }
    }

    async fn outdated(&self) {
        match self {
            Self::Secret(_) => std::future::pending().await,
            Self::Certificate(live, ..) => live.outdated().await,
        }
    }
}

fn options(account: &Account, dialled: &Dialled<'_>, will: &Topic, payload: Vec<u8>) -> MqttOptions {
    let Account { hub, node, proof: _, keep_alive } = account;
    // An IPv6 address is looked up, and named to TLS, without its brackets.
    let mut options = MqttOptions::new(node.as_str(), &hub.host, hub.port);
    match dialled {
        Dialled::Secret(secret) => options.set_credentials(node.as_str(), &secret.0),
        Dialled::Certificate(_, _, tls) => {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())))
        }
    };
    options
        .set_clean_session(true)
        .set_keep_alive(*keep_alive)
        .set_max_packet_size(limits::PACKET_BYTES, limits::PACKET_BYTES)
        .set_inflight(IN_FLIGHT)
        .set_last_will(LastWill::new(will.to_string(), payload, QoS::AtLeastOnce, false));
    options
}

/// Connects and subscribes; whole when the hub has said yes to both.
async fn open(client: &AsyncClient, connection: &mut EventLoop, account: &Account) -> Result<(), End> {
    loop {
        match connection.poll().await.map_err(|error| refused(error, false, &account.proof))? {
            Event::Incoming(Packet::ConnAck(_)) => {
                client.subscribe(topic::down_filter(&account.node), QoS::AtLeastOnce).await?;
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                let granted = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
                return if answer.return_codes.iter().all(granted) { Ok(()) } else { Err(End::Subscription) };
            }
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
    }
}

fn refused(error: ConnectionError, open: bool, proof: &Proof) -> End {
    let trouble = match &error {
        // Of a session that was open, only its end matters.
        _ if open => None,
        ConnectionError::Tls(TlsError::Io(error))
        | ConnectionError::Io(error)
        | ConnectionError::MqttState(StateError::Io(error)) => Trouble::of(error),
        _ => None,
    };
    match (error, trouble, proof) {
        (_, Some(trouble), _) => End::Tls(trouble),
        (ConnectionError::ConnectionRefused(code), None, Proof::Secret(_)) => {
            End::Refused(format!("{code:?}"))
        }
        // Not the certificate's fault: the next attempt may well succeed.
        (ConnectionError::ConnectionRefused(ConnectReturnCode::ServiceUnavailable), None, _) => End::Busy,
        (ConnectionError::ConnectionRefused(code), None, Proof::Certificate(_)) => {
            End::RefusedCertificate(format!("{code:?}"))
        }
        (ConnectionError::NetworkTimeout, None, _) => End::Slow,
        (error, None, _) => End::Connection(Box::new(error), open),
    }
}

/// Moves what the hub says to the outbox until the connection ends.
async fn poll(mut connection: EventLoop, outbox: outbox::Handle, proof: Proof) -> End {
    loop {
        match connection.poll().await {
            Ok(Event::Incoming(Packet::Publish(message))) => match Topic::parse(&message.topic) {
                Ok(Topic::Down(_, down)) => outbox.receive(down, message.payload).await,
                Ok(Topic::Up(..) | Topic::Hub(_)) | Err(_) => {
                    debug!(topic = message.topic, "the hub said something this build does not know");
                }
            },
            Ok(Event::Outgoing(Sent::Disconnect)) => debug!("disconnecting"),
            Ok(Event::Incoming(_) | Event::Outgoing(_)) => {}
            Err(error) => return refused(error, true, &proof),
        }
    }
}

/// Moves what is due to the connection until one of the two ends.
async fn forward(client: &AsyncClient, messages: &mut mpsc::Receiver<Outgoing>) -> End {
    while let Some(message) = messages.recv().await {
        if let Err(error) = publish(client, message).await {
            return error.into();
        }
    }
    End::Outbox(Silent)
}

async fn publish(client: &AsyncClient, message: Outgoing) -> Result<(), ClientError> {
    let Outgoing { topic, payload, qos } = message;
    let qos = if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    client.publish(topic.to_string(), qos, false, payload).await
}
