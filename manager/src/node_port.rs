//! HTTPS for nodes: enrolment, renewal, what to trust (`fleet_schemas::enrol`), and updates (`fleet_schemas::update`).
//!
//! Decides nothing: [`crate::core::identity`] says who may have a certificate, [`crate::pki`] makes it, and it is given
//! away after it was committed. So whatever was interrupted is answered the same when it is asked again.

mod files;
mod refusal;
pub mod serve;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State, rejection::BytesRejection},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use fleet_schemas::{
    NodeId,
    enrol::{
        BODY_BYTES, ENROL_PATH, Enrol, Issued, Pending, RENEW_PATH, RefusalCode, Renew, TRUST_PATH, Trust,
    },
    update,
};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::time;

pub use serve::{Limits, Peer};

use crate::{
    attempts::{Attempts, Failed},
    clock,
    core::{
        identity::{Ask, Certificate, Change, Enrolled, Refused, Shown},
        registry::Intent,
        time::millis,
    },
    hub::Hub,
    pki::{self, Pki, Who},
};
use refusal::Refusal;

/// Connections: a fleet that comes at once queues up, each for well under a second.
pub const LIMITS: Limits = Limits {
    connections: 1_024,
    per_address: 512,
    head: Duration::from_secs(10),
    life: Some(Duration::from_secs(60)),
};
/// How long one request may take, its body included.
const REQUEST: Duration = Duration::from_secs(15);
/// When a machine that waits for approval asks again, in seconds.
const RETRY_S: u64 = 10;
/// How long after its end a certificate may still be renewed: a board that was in a drawer.
const GRACE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Shortest time between two certificates of one node: each is a row of the trail for good.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

/// What the routes share.
struct Port {
    hub: Hub,
    pki: Arc<Pki>,
    mqtts_port: u16,
    attempts: Mutex<Attempts>,
}

