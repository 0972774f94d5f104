//! The edge API as gRPC: `schemas/edge.proto`, on the same listeners, with the same checks and answers as the REST API.
//!
//! Puts messages into the form of the REST API and its answers into messages; decides nothing of its own.

pub(crate) mod codec;
mod commands;
mod config;
mod devices;
mod local;
mod state;
mod write;

use std::{convert::Infallible, pin::Pin, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
};
use futures_util::stream::{self, Stream};
use tonic::{Status, codegen::Service, server::NamedService};
use tonic_health::{ServingStatus, server::HealthReporter};

use self::pb::{
    commands_server::CommandsServer, config_server::ConfigServer, devices_server::DevicesServer,
    events_server::EventsServer, ledger_server::LedgerServer, local_server::LocalServer,
    outbox_server::OutboxServer, status_server::StatusServer, telemetry_server::TelemetryServer,
};
use super::{BODY_BYTES, http::Api, problem::Problem};

/// The messages and services of `schemas/edge.proto`, for servers and clients.
#[expect(missing_docs, clippy::allow_attributes, reason = "generated; edge.proto explains it")]
pub mod pb {
    tonic::include_proto!("fleet.edge.v1");
}

/// What the reflection service tells.
pub(super) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/edge.bin"));

/// The services of [`pb`].
#[derive(Clone)]
struct Edge(Arc<Api>);

/// Answers that come one after the other.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Something that answers more than once.
trait Answering: Sized + Send + 'static {
    type Answer: Send + 'static;

    /// The next answer; `None` when there is none any more. An error is the last one.
    fn next(&mut self) -> impl Future<Output = Option<Result<Self::Answer, Status>>> + Send;

    fn answers(self) -> Answers<Self::Answer> {
        Box::pin(stream::unfold(Some(self), async |state| {
            let mut state = state?;
            let answer = state.next().await?;
            let goes_on = answer.is_ok().then_some(state);
            Some((answer, goes_on))
        }))
    }
}

/// The services, as routes.
pub(super) async fn routes(api: &Arc<Api>) -> Router<Arc<Api>> {
    let health = HealthReporter::new();
    let edge = || Edge(api.clone());
    let mut router = Router::new();
    macro_rules! serve {
        ($($server:ident),*) => {$(
            health.set_service_status(<$server<Edge> as NamedService>::NAME, ServingStatus::Serving).await;
            router = add(router, $server::new(edge()).max_decoding_message_size(BODY_BYTES));
        )*};
    }
    serve!(
        TelemetryServer,
        EventsServer,
        CommandsServer,
        LocalServer,
        ConfigServer,
        DevicesServer,
        OutboxServer,
        LedgerServer,
        StatusServer
    );
    let health = tonic_health::server::HealthService::from_health_reporter(health);
    let health = tonic_health::pb::health_server::HealthServer::new(health);
    router = add(router, health.max_decoding_message_size(BODY_BYTES));
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Many tools know only the older of the two.
    let newer = described().build_v1().expect("our descriptors are valid");
    router = add(router, newer.max_decoding_message_size(BODY_BYTES));
    let older = described().build_v1alpha().expect("our descriptors are valid");
    router = add(router, older.max_decoding_message_size(BODY_BYTES));
    let api = api.clone();
    router.layer(from_fn(move |request, next| seat(api.clone(), request, next)))
}

fn add<S>(router: Router<Arc<Api>>, service: S) -> Router<Arc<Api>>
where
    S: Service<Request, Response = Response<tonic::body::Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    router.route_service(&format!("/{}/{{*call}}", S::NAME), service)
}

/// Every call that brings a message gets a place and a deadline.
async fn seat(api: Arc<Api>, request: Request, next: Next) -> Response<Body> {
    match api.places.seat(request, api.config.read).await {
        Ok(request) => next.run(request).await,
        Err(status) => status.into_http(),
    }
}

/// Reads JSON in a text; empty is none.
fn json_in(field: &str, text: &str) -> Result<Option<serde_json::Value>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let value = serde_json::from_str(text);
    value.map(Some).map_err(|error| Problem::field(field, format!("this is not JSON: {error}")))
}

/// Text that may be absent: proto has no difference between that and empty.
fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
