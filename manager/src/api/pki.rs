//! `pki`: the hub's certificates, and their change.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;

use super::{
    Api,
    problem::Refusal,
    query::{Body, Params, json},
    rights::Caller,
    shapes,
};
use crate::{core::registry::Intent, pki};

/// Nodes of the old CA that are named; the rest is counted.
const LISTED: usize = 1_000;

/// The body of a POST.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = RotateBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    what: What,
    #[serde(default)]
    finish: bool,
}

/// What to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = RotateWhat))]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    Server,
    Ca,
}

/// `GET pki`: the CAs, the server's certificate, and the nodes that a change of the CA waits for.
pub(super) async fn get(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&[])?;
    Ok(Json(status(&api)).into_response())
}

fn status(api: &Api) -> shapes::Pki {
    let pki::Status { authorities, stage, server_made_ms, server_not_after_ms, server_names } =
        api.config.pki.status();
    let waiting = api.hub.with_identities(|identities| api.config.pki.waiting(identities));
    let authority = |one: pki::AuthorityStatus| shapes::Authority {
        pin: one.pin,
        made_ms: one.made_ms,
        not_after_ms: one.not_after_ms,
        signs_clients: one.signs_clients,
        signs_server: one.signs_server,
    };
    shapes::Pki {
        stage: stage.to_owned(),
        authorities: authorities.into_iter().map(authority).collect(),
        server: shapes::ServerCertificate {
            made_ms: server_made_ms,
            not_after_ms: server_not_after_ms,
            names: server_names,
        },
        nodes_waiting_count: waiting.len(),
        nodes_waiting: waiting.iter().take(LISTED).map(ToString::to_string).collect(),
    }
}

/// `POST pki/rotate {what: server|ca, finish?}`: answers as `GET pki`.
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Wanted { what, finish } = json(&headers, &body)?;
    let done = match (what, finish) {
        (What::Server, true) => return Err(Refusal::at("/finish", "only a change of the CA is finished")),
        (What::Server, false) => "server",
        (What::Ca, false) => "ca",
        (What::Ca, true) => "ca.finish",
    };
    let rotated = async {
        // Makes keys and waits for the disk.
        api.query(move |api| {
            let pki = &api.config.pki;
            Ok(match (what, finish) {
                (What::Server, _) => pki.rotate_server(),
                (What::Ca, false) => pki.rotate_ca(),
                (What::Ca, true) => pki.finish(),
            }?)
        })
        .await?;
        api.hub.intend(&caller.by(), Intent::Rotated(done.to_owned())).await?;
        Ok(status(&api))
    };
    api.keys.once(StatusCode::OK, &headers, &caller, &[b"pki/rotate", &body], rotated).await
}

/// `GET pki/ca.pem`: the CAs to paste into tools, the one first that vouches for this hub at present.
pub(super) async fn ca(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&[])?;
    Ok(([(header::CONTENT_TYPE, "application/x-pem-file")], api.config.pki.ca_pem()).into_response())
}
