//! `access`: what third-party MQTT tools may read and write, and what they log in with.
//!
//! A password is in the answer that makes it, and nowhere else; of a certificate the hub never sees the key.

use std::sync::Arc;

use argon2::{Argon2, PasswordHasher as _};
use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::{
    Api,
    problem::Refusal,
    query::{Body, Params, json},
    rights::Caller,
    shapes::{self, Page},
};
use crate::{
    admit, clock,
    core::{
        identity::{Access, Change},
        registry::Intent,
    },
};

/// The body of a POST.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = NewAccessBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    name: String,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
    #[serde(default)]
    csr: Option<String>,
}

/// `POST access {name, read, write, csr?}`: 201 with a password, or with a certificate for the key of the request.
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let wanted: Wanted = json(&headers, &body)?;
    let made = make(&api, &caller, wanted);
    api.keys.create(&headers, &caller, &[b"access", &body], made).await
}

async fn make(api: &Arc<Api>, caller: &Caller, wanted: Wanted) -> Result<shapes::NewAccess, Refusal> {
    let Wanted { name, read, write, csr } = wanted;
    if name == admit::TOOL {
        return Err(Refusal::at("/name", "this is the hub's own reader; choose another name"));
    }
    // Refused before a slow hash is made, and before a certificate is signed.
    if api.hub.with_identities(|identities| identities.access.contains_key(&name)) {
        return Err(Refusal::Conflict(format!("there is access {name:?} already; remove it first")));
    }
    let mut access = Access {
        name: name.clone(),
        read,
        write,
        password: None,
        key: None,
        created_ms: api.hub.clock().now().wall_ms,
        created_by: caller.name.clone(),
    };
    access.check()?;
    let mut made = shapes::NewAccess { username: name.clone(), ..shapes::NewAccess::default() };
    match csr {
        Some(csr) => {
            let issued = api.query(move |api| Ok(api.config.pki.issue_access(&csr, &name)?)).await?;
            access.key = Some(issued.key);
            made.certificate = Some(issued.pem);
            made.not_after_ms = Some(issued.not_after_ms);
            made.ca = Some(api.config.pki.ca_pem());
        }
        None => {
            let password = URL_SAFE_NO_PAD.encode(clock::random::<24>());
            let plain = password.clone();
            access.password = Some(api.query(move |_| hash(&plain)).await?);
            made.password = Some(password);
        }
    }
    api.hub.intend(&caller.by(), Intent::Identity(Change::PutAccess(access))).await?;
    Ok(made)
}

/// Argon2id with the library's own parameters (OWASP's first choice: 19 MiB, two passes), as a PHC string.
fn hash(password: &str) -> Result<String, Refusal> {
    let hashed = Argon2::default().hash_password(password.as_bytes());
    Ok(hashed
        .map_err(|error| Refusal::Internal(format!("a password cannot be hashed: {error}")))?
        .to_string())
}

/// `GET access?limit=&cursor=`: by name.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    Ok(Json(read(&api, params.text("cursor").unwrap_or_default(), params.limit()?)).into_response())
}

/// A page of the tools with access, by name, after one of them.
pub(crate) fn read(api: &Api, after: &str, limit: usize) -> Page<shapes::Access> {
    let (items, more) = api.hub.with_identities(|identities| {
        let mut rest = identities.access.values().filter(|access| access.name.as_str() > after);
        let items: Vec<_> = rest.by_ref().take(limit).map(shown).collect();
        (items, rest.next().is_some())
    });
    let next = items.last().filter(|_| more).map(|access| access.name.clone());
    Page { items, next }
}

fn shown(access: &Access) -> shapes::Access {
    shapes::Access {
        name: access.name.clone(),
        by: if access.key.is_some() { "certificate" } else { "password" }.to_owned(),
        read: access.read.clone(),
        write: access.write.clone(),
        created_ms: access.created_ms,
        created_by: access.created_by.clone(),
    }
}

/// `DELETE access/{name}`: cuts its sessions too.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.hub.intend(&caller.by(), Intent::Identity(Change::RemoveAccess(name))).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
