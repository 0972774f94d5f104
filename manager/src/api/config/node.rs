//! `nodes/{id}/config`: what a node is to have, what it says it has, and why.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::{NodeId, config::Hash, config::Held};

use super::show;
use crate::{
    api::{
        Api,
        idempotency::Turn,
        problem::Refusal,
        query::{Body, Params, no_node, node_id},
        rights::Caller,
        shapes::config as shape,
    },
    core::{
        config::{self, Merged, Place, REVISIONS, Wanted, history},
        fleet::{Fleet, Node},
        registry::Intent,
    },
};

/// `GET nodes/{id}/config`.
pub(in crate::api) async fn get(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let id = node_id(&id)?;
    Ok(Json(shown(&api, id).await?).into_response())
}

/// `POST nodes/{id}/config/retry`: has it try again what it failed to apply.
pub(in crate::api) async fn retry(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let id = node_id(&id)?;
    if !body.is_empty() && body != "{}" {
        return Err(Refusal::BadRequest("this takes no body".to_owned()));
    }
    let claim = match api.keys.turn(&headers, &caller, &[b"config/retry", id.as_str().as_bytes()])? {
        Turn::Again(answer) => {
            return Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response());
        }
        Turn::First(claim) => claim,
    };
    api.hub.intend(&caller.by(), Intent::RetryConfig(id.clone())).await?;
    let answer = serde_json::to_vec(&shown(&api, id).await?);
    let answer = Bytes::from(answer.map_err(|error| Refusal::Internal(error.to_string()))?);
    claim.done(&answer);
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

/// A node's configuration as `GET nodes/{id}/config` shows it.
pub(crate) async fn shown(api: &Arc<Api>, id: NodeId) -> Result<shape::NodeConfig, Refusal> {
    api.query(move |api| {
        let found = api.hub.with_fleet(|fleet| fleet.known(&id).map(|node| Found::of(fleet, node)));
        let found = found.ok_or_else(|| no_node(id.as_str()))?;
        let (state, mut histories) = (api.hub.state(), history::Histories::new());
        for layer in found.place.layers() {
            let most = usize::try_from(REVISIONS).unwrap_or(usize::MAX);
            let revisions = state.revisions(Some(&layer), None, most)?;
            if !revisions.is_empty() {
                histories.insert(layer, revisions);
            }
        }
        Ok(found.shown(&histories))
    })
    .await
}

/// What the registry has of a node, copied: the store is read without it.
struct Found {
    node: Node,
    place: Place,
    merged: Merged,
    reasons: Vec<String>,
    unfit: Option<String>,
    layers: Vec<shape::LayerAt>,
}

impl Found {
    fn of(fleet: &Fleet, node: &Node) -> Self {
        let place = config::place(&fleet.config, node);
        let settings = fleet.config.settings();
        let at = |layer: config::Layer| {
            let revision = settings.current(&layer)?.number;
            Some(shape::LayerAt { layer: layer.to_string(), revision })
        };
        Self {
            merged: settings.merged(&place),
            reasons: config::why(fleet, node),
            unfit: config::unfit(fleet, node),
            layers: place.layers().filter_map(at).collect(),
            node: node.clone(),
            place,
        }
    }

    fn shown(self, histories: &history::Histories) -> shape::NodeConfig {
        let origins = history::origins(&self.merged, histories).into_iter();
        let why = origins.map(|(pointer, (layer, revision))| {
            let (layer, by) = (layer.to_string(), revision.by.clone());
            (pointer, shape::Origin { layer, revision: revision.number, by, at_ms: revision.at_ms })
        });
        let why = why.collect();
        let reported = self.node.record.config.as_deref();
        let runs = reported.and_then(|told| told.applied);
        let diff = runs.and_then(|held| {
            let is_this = config::encoded(&self.merged.doc).1 == held.hash;
            let applied = if is_this { Some(self.merged.doc.clone()) } else { None };
            let applied = applied.or_else(|| history::once(&self.place, histories, held.hash))?;
            let differences = config::differences(&applied, &self.merged.doc);
            Some(differences.iter().map(show::difference).collect())
        });
        let desired = self.node.wanted.map(|Wanted { version, hash, retry }| shape::Desired {
            version: config::version(version),
            hash: hex(&hash),
            doc: self.merged.doc.clone(),
            retry,
            unfit: self.unfit.clone(),
        });
        let failed = |told: &fleet_schemas::config::Reported| {
            let failed = told.failed.clone()?;
            Some(shape::Failed { code: failed.code, message: failed.message })
        };
        let reported = reported.map(|told| shape::Reported {
            received: told.received.map(held),
            applied: told.applied.map(held),
            failed: failed(told),
        });
        shape::NodeConfig {
            node: self.node.record.id.to_string(),
            state: config::state(&self.node).as_str().to_owned(),
            reasons: self.reasons,
            desired,
            reported,
            why,
            diff,
            layers: self.layers,
        }
    }
}

fn held(held: Held) -> shape::Held {
    shape::Held { version: config::version(held.version), hash: hex(&held.hash) }
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
