//! The hub's HTTP API for operators and tools: the resources of DESIGN section 7.
//!
//! Reads the registry and the stores through the [`Hub`], and changes them only by intents, which answer after
//! commit. Owns limits on requests; every refusal is a problem (RFC 9457).

pub(crate) mod access;
pub(crate) mod alerts;
pub mod any;
mod artifacts;
pub(crate) mod audit;
mod backup;
pub(crate) mod commands;
pub(crate) mod config;
mod devices;
mod enrolment;
pub(crate) mod events;
mod feed;
pub(crate) mod field_tokens;
mod genes;
mod groups;
pub(crate) mod guard;
mod idempotency;
pub(crate) mod join_tokens;
pub(crate) mod ledger;
mod log_level;
pub(crate) mod nodes;
mod openapi;
pub(crate) mod operators;
mod patch;
mod pki;
pub(crate) mod problem;
mod prom;
pub(crate) mod query;
pub(crate) mod releases;
pub mod rights;
pub(crate) mod rollouts;
mod rules;
pub mod shapes;
pub(crate) mod sites;
mod status;
pub(crate) mod stream;
mod telemetry;
pub mod token;
mod uses;
mod view;
pub(crate) mod why;

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    handler::Handler as _,
    http::{HeaderMap, Method},
    middleware,
    response::IntoResponse as _,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, broadcast::error::RecvError, watch},
};

pub use crate::core::selector;
use crate::{
    attempts::Attempts,
    console::{self, Sessions},
    consume::{Shared, StoredEvent},
    core::{fleet::Node, identity::Role, zones},
    hub::Hub,
    metrics::{Exporter, catalogue},
    node_port::serve as tls,
    pki::Pki,
};
use rights::{Needs, Right, Rights, Routes};

/// Largest body of a change, in bytes.
const BODY_BYTES: usize = 256 * 1024;
/// Largest CSV import, in bytes: 10,000 nodes with all their labels.
const IMPORT_BYTES: usize = 16 * 1024 * 1024;
/// Store queries at once: each may hold a large answer.
const QUERIES: usize = 8;
/// What TLS connections may take: dashboards and the command line keep a few each, also when nothing is asked.
const CONNECTIONS: tls::Limits =
    tls::Limits { connections: 2_048, per_address: 512, head: Duration::from_secs(60), life: None };
/// Time that open requests have after a stop.
const DRAIN: Duration = Duration::from_secs(5);

/// How the API is served.
#[derive(Clone)]
pub struct Config {
    /// The data folder.
    pub data: PathBuf,
    /// The file of revocations.
    pub trail: PathBuf,
    /// The hub's certificates.
    pub pki: Arc<Pki>,
    /// Where the hub listens, for `status`: see [`shapes::Status::listeners`].
    pub listeners: BTreeMap<String, String>,
    /// Whether it is served over TLS, with the hub's own certificate.
    pub tls: bool,
    /// Whether programs of this machine may look without a token; for the demo.
    pub anonymous_viewer: bool,
    /// Who is logged in to the console.
    pub sessions: Arc<Sessions>,
}

/// What the routes share.
pub(crate) struct Api {
    pub(crate) config: Config,
    rights: Rights,
    attempts: Mutex<Attempts>,
    pub(crate) hub: Hub,
    exporter: Arc<Exporter>,
    devices: devices::Devices,
    keys: idempotency::Keys,
    uses: uses::Uses,
    /// Changes with `If-Match` are alone between their look and their commit.
    changes: tokio::sync::RwLock<()>,
    requests: Semaphore,
    strangers: Semaphore,
    queries: Arc<Semaphore>,
    streams: Semaphore,
    feeds: Arc<Semaphore>,
    backups: Arc<Semaphore>,
    request_seconds: metrics::Histogram,
    streams_cut: metrics::Counter,
    loopback: bool,
    stopping: watch::Receiver<bool>,
    /// What open pages of the console are told.
    pub(crate) live: console::live::Live,
}

