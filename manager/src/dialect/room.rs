//! What the routes share: who is served, their stand-ins, and how often somebody may ask.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, StatusCode, header};
use fleet_broker::Voice;
use fleet_schemas::{NodeId, enrol::JoinToken};
use sha2::{Digest as _, Sha256};

use super::{
    family::Family,
    pace::Pace,
    refusal::Refusal,
    stand_in::{Shared, StandIn},
};
use crate::{
    api::{field_tokens, token},
    attempts::{Attempts, Failed},
    clock,
    core::{
        identity::{Brought, Change, NotServed, Served},
        registry::Intent,
    },
    hub::Hub,
    node_port::Peer,
};

/// How often one token may ask: an agent that sends each of its readings by itself.
const BY_TOKEN: (Duration, u32) = (Duration::from_millis(50), 200);
/// How often one address may: a site behind one address.
const BY_ADDRESS: (Duration, u32) = (Duration::from_millis(2), 5_000);

/// Drop-in for agents in the field.
pub struct Room {
    pub(super) hub: Hub,
    pub(super) voice: Voice,
    pub(super) mqtts_port: Option<u16>,
    // The boot under which stand-ins speak: this life of the hub.
    boot: [u8; 8],
    stand_ins: Mutex<BTreeMap<NodeId, Shared>>,
    attempts: Mutex<Attempts>,
    tokens: Mutex<Pace<String>>,
    addresses: Mutex<Pace<IpAddr>>,
}

/// Who asks.
pub(super) enum Asks {
    /// A node.
    Node(Known),
    /// An operator, who may look.
    Operator,
}

/// A node that is served.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub node: NodeId,
    pub token: String,
    pub expires_ms: Option<i64>,
}

impl Room {
    /// To be made before the hub hears anybody: acks come back to it.
    #[must_use]
    pub fn new(hub: &Hub, voice: Voice, mqtts_port: Option<u16>) -> Arc<Self> {
        let room = Arc::new(Self {
            hub: hub.clone(),
            voice,
            mqtts_port,
            boot: clock::random(),
            stand_ins: Mutex::default(),
            attempts: Mutex::default(),
            tokens: Mutex::new(Pace::new(BY_TOKEN.0, BY_TOKEN.1)),
            addresses: Mutex::new(Pace::new(BY_ADDRESS.0, BY_ADDRESS.1)),
        });
        let hears = Arc::downgrade(&room);
        hub.set_ear(Arc::new(move |node, payload| {
            let stand_in = hears.upgrade().and_then(|room| lock(&room.stand_ins).get(node).cloned());
            stand_in.is_some_and(|stand_in| stand_in.hear(payload))
        }));
        room
    }

    /// The stand-in of a node that is served: so there are as many as there are tokens, at most.
    pub(super) fn stand_in(&self, node: &NodeId, family: Family) -> Shared {
        let mut stand_ins = lock(&self.stand_ins);
        let new = || Arc::new(StandIn::new(node.clone(), self.boot, family));
        stand_ins.entry(node.clone()).or_insert_with(new).clone()
    }

    /// Stand-ins there are.
    pub(super) fn stand_ins(&self) -> Vec<(NodeId, Shared)> {
        lock(&self.stand_ins).iter().map(|(node, stand_in)| (node.clone(), stand_in.clone())).collect()
    }

    /// Whether this address may ask at all now.
    pub(super) fn pace(&self, peer: &Peer) -> Result<(), Refusal> {
        let address = peer.address.ip().to_canonical();
        let slow =
            |retry_s| Refusal::too_many("too many requests from this address; come back later", retry_s);
        lock(&self.addresses).take(address, clock::mono()).map_err(slow)
    }

    /// The node that a token serves already, if any: how a request is read may hang on it.
    pub(super) fn bound(&self, headers: &HeaderMap) -> Option<NodeId> {
        let brought = brought(bearer(headers)?)?;
        let now_ms = self.hub.clock().now().wall_ms;
        let served = self
            .hub
            .with_fleet(|fleet| self.hub.with_identities(|known| known.serve(fleet, &brought, None, now_ms)));
        match served {
            Ok(Served::Same(node) | Served::First(node)) => Some(node),
            Err(_) => None,
        }
    }

