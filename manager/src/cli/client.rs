//! The CLI's HTTP client: asks a hub, and turns every failure into a [`Failure`].
//!
//! Must not print and must not know verbs.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, http::request};
use reqwest::{Method, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    exit::Failure,
    sse,
    target::Target,
    trust,
    wire::{Reply, Wire, WireError},
};
use crate::api::shapes::{Page, Problem};

/// Time for one answer: a ledger recount reads every row.
const ANSWER: Duration = Duration::from_secs(120);
/// Items of one page.
const PAGE: usize = 500;
/// Most items of a list that are collected: the fleet's upper end, five times.
const ITEMS: usize = 500_000;

/// An open stream of server-sent events.
pub(super) struct Events {
    client: Client,
    reply: Reply,
    reader: sse::Reader,
    ready: VecDeque<sse::Message>,
}

/// A body that is still coming.
pub(super) struct Pieces {
    client: Client,
    reply: Reply,
}

/// A client of one hub.
#[derive(Debug, Clone)]
pub(super) struct Client {
    target: Target,
    wire: Wire,
}

impl Client {
    /// A client of a hub.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the CA that is to be trusted is none.
    pub(super) fn new(target: Target) -> Result<Self, Failure> {
        let rules = match &target.trust {
            Some(trust) if target.base.scheme() == "https" => {
                let rules = trust::rules(trust);
                Some(rules.map_err(|error| Failure::Usage(format!("the CA to trust is no use: {error}")))?)
            }
            Some(_) | None => None,
        };
        let wire = Wire::new(&target.base, rules);
        Ok(Self { target, wire })
    }

    /// Where the hub is.
    #[must_use]
    pub(super) fn base(&self) -> &str {
        self.target.base.as_str().trim_end_matches('/')
    }

    /// The host that is dialled.
    #[must_use]
    pub(super) fn host(&self) -> &str {
        self.target.base.host_str().unwrap_or_default()
    }