/// Serves the API on a bound listener until `stop`; then open requests have five seconds, streams end at once.
///
/// # Errors
/// What the listener says.
pub async fn serve(
    listener: TcpListener,
    hub: Hub,
    exporter: Arc<Exporter>,
    config: Config,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let loopback = listener.local_addr()?.ip().is_loopback();
    let (stopped, stopping) = watch::channel(false);
    let (routes, table) = routes().build();
    let api = Arc::new(Api::new(hub, exporter, config, Rights::new(table), loopback, stopping.clone()));
    let followers =
        [tokio::spawn(follow_devices(api.clone())), tokio::spawn(console::live::gather(api.clone()))];
    let graceful = async move {
        stop.await;
        stopped.send_replace(true);
    };
    let keys = api.config.tls.then(|| api.config.pki.keys());
    let router = router(routes, api);
    let serving = async {
        match keys {
            Some(keys) => {
                tls::serve(listener, keys, router, CONNECTIONS, graceful).await;
                Ok(())
            }
            None => {
                let service = router.into_make_service_with_connect_info::<SocketAddr>();
                axum::serve(listener, service).with_graceful_shutdown(graceful).await
            }
        }
    };
    let mut late = stopping;
    let deadline = async move {
        // An error means that the sender is gone, which is a stop too.
        let _ = late.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(DRAIN).await;
    };
    let result = tokio::select! {
        result = serving => result,
        () = deadline => Ok(()),
    };
    followers.iter().for_each(tokio::task::JoinHandle::abort);
    result
}

impl Api {
    fn new(
        hub: Hub,
        exporter: Arc<Exporter>,
        config: Config,
        rights: Rights,
        loopback: bool,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        for reason in ["no_token", "bad_token", "role", "too_many"] {
            // Told from the start, so that a rate can be taken of the first.
            exporter.counter(&catalogue::HTTP_DENIED, &[reason]).increment(0);
        }
        for outcome in ["answered", "refused"] {
            exporter.counter(&catalogue::HISTORY_READS, &[outcome]).increment(0);
        }
        for total in [&catalogue::HISTORY_NODES, &catalogue::HISTORY_SAMPLES] {
            exporter.counter(total, &[]).increment(0);
        }
        Self {
            config,
            rights,
            attempts: Mutex::default(),
            request_seconds: exporter.histogram(&catalogue::HTTP_SECONDS),
            streams_cut: exporter.counter(&catalogue::STREAMS_CUT, &[]),
            hub,
            exporter,
            devices: devices::Devices::default(),
            keys: idempotency::Keys::default(),
            uses: uses::Uses::default(),
            changes: tokio::sync::RwLock::default(),
            requests: Semaphore::new(guard::REQUESTS),
            strangers: Semaphore::new(guard::STRANGERS),
            queries: Arc::new(Semaphore::new(QUERIES)),
            streams: Semaphore::new(stream::STREAMS),
            feeds: Arc::new(Semaphore::new(feed::FEEDS)),
            backups: Arc::new(Semaphore::new(backup::BACKUPS)),
            loopback,
            stopping,
            live: console::live::Live::default(),
        }
    }

    /// Becomes true when the API stops.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// Runs a store query on a thread that may block; waits for its turn. One whose asker has gone goes on to its end, and
    /// keeps its place until then.
    pub(crate) async fn query<R: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Self) -> Result<R, problem::Refusal> + Send + 'static,
    ) -> Result<R, problem::Refusal> {
        let api = self.clone();
        let permit = Arc::clone(&self.queries).acquire_owned().await;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            ask(&api)
        })
        .await?
    }
}

/// Every route and what it needs.
#[must_use]
pub fn table() -> Vec<Right> {
    routes().build().1
}