    /// Who asks for the list of nodes.
    pub(super) fn looks(&self, headers: &HeaderMap, peer: &Peer) -> Result<Asks, Refusal> {
        let text = bearer(headers).ok_or_else(no_token)?;
        let now_ms = self.hub.clock().now().wall_ms;
        let hash = token::hash(text);
        let operator = self.hub.with_identities(|known| known.operator(&hash, now_ms).is_some());
        // An operator's token opens more than this: it is not for the open network.
        if operator && !peer.encrypted && !peer.address.ip().is_loopback() {
            let why = "an operator's token is not taken without TLS; ask the port for nodes over HTTPS";
            return Err(Refusal::new(StatusCode::FORBIDDEN, why));
        }
        if operator {
            return Ok(Asks::Operator);
        }
        let brought = brought(text).ok_or_else(|| self.turned_away(peer, NotServed::Unknown))?;
        let served = self
            .hub
            .with_fleet(|fleet| self.hub.with_identities(|known| known.serve(fleet, &brought, None, now_ms)));
        match served.map_err(|refused| self.turned_away(peer, refused))? {
            Served::Same(node) | Served::First(node) => {
                Ok(Asks::Node(Known { node, token: text.to_owned(), expires_ms: None }))
            }
        }
    }

    /// Serves a node: finds whose the token is, and records whom it serves from now on.
    pub(super) async fn serve(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        asked: Option<&NodeId>,
    ) -> Result<Known, Refusal> {
        let text = bearer(headers).ok_or_else(no_token)?;
        let brought = brought(text).ok_or_else(|| self.turned_away(peer, NotServed::Unknown))?;
        let now_ms = self.hub.clock().now().wall_ms;
        let look = || {
            self.hub.with_fleet(|fleet| {
                self.hub.with_identities(|known| {
                    let expires_ms = known.field.get(&brought.id).and_then(|token| token.expires_ms);
                    Ok((known.serve(fleet, &brought, asked, now_ms)?, expires_ms))
                })
            })
        };
        let (served, expires_ms) = look().map_err(|refused: NotServed| self.turned_away(peer, refused))?;
        let slow = |retry_s| Refusal::too_many("too many requests with this token; come back later", retry_s);
        lock(&self.tokens).take(brought.id.clone(), clock::mono()).map_err(slow)?;
        let node = match served {
            Served::Same(node) => node,
            Served::First(node) => {
                let change = Change::Serve(brought.clone(), node.clone());
                self.hub.intend(&format!("node {node}"), Intent::Identity(change)).await?;
                tracing::info!(%node, token = brought.id, peer = %peer.address, "a field token serves a node");
                node
            }
        };
        Ok(Known { node, token: text.to_owned(), expires_ms })
    }

    /// Slows down whoever collects refusals with tokens that are none.
    fn turned_away(&self, peer: &Peer, refused: NotServed) -> Refusal {
        if refused.is_guess()
            && let Failed::TooMany { retry_s } = lock(&self.attempts).fail(peer.address.ip(), clock::mono())
        {
            return Refusal::too_many("too many tokens that are none; come back later", retry_s);
        }
        tracing::info!(peer = %peer.address, %refused, "a field agent is not served");
        refused.into()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_token() -> Refusal {
    let why = "this needs a token: `Authorization: Bearer TOKEN`, one of `fleet field-token create`";
    Refusal::new(StatusCode::UNAUTHORIZED, why)
}

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= 256).then_some(token)
}

/// A token's text, taken apart.
fn brought(text: &str) -> Option<Brought> {
    if let Some(rest) = text.strip_prefix(field_tokens::PREFIX) {
        let (id, _) = rest.strip_prefix('.')?.split_once('.')?;
        return Some(Brought { id: id.to_owned(), text: token::hash(text), join: None });
    }
    let join: JoinToken = text.parse().ok()?;
    Some(Brought { id: join.id, text: token::hash(text), join: Some(Sha256::digest(join.secret).into()) })
}
