//! Query parameters and bodies, read with refusals that name what is wrong.

use std::{collections::BTreeMap, str::FromStr};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::IntoResponse as _,
};
use fleet_schemas::NodeId;

use super::problem::Refusal;

/// Items of a page unless asked otherwise.
const PAGE: usize = 100;
/// Most items of a page.
pub(crate) const PAGE_MOST: usize = 1_000;

/// The query's parameters; each may stand once.
#[derive(Debug)]
pub(crate) struct Params(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error| Refusal::BadRequest(format!("the query is not readable: {error}")))?;
        let mut params = BTreeMap::new();
        for (name, value) in pairs {
            if params.insert(name.clone(), value).is_some() {
                return Err(Refusal::query(&name, "stands twice"));
            }
        }
        Ok(Self(params))
    }
}

impl Params {
    /// Refuses parameters that the path does not know: a misspelt filter must not select everything.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Refusal> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                Err(Refusal::query(name, format!("is not known here; known are {}", known.join(", "))))
            }
        }
    }

    /// A parameter as text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A parameter, read.
    pub(crate) fn read<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<Option<T>, Refusal> {
        self.text(name)
            .map(str::parse)
            .transpose()
            .map_err(|error: T::Err| Refusal::query(name, error.to_string()))
    }

    /// `true` or `false`; absent is false.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        Ok(self.read(name)?.unwrap_or(false))
    }

    /// How many items the page may have.
    pub(crate) fn limit(&self) -> Result<usize, Refusal> {
        let limit = self.read("limit")?.unwrap_or(PAGE);
        if limit == 0 || limit > PAGE_MOST {
            return Err(Refusal::query("limit", format!("is not within 1 to {PAGE_MOST}")));
        }
        Ok(limit)
    }
}

/// A node's id out of the path; what cannot be one is not found.
pub(crate) fn node_id(text: &str) -> Result<NodeId, Refusal> {
    NodeId::parse(text).map_err(|_| no_node(text))
}

/// There is no such node.
pub(crate) fn no_node(text: &str) -> Refusal {
    Refusal::NotFound(format!("there is no node {text:?}; `fleet node ls` lists them"))
}

/// A body within its limit.
#[derive(Debug)]
pub(crate) struct Body(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| {
            let response = rejection.into_response();
            match response.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Refusal::Large("the body is too large".to_owned()),
                status => Refusal::BadRequest(format!("the body did not arrive whole ({status})")),
            }
        })
    }
}

/// A body of JSON, read; nothing at all is an empty object.
///
/// # Errors
/// [`Refusal`] that names what is wrong and where.
pub(crate) fn json<T: serde::de::DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Refusal> {
    let body = if body.is_empty() { b"{}" } else { body };
    if headers.contains_key(header::CONTENT_TYPE) || body != b"{}" {
        content_type(headers, &["application/json"])?;
    }
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Refusal::at("", error.to_string()),
        serde_json::error::Category::Io
        | serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof => Refusal::BadRequest(format!("the body is not JSON: {error}")),
    })
}

/// Refuses a body of another type than these; a browser may send none of them across origins without asking.
pub(crate) fn content_type(headers: &HeaderMap, allowed: &[&str]) -> Result<(), Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if allowed.iter().any(|allowed| essence.eq_ignore_ascii_case(allowed)) {
        return Ok(());
    }
    Err(Refusal::MediaType(format!("send the body as {}, not as {essence:?}", allowed.join(" or "))))
}