fn routes() -> Routes {
    let [viewer, operator, admin] = [Role::Viewer, Role::Operator, Role::Admin].map(Needs::Role);
    let import = nodes::import.layer(DefaultBodyLimit::max(IMPORT_BYTES));
    let metadata = releases::put.layer(DefaultBodyLimit::max(releases::BODY_BYTES));
    let rollout = rollouts::create.layer(DefaultBodyLimit::max(rollouts::BODY_BYTES));
    let backup = backup::create.layer(DefaultBodyLimit::max(backup::BODY_BYTES));
    let command = commands::create.layer(DefaultBodyLimit::max(commands::BODY_BYTES));
    console::routes(Routes::new())
        .on(Needs::Nothing, Method::GET, "/livez", status::livez)
        .on(Needs::Nothing, Method::GET, "/readyz", status::readyz)
        .on(Needs::Nothing, Method::GET, "/version", status::version)
        .on(Needs::Nothing, Method::GET, "/openapi.json", openapi::get)
        .on(Needs::Here, Method::GET, "/metrics", status::metrics)
        .on(viewer, Method::GET, "/api/v1/status", status::status)
        .on(viewer, Method::GET, "/api/v1/nodes", nodes::list)
        .on(operator, Method::POST, "/api/v1/nodes/import", import)
        .on(viewer, Method::GET, "/api/v1/nodes/{id}", nodes::get)
        .on(operator, Method::PATCH, "/api/v1/nodes/{id}", nodes::patch)
        .on(viewer, Method::GET, "/api/v1/nodes/{id}/telemetry", telemetry::get)
        .on(viewer, Method::GET, "/api/v1/nodes/{id}/events", events::of_node)
        .on(viewer, Method::GET, "/api/v1/nodes/{id}/devices", nodes::devices)
        .on(viewer, Method::GET, "/api/v1/nodes/{id}/commands", commands::of_node)
        .on(viewer, Method::GET, "/api/v1/nodes/{id}/why", why::of_node)
        .on(viewer, Method::GET, "/api/v1/commands", commands::list)
        .on(operator, Method::POST, "/api/v1/commands", command)
        .on(viewer, Method::GET, "/api/v1/commands/{id}", commands::get)
        .on(viewer, Method::GET, "/api/v1/commands/{id}/why", why::of_command)
        .on(operator, Method::POST, "/api/v1/commands/{id}/cancel", commands::cancel)
        .on(operator, Method::POST, "/api/v1/commands/{id}/approve-held", commands::approve)
        .on(viewer, Method::GET, "/api/v1/events", events::list)
        .on(viewer, Method::GET, "/api/v1/nodes/{id}/config", config::of_node)
        .on(operator, Method::POST, "/api/v1/nodes/{id}/config/retry", config::retry)
        .on(viewer, Method::GET, "/api/v1/config", config::list)
        .on(viewer, Method::GET, "/api/v1/config/fleet", config::get)
        .on(operator, Method::PUT, "/api/v1/config/fleet", config::put)
        .on(operator, Method::PATCH, "/api/v1/config/fleet", config::patch)
        .on(operator, Method::DELETE, "/api/v1/config/fleet", config::remove)
        .on(operator, Method::POST, "/api/v1/config/fleet/rollback", config::rollback)
        .on(viewer, Method::GET, "/api/v1/config/fleet/revisions", config::revisions)
        .on(viewer, Method::GET, "/api/v1/config/fleet/revisions/{revision}", config::revision)
        .on(viewer, Method::GET, "/api/v1/config/{kind}/{name}", config::get)
        .on(operator, Method::PUT, "/api/v1/config/{kind}/{name}", config::put)
        .on(operator, Method::PATCH, "/api/v1/config/{kind}/{name}", config::patch)
        .on(operator, Method::DELETE, "/api/v1/config/{kind}/{name}", config::remove)
        .on(operator, Method::POST, "/api/v1/config/{kind}/{name}/rollback", config::rollback)
        .on(viewer, Method::GET, "/api/v1/config/{kind}/{name}/revisions", config::revisions)
        .on(viewer, Method::GET, "/api/v1/config/{kind}/{name}/revisions/{revision}", config::revision)
        .on(viewer, Method::GET, "/api/v1/config-schema", config::schema)
        .on(operator, Method::PUT, "/api/v1/config-schema", config::put_schema)
        .on(operator, Method::DELETE, "/api/v1/config-schema", config::remove_schema)
        .on(viewer, Method::GET, "/api/v1/config-schema/revisions", config::schema_revisions)
        .on(viewer, Method::GET, "/api/v1/groups", groups::list)
        .on(viewer, Method::GET, "/api/v1/groups/{name}", groups::get)
        .on(operator, Method::PUT, "/api/v1/groups/{name}", groups::put)
        .on(operator, Method::DELETE, "/api/v1/groups/{name}", groups::remove)
        .on(viewer, Method::GET, "/api/v1/sites", sites::list)
        .on(viewer, Method::GET, "/api/v1/sites/{name}", sites::get)
        .on(operator, Method::PUT, "/api/v1/sites/{name}", sites::put)
        .on(operator, Method::DELETE, "/api/v1/sites/{name}", sites::remove)
        .on(viewer, Method::GET, "/api/v1/ledger", ledger::get)
        .on(viewer, Method::GET, "/api/v1/stream", stream::get)
        .on(viewer, Method::GET, "/api/v1/whoami", operators::whoami)
        .on(admin, Method::POST, "/api/v1/nodes/{id}/approve", enrolment::approve)
        .on(admin, Method::POST, "/api/v1/nodes/{id}/revoke", enrolment::revoke)
        .on(admin, Method::DELETE, "/api/v1/nodes/{id}", enrolment::remove)
        .on(admin, Method::GET, "/api/v1/log-level", log_level::get)
        .on(admin, Method::PUT, "/api/v1/log-level", log_level::put)
        .on(admin, Method::GET, "/api/v1/join-tokens", join_tokens::list)
        .on(admin, Method::POST, "/api/v1/join-tokens", join_tokens::create)
        .on(admin, Method::DELETE, "/api/v1/join-tokens/{id}", join_tokens::remove)
        .on(admin, Method::GET, "/api/v1/field-tokens", field_tokens::list)
        .on(admin, Method::POST, "/api/v1/field-tokens", field_tokens::create)
        .on(admin, Method::DELETE, "/api/v1/field-tokens/{id}", field_tokens::remove)
        .on(viewer, Method::GET, "/api/v1/genes", genes::list)
        .on(viewer, Method::GET, "/api/v1/genes/{digest}", genes::get)
        .on(admin, Method::GET, "/api/v1/operators", operators::list)
        .on(admin, Method::POST, "/api/v1/operators", operators::create)
        .on(admin, Method::DELETE, "/api/v1/operators/{name}", operators::remove)
        .on(admin, Method::GET, "/api/v1/access", access::list)
        .on(admin, Method::POST, "/api/v1/access", access::create)
        .on(admin, Method::DELETE, "/api/v1/access/{name}", access::remove)
        .on(admin, Method::GET, "/api/v1/audit", audit::list)
        .on(admin, Method::POST, "/api/v1/backup", backup)
        .on(admin, Method::GET, "/api/v1/pki", pki::get)
        .on(admin, Method::POST, "/api/v1/pki/rotate", pki::rotate)
        .on(viewer, Method::GET, "/api/v1/pki/ca.pem", pki::ca)
        .on(viewer, Method::GET, "/api/v1/alerts", alerts::list)
        .on(viewer, Method::GET, "/api/v1/alerts/{id}", alerts::get)
        .on(operator, Method::POST, "/api/v1/alerts/{id}/acknowledge", alerts::acknowledge)
        .on(operator, Method::POST, "/api/v1/alerts/{id}/silence", alerts::silence)
        .on(viewer, Method::GET, "/api/v1/silences", alerts::silences)
        .on(operator, Method::POST, "/api/v1/silences", alerts::create_silence)
        .on(operator, Method::DELETE, "/api/v1/silences/{id}", alerts::remove_silence)
        .on(viewer, Method::GET, "/api/v1/receivers", alerts::receivers)
        .on(operator, Method::POST, "/api/v1/receivers/{name}/test", alerts::test_receiver)
        .on(viewer, Method::GET, "/api/v1/rules", rules::list)
        .on(operator, Method::PUT, "/api/v1/rules", rules::put)
        .on(operator, Method::PUT, "/api/v1/rules/kits/{name}", rules::put_kit)
        .on(operator, Method::DELETE, "/api/v1/rules/kits/{name}", rules::remove_kit)
        .on(viewer, Method::GET, "/api/v1/artifacts", artifacts::list)
        .on(operator, Method::POST, "/api/v1/artifacts", artifacts::begin)
        .on(viewer, Method::GET, "/api/v1/artifacts/{digest}", artifacts::get)
        .on(operator, Method::DELETE, "/api/v1/artifacts/{digest}", artifacts::remove)
        .on(viewer, Method::GET, "/api/v1/artifacts/{digest}/upload", artifacts::stands)
        .on(operator, Method::PATCH, "/api/v1/artifacts/{digest}/upload", artifacts::append)
        .on(viewer, Method::GET, "/api/v1/releases", releases::list)
        .on(viewer, Method::GET, "/api/v1/releases/metadata", releases::metadata)
        .on(operator, Method::PUT, "/api/v1/releases/metadata", metadata)
        .on(viewer, Method::GET, "/api/v1/releases/metadata/{file}", releases::file)
        .on(viewer, Method::GET, "/api/v1/rollouts", rollouts::list)
        .on(operator, Method::POST, "/api/v1/rollouts", rollout)
        .on(viewer, Method::GET, "/api/v1/rollouts/{id}", rollouts::get)
        .on(viewer, Method::GET, "/api/v1/rollouts/{id}/why", why::of_rollout)
        .on(operator, Method::POST, "/api/v1/rollouts/{id}/pause", rollouts::pause)
        .on(operator, Method::POST, "/api/v1/rollouts/{id}/resume", rollouts::resume)
        .on(operator, Method::POST, "/api/v1/rollouts/{id}/abort", rollouts::abort)
        .on(operator, Method::POST, "/api/v1/rollouts/{id}/rollback", rollouts::rollback)
        .on(operator, Method::POST, "/api/v1/rollouts/{id}/approve", rollouts::approve)
        .on(viewer, Method::GET, "/api/v1/feed", feed::get)
        .on(viewer, Method::POST, "/api/v1/prom/read", prom::read)
}

