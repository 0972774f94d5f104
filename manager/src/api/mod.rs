//! The hub's HTTP API for operators and tools: the resources of DESIGN section 7.
//!
//! Reads the registry and the stores through the [`Hub`], and changes them only by intents, which answer after
//! commit. Owns limits on requests; every refusal is a problem (RFC 9457).

pub mod any;
mod devices;
mod events;
mod feed;
mod groups;
mod guard;
mod idempotency;
mod ledger;
mod nodes;
mod patch;
mod problem;
mod query;
pub mod selector;
pub mod shapes;
mod status;
mod stream;
mod telemetry;
mod view;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post, put},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, broadcast::error::RecvError, watch},
};

use crate::{
    hub::Hub,
    metrics::{Exporter, catalogue},
};

/// Largest body of a change, in bytes.
const BODY_BYTES: usize = 256 * 1024;
/// Largest CSV import, in bytes: 10,000 nodes with all their labels.
const IMPORT_BYTES: usize = 16 * 1024 * 1024;
/// Store queries at once: each may hold a large answer.
const QUERIES: usize = 8;
/// Time that open requests have after a stop.
const DRAIN: Duration = Duration::from_secs(5);

/// What the routes share.
struct Api {
    hub: Hub,
    exporter: Arc<Exporter>,
    devices: devices::Devices,
    keys: idempotency::Keys,
    /// Changes with `If-Match` are alone between their look and their commit.
    changes: tokio::sync::RwLock<()>,
    requests: Semaphore,
    queries: Semaphore,
    streams: Semaphore,
    feeds: Arc<Semaphore>,
    request_seconds: metrics::Histogram,
    streams_cut: metrics::Counter,
    loopback: bool,
    stopping: watch::Receiver<bool>,
}

/// Serves the API on a bound listener until `stop`; then open requests have five seconds, streams end at once.
///
/// # Errors
/// What the listener says.
pub async fn serve(
    listener: TcpListener,
    hub: Hub,
    exporter: Arc<Exporter>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let loopback = listener.local_addr()?.ip().is_loopback();
    let (stopped, stopping) = watch::channel(false);
    let api = Arc::new(Api::new(hub, exporter, loopback, stopping.clone()));
    let follower = tokio::spawn(follow_devices(api.clone()));
    let graceful = async move {
        stop.await;
        stopped.send_replace(true);
    };
    let service = router(api).into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(listener, service).with_graceful_shutdown(graceful);
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
    follower.abort();
    result
}

impl Api {
    fn new(hub: Hub, exporter: Arc<Exporter>, loopback: bool, stopping: watch::Receiver<bool>) -> Self {
        Self {
            request_seconds: exporter.histogram(&catalogue::HTTP_SECONDS),
            streams_cut: exporter.counter(&catalogue::STREAMS_CUT, &[]),
            hub,
            exporter,
            devices: devices::Devices::default(),
            keys: idempotency::Keys::default(),
            changes: tokio::sync::RwLock::default(),
            requests: Semaphore::new(guard::REQUESTS),
            queries: Semaphore::new(QUERIES),
            streams: Semaphore::new(stream::STREAMS),
            feeds: Arc::new(Semaphore::new(feed::FEEDS)),
            loopback,
            stopping,
        }
    }

    /// Runs a store query on a thread that may block; waits for its turn.
    async fn query<R: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Self) -> Result<R, problem::Refusal> + Send + 'static,
    ) -> Result<R, problem::Refusal> {
        let api = self.clone();
        let permit = self.queries.acquire().await;
        let asked = tokio::task::spawn_blocking(move || ask(&api)).await?;
        drop(permit);
        asked
    }
}

fn router(api: Arc<Api>) -> Router {
    let import = post(nodes::import).layer(DefaultBodyLimit::max(IMPORT_BYTES));
    let resources = Router::new()
        .route("/nodes", get(nodes::list))
        .route("/nodes/import", import)
        .route("/nodes/{id}", get(nodes::get).patch(nodes::patch))
        .route("/nodes/{id}/telemetry", get(telemetry::get))
        .route("/nodes/{id}/events", get(events::of_node))
        .route("/nodes/{id}/devices", get(nodes::devices))
        .route("/events", get(events::list))
        .route("/groups", get(groups::list))
        .route("/groups/{name}", put(groups::put).get(groups::get).delete(groups::remove))
        .route("/ledger", get(ledger::get))
        .route("/status", get(status::status))
        .route("/stream", get(stream::get))
        .route("/feed", get(feed::get));
    Router::new()
        .nest("/api/v1", resources)
        .route("/livez", get(status::livez))
        .route("/readyz", get(status::readyz))
        .route("/version", get(status::version))
        .route("/metrics", get(status::metrics))
        .fallback(async || {
            problem::Refusal::NotFound("there is no such path; the API is below /api/v1".to_owned())
        })
        .method_not_allowed_fallback(async || problem::Refusal::Method)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .with_state(api)
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