    /// GET, decoded from JSON.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let request = self.request(Method::GET, path, query)?;
        decode(&self.answer(request, Bytes::new()).await?.1)
    }

    /// GET as text, with an `Accept` of its own.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn text(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        accept: &str,
    ) -> Result<String, Failure> {
        let request = self.request(Method::GET, path, query)?.header(header::ACCEPT, accept);
        let (_, bytes) = self.answer(request, Bytes::new()).await?;
        String::from_utf8(bytes).map_err(|_| Failure::Failed("the hub's answer is not text".to_owned()))
    }

    /// All items of a list, page by page.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        most: Option<usize>,
    ) -> Result<Vec<T>, Failure> {
        let most = most.unwrap_or(ITEMS).min(ITEMS);
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let limit = PAGE.min(most - items.len()).to_string();
            let mut query = query.to_vec();
            query.push(("limit", &limit));
            if let Some(cursor) = &cursor {
                query.push(("cursor", cursor));
            }
            let page: Page<T> = self.get(path, &query).await?;
            items.extend(page.items);
            match page.next {
                Some(next) if items.len() < most => cursor = Some(next),
                Some(_) | None => return Ok(items),
            }
        }
    }

    /// A request with a JSON body (or none), its answer as JSON (null when empty).
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn change(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        self.change_with(method, path, &[], body, None).await
    }

    /// The same with a query; given again with the same key, the hub does it only once.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn change_with(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Result<Value, Failure> {
        let merge = method == Method::PATCH;
        let mut request = self.request(method, path, query)?;
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if body.is_some() {
            let kind = if merge { "application/merge-patch+json" } else { "application/json" };
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let (status, bytes) = self.answer(request, body).await?;
        if status == StatusCode::NO_CONTENT { Ok(Value::Null) } else { decode(&bytes) }
    }

    /// POST of a file.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn upload<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        kind: &str,
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        self.send_file(Method::POST, path, query, kind, body).await
    }

    /// A file in the body, by any method.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn send_file<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        kind: &str,
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        let request = self.request(method, path, query)?.header(header::CONTENT_TYPE, kind);
        decode(&self.answer(request, body.into()).await?.1)
    }

    /// More bytes of an upload, from there on; where it stands then.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn append<T: DeserializeOwned>(
        &self,
        path: &[&str],
        offset: u64,
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        let request = self
            .request(Method::PATCH, path, &[])?
            .header(header::CONTENT_TYPE, "application/offset+octet-stream")
            .header("upload-offset", offset);
        decode(&self.answer(request, body.into()).await?.1)
    }

    /// POST of JSON, answered by a stream of bytes that may take its time.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn stream(&self, path: &[&str], body: &Value) -> Result<Pieces, Failure> {
        let request = self.request(Method::POST, path, &[])?.header(header::CONTENT_TYPE, "application/json");
        let reply = self.send(request, body.to_string().into(), None).await?;
        Ok(Pieces { client: self.clone(), reply })
    }

    /// Follows a stream of server-sent events until it ends or `each` says stop.
    ///
    /// # Errors
    /// [`Failure`], also when the hub cuts the stream.
    pub(super) async fn follow(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        mut each: impl FnMut(sse::Message) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut events = self.events(path, query).await?;
        while let Some(message) = events.next().await? {
            each(message)?;
        }
        Err(Failure::Unreachable("the hub ended the stream; start again to go on".to_owned()))
    }

    /// Opens a stream of server-sent events: what happens from now on is in it.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn events(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Events, Failure> {
        let request = self.request(Method::GET, path, query)?.header(header::ACCEPT, "text/event-stream");
        let reply = self.send(request, Bytes::new(), None).await?;
        let (reader, ready) = (sse::Reader::default(), VecDeque::new());
        Ok(Events { client: self.clone(), reply, reader, ready })
    }

    fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<request::Builder, Failure> {
        let mut url = self.target.base.clone();
        url.path_segments_mut()
            .map_err(|()| {
                Failure::Usage("--hub is not an address of a hub, such as http://127.0.0.1:8080".into())
            })?
            .pop_if_empty()
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let target =
            url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
        let host = format!("{}{port}", self.host());
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, host)
            .header(header::USER_AGENT, concat!("fleet/", env!("CARGO_PKG_VERSION")));
        Ok(match &self.target.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        })
    }

    /// The status and the whole body of a request that was granted.
    async fn answer(&self, request: request::Builder, body: Bytes) -> Result<(StatusCode, Vec<u8>), Failure> {
        let reply = self.send(request, body, Some(ANSWER)).await?;
        let status = reply.status();
        Ok((status, reply.bytes(ANSWER).await.map_err(|error| self.unreachable(&error))?))
    }

    async fn send(
        &self,
        request: request::Builder,
        body: Bytes,
        within: Option<Duration>,
    ) -> Result<Reply, Failure> {
        let request = request.body(Full::new(body)).map_err(|_| {
            Failure::Usage("the token has characters that no token has; copy it again".to_owned())
        })?;
        let reply = self.wire.send(request, within).await.map_err(|error| self.unreachable(&error))?;
        let status = reply.status();
        if status.is_success() {
            return Ok(reply);
        }
        let body = reply.bytes(ANSWER).await.map_err(|error| self.unreachable(&error))?;
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
            status: status.as_u16(),
            detail: format!("the hub answered {status}"),
            ..Problem::default()
        });
        Err(Failure::of_problem(&problem))
    }

    fn unreachable(&self, error: &WireError) -> Failure {
        let base = self.base();
        match error {
            WireError::Trust(why) => {
                Failure::Unreachable(format!("the hub at {base} is not trusted: {}", trust::explain(why)))
            }
            WireError::Large => Failure::Failed(error.to_string()),
            WireError::Connect(_) | WireError::Http(_) | WireError::Slow => Failure::Unreachable(format!(
                "no hub answers at {base} ({error}); start one with `fleet hub`, or name another with --hub"
            )),
        }
    }
}

impl Pieces {
    /// A number that the hub says of what comes, in a header.
    #[must_use]
    pub(super) fn said(&self, header: &str) -> Option<u64> {
        self.reply.header(header)?.parse().ok()
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    /// [`Failure::Failed`] when the hub breaks off.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        self.reply.chunk().await.map_err(|error| {
            let base = self.client.base();
            Failure::Failed(format!("{base} broke off ({error}); the hub's log says why"))
        })
    }
}

impl Events {
    /// The next message; none when the hub has ended the stream. Safe to cancel.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn next(&mut self) -> Result<Option<sse::Message>, Failure> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Some(message));
            }
            let chunk = self.reply.chunk().await.map_err(|error| self.client.unreachable(&error))?;
            let Some(chunk) = chunk else { return Ok(None) };
            let messages = self.reader.push(&chunk);
            self.ready.extend(messages.map_err(|error| Failure::Failed(error.to_string()))?);
        }
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        Failure::Failed(format!(
            "the hub's answer is not understood ({error}); are hub and CLI of one version?"
        ))
    })
}