fn router(routes: Router<Arc<Api>>, api: Arc<Api>) -> Router {
    routes
        .fallback(async |headers: HeaderMap| {
            let refusal =
                problem::Refusal::NotFound("there is no such path; the API is below /api/v1".to_owned());
            if console::reads_pages(&headers) { console::refused(refusal) } else { refusal.into_response() }
        })
        .method_not_allowed_fallback(async || problem::Refusal::Method)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .with_state(api)
}

/// A node as `GET nodes/{id}` shows it, for whoever else tells of it.
pub(crate) fn node_shown(shared: &Shared, node: &Node, devices_count: usize) -> shapes::Node {
    let stands = enrolment::shown(shared.identities().enrolments.get(&node.record.id));
    let tz = zones::of_node(&shared.fleet(), node);
    view::node(node, tz, devices_count, stands)
}

/// An event as `GET events` shows it.
pub(crate) fn event_shown(stored: &StoredEvent) -> shapes::Event {
    events::event(stored)
}

async fn follow_devices(api: Arc<Api>) {
    let mut feed = api.hub.feed();
    loop {
        match feed.recv().await {
            Ok(item) => api.devices.take(&item),
            Err(RecvError::Lagged(_)) => api.devices.forget(),
            Err(RecvError::Closed) => return,
        }
    }
}