/// The routes, to be served with [`serve::serve`]. `mqtts_port` is where nodes find MQTT over TLS; `field` has the paths of
/// agents in the field.
pub fn router(hub: Hub, pki: Arc<Pki>, mqtts_port: u16, field: Router) -> Router {
    let port = Arc::new(Port { hub, pki, mqtts_port, attempts: Mutex::default() });
    Router::new()
        .route(ENROL_PATH, post(enrol))
        .route(RENEW_PATH, post(renew))
        .route(TRUST_PATH, get(trust))
        .route(&format!("{}/{{file}}", update::TUF_PATH), get(files::metadata))
        .route(&format!("{}/{{digest}}", update::ARTIFACT_PATH), get(files::artifact))
        .route("/livez", get(async || "ok\n"))
        .fallback(async || no_such(StatusCode::NOT_FOUND, "there is no such path on the port for nodes"))
        .method_not_allowed_fallback(async || {
            no_such(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(port)
        .merge(field)
        .layer(middleware::from_fn(deadline))
}

/// The paths of agents in the field alone, to be served with [`serve::serve_plain`]. Nothing else is said without TLS.
pub fn legacy(field: Router) -> Router {
    field
        .route("/livez", get(async || "ok\n"))
        .fallback(async || no_such(StatusCode::NOT_FOUND, "there is no such path without TLS"))
        .method_not_allowed_fallback(async || {
            no_such(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(middleware::from_fn(deadline))
}

fn no_such(status: StatusCode, detail: &str) -> Refusal {
    Refusal { status, ..Refusal::new(RefusalCode::BadRequest, detail) }
}

async fn deadline(request: Request, next: Next) -> Response {
    match time::timeout(REQUEST, next.run(request)).await {
        Ok(response) => response,
        Err(_) => no_such(StatusCode::REQUEST_TIMEOUT, "the request took too long").into_response(),
    }
}

async fn trust(State(port): State<Arc<Port>>) -> Json<Trust> {
    Json(port.trust())
}

async fn enrol(
    State(port): State<Arc<Port>>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let answer = port.enrol(read(body)?).await;
    match &answer {
        Ok(Answer::Issued(issued)) => {
            tracing::info!(node = %issued.node, peer = %peer.address, "a node joined");
        }
        Ok(Answer::Pending(pending)) => {
            tracing::info!(node = %pending.node, peer = %peer.address, "a machine waits for approval");
        }
        Err(refusal) => port.turned_away(&peer, refusal)?,
    }
    Ok(match answer? {
        Answer::Issued(issued) => Json(issued).into_response(),
        Answer::Pending(pending) => (StatusCode::ACCEPTED, Json(pending)).into_response(),
    })
}

async fn renew(
    State(port): State<Arc<Port>>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Issued>, Refusal> {
    let stranger = "renewing needs the node's certificate in the TLS handshake; join with a token instead";
    let stranger = || Refusal::new(RefusalCode::BadCertificate, stranger);
    let certificate = peer.certificate.as_deref().and_then(pki::Peer::read).ok_or_else(stranger)?;
    let Who::Node(node) = certificate.who else { return Err(stranger()) };
    let answer = port.renew(&node, certificate.shown, read(body)?).await;
    match &answer {
        Ok(_) => tracing::info!(%node, peer = %peer.address, "a node renewed its certificate"),
        Err(refusal) => {
            tracing::info!(%node, peer = %peer.address, detail = refusal.detail, "a certificate is not renewed");
        }
    }
    answer.map(Json)
}

enum Answer {
    Issued(Issued),
    Pending(Pending),
}

impl Port {
    async fn enrol(&self, enrol: Enrol) -> Result<Answer, Refusal> {
        let request = pki::Request::read(&enrol.csr)?;
        let secret = fleet_schemas::enrol::secret_bytes(&enrol.secret)
            .ok_or_else(|| Refusal::from(Refused::TokenSecret(enrol.id.clone())))?;
        let secret = Sha256::digest(secret).into();
        let mut ask = Ask { token: enrol.id, secret, node: enrol.node, key: request.key, certificate: None };
        match self.look(&ask)? {
            Enrolled::Same(node, certificate) => return Ok(Answer::Issued(self.issued(node, &certificate))),
            Enrolled::Wait { node, new: false } => return Ok(pending(node)),
            Enrolled::Wait { node, new: true } => ask.node = node,
            Enrolled::Issue(node) => {
                ask.certificate = Some(self.pki.issue_node(&request, &node)?);
                ask.node = node;
            }
        }
        let by = format!("node {}", ask.node);
        self.hub.intend(&by, Intent::Identity(Change::Enrol(ask.clone()))).await?;
        // What was committed, which another request of the same machine may have done.
        match self.look(&ask)? {
            Enrolled::Same(node, certificate) => Ok(Answer::Issued(self.issued(node, &certificate))),
            Enrolled::Wait { node, .. } => Ok(pending(node)),
            Enrolled::Issue(_) => Err(changed()),
        }
    }

    /// Logs a refusal, and slows down whoever collects them with tokens that are none. A good token is never slowed.
    fn turned_away(&self, peer: &Peer, refusal: &Refusal) -> Result<(), Refusal> {
        let guessed = match refusal.code {
            RefusalCode::TokenUnknown | RefusalCode::TokenSecret => true,
            RefusalCode::TokenExpired
            | RefusalCode::TokenUsed
            | RefusalCode::NodeExists
            | RefusalCode::Revoked
            | RefusalCode::BadRequest
            | RefusalCode::BadCertificate
            | RefusalCode::TooLate
            | RefusalCode::ClockInDoubt
            | RefusalCode::Unavailable
            | RefusalCode::Other => false,
        };
        if guessed {
            let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            if let Failed::TooMany { retry_s } = attempts.fail(peer.address.ip(), clock::mono()) {
                return Err(Refusal::too_many("too many tokens that are none; come back later", retry_s));
            }
        }
        tracing::info!(peer = %peer.address, detail = refusal.detail, "a machine may not join");
        Ok(())
    }

    fn look(&self, ask: &Ask) -> Result<Enrolled, Refused> {
        let now_ms = self.hub.clock().now().wall_ms;
        self.hub.with_fleet(|fleet| self.hub.with_identities(|known| known.enrol(fleet, ask, now_ms)))
    }

    async fn renew(&self, node: &NodeId, shown: Shown, renew: Renew) -> Result<Issued, Refusal> {
        let request = pki::Request::read(&renew.csr)?;
        let key = request.key;
        let (now, in_doubt) = self.hub.clock().read();
        let now_ms = now.wall_ms;
        let look = || self.hub.with_identities(|known| known.renewal(node, &shown, &key, now_ms));
        if key == shown.key {
            let why = "a renewal needs a new key; this one is the old certificate's";
            return Err(Refusal::new(RefusalCode::BadRequest, why));
        }
        if let Some(given) = look()? {
            return Ok(self.issued(node.clone(), &given));
        }
        if in_doubt {
            return Err(pki::Error::ClockInDoubt.into());
        }
        if shown.not_after_ms.saturating_add(millis(GRACE)) <= now_ms {
            let why =
                format!("the certificate of node {node} ended more than a year ago; join again with a token");
            return Err(Refusal::new(RefusalCode::TooLate, why));
        }
        let signer = self.pki.signer();
        let made_ms = self.hub.with_identities(|known| {
            let newest = known.enrolments.get(node)?.certificate.as_ref()?;
            (newest.ca == signer.0).then_some(newest.issued_ms)
        });
        // One that lies ahead was made while the hub's clock was wrong: nobody waits for that.
        if made_ms.is_some_and(|made_ms| (0..millis(RENEW_AGAIN)).contains(&now_ms.saturating_sub(made_ms))) {
            let why = "this node was given a certificate a moment ago; use that, or wait a moment";
            return Err(Refusal::too_many(why, RENEW_AGAIN.as_secs()));
        }
        let certificate = self.pki.issue_node(&request, node)?;
        let change = Change::Renew { node: node.clone(), shown, key, certificate };
        self.hub.intend(&format!("node {node}"), Intent::Identity(change)).await?;
        let given = look()?.ok_or_else(changed)?;
        Ok(self.issued(node.clone(), &given))
    }

    /// What nodes are to trust: the CAs, and the first root of the releases.
    fn trust(&self) -> Trust {
        let root = self.hub.releases().and_then(|releases| releases.first_root());
        // A larger one would not fit beside the rest: a node asks for it when it is told to update.
        let releases_root = root.filter(|root| root.len() <= BODY_BYTES / 2);
        Trust { releases_root, ..self.pki.trust() }
    }

    fn issued(&self, node: NodeId, certificate: &Certificate) -> Issued {
        Issued {
            node,
            certificate: pki::pem(&certificate.der),
            not_after_ms: certificate.not_after_ms,
            trust: self.trust(),
            mqtts_port: self.mqtts_port,
        }
    }
}

fn pending(node: NodeId) -> Answer {
    Answer::Pending(Pending { node, retry_s: RETRY_S })
}

fn changed() -> Refusal {
    Refusal::new(RefusalCode::Unavailable, "an operator changed this node meanwhile; ask again")
}

fn read<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Refusal> {
    let body = body.map_err(|rejected| Refusal {
        status: rejected.status(),
        ..Refusal::new(RefusalCode::BadRequest, rejected.body_text())
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        // Where it is wrong, not what stands there: that may be a secret.
        let why = format!(
            "the body is not what this path takes (line {}, column {})",
            error.line(),
            error.column()
        );
        Refusal::new(RefusalCode::BadRequest, why)
    })
}
