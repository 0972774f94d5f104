//! The CLI's HTTP client: finds the hub, asks, and turns every failure into a [`Failure`].
//!
//! Must not print and must not know verbs.

use std::{fs, path::Path, time::Duration};

use futures_util::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{exit::Failure, sse};
use crate::api::shapes::{Page, Problem};

/// Time for a connection to a hub.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for one answer: a ledger recount reads every row.
const ANSWER: Duration = Duration::from_secs(120);
/// Items of one page.
const PAGE: usize = 500;
/// Most items of a list that are collected: the fleet's upper end, five times.
const ITEMS: usize = 500_000;
/// Largest answer, in bytes.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// A client of one hub.
#[derive(Debug, Clone)]
pub(super) struct Client {
    base: Url,
    token: Option<String>,
    http: reqwest::Client,
}

/// The addresses that a hub writes beside its data.
#[derive(Debug, serde::Deserialize)]
struct Addresses {
    http: String,
}

impl Client {
    /// A client of `hub`, or of the local hub whose addresses stand in `data`.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a bad address, [`Failure::Unreachable`] when there is no local hub.
    pub(super) fn new(hub: Option<&str>, token: Option<String>, data: &Path) -> Result<Self, Failure> {
        let base = match hub {
            Some(hub) => base(hub)?,
            None => local(data)?,
        };
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .user_agent(concat!("fleet/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::Failed(format!("cannot set up HTTP: {error}")))?;
        Ok(Self { base, token, http })
    }

    /// Where the hub is.
    #[must_use]
    pub(super) fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
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
        let response = self.send(self.request(Method::GET, path, query)?.timeout(ANSWER)).await?;
        decode(response).await
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
        let request = self.request(Method::GET, path, query)?.header(header::ACCEPT, accept).timeout(ANSWER);
        let bytes = body(self.send(request).await?).await?;
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
        let merge = method == Method::PATCH;
        let mut request = self.request(method, path, &[])?.timeout(ANSWER);
        if let Some(body) = body {
            request = request.body(body.to_string());
            let kind = if merge { "application/merge-patch+json" } else { "application/json" };
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let response = self.send(request).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        decode(response).await
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
        let request = self.request(Method::POST, path, query)?.timeout(ANSWER);
        decode(self.send(request.header(header::CONTENT_TYPE, kind).body(body)).await?).await
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
        let request = self.request(Method::GET, path, query)?.header(header::ACCEPT, "text/event-stream");
        let mut chunks = self.send(request).await?.bytes_stream();
        let mut reader = sse::Reader::default();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| self.unreachable(&error))?;
            for message in reader.push(&chunk).map_err(|error| Failure::Failed(error.to_string()))? {
                each(message)?;
            }
        }
        Err(Failure::Unreachable("the hub ended the stream; start again to go on".to_owned()))
    }

    fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<RequestBuilder, Failure> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| {
                Failure::Usage("--hub is not an address of a hub, such as http://127.0.0.1:8080".into())
            })?
            .pop_if_empty()
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url);
        Ok(match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let problem = serde_json::from_slice(&body(response).await?).unwrap_or_else(|_| Problem {
            status: status.as_u16(),
            detail: format!("the hub answered {status}"),
            ..Problem::default()
        });
        Err(Failure::of_problem(&problem))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        // The outer text names the URL again; the innermost says why.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let why = if error.is_timeout() { "no answer in time".to_owned() } else { cause.to_string() };
        Failure::Unreachable(format!(
            "no hub answers at {} ({why}); start one with `fleet hub`, or name another with --hub",
            self.base()
        ))
    }
}

/// Reads what the user calls a hub: a URL, or host and port.
fn base(text: &str) -> Result<Url, Failure> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let wrong =
        |why: String| Failure::Usage(format!("--hub {text}: {why}; an example is http://127.0.0.1:8080"));
    let url = Url::parse(&url).map_err(|error| wrong(error.to_string()))?;
    match url.scheme() {
        "http" => Ok(url),
        other => Err(wrong(format!("{other} is not spoken here"))),
    }
}

/// Finds the local hub.
fn local(data: &Path) -> Result<Url, Failure> {
    let path = data.join("addresses.json");
    let text = fs::read_to_string(&path).map_err(|error| {
        Failure::Unreachable(format!(
            "no hub has run on {} ({error}); start one with `fleet hub`, or name another with --hub or --data",
            path.display()
        ))
    })?;
    let addresses: Addresses = serde_json::from_str(&text).map_err(|error| {
        Failure::Failed(format!("{} is not readable ({error}); name the hub with --hub", path.display()))
    })?;
    base(&addresses.http)
}

async fn decode<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    let bytes = body(response).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::Failed(format!(
            "the hub's answer is not understood ({error}); are hub and CLI of one version?"
        ))
    })
}

/// The whole body, bounded.
async fn body(response: Response) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Failure::Unreachable(format!("the answer broke off: {error}")))?;
        if bytes.len() + chunk.len() > ANSWER_BYTES {
            return Err(Failure::Failed("the answer is larger than 256 MiB; ask for less".to_owned()));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_are_named_by_url_or_address() {
        assert_eq!(base("127.0.0.1:8080").unwrap().as_str(), "http://127.0.0.1:8080/");
        assert_eq!(base("http://h:1/under").unwrap().as_str(), "http://h:1/under");
        for wrong in ["", "ftp://x", "http://"] {
            assert_eq!(base(wrong).unwrap_err().code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_folder_without_a_hub_is_unreachable() {
        assert_eq!(local(Path::new("/nonexistent")).unwrap_err().code(), 5);
    }
}
