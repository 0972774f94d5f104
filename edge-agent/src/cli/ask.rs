//! Asks the running agent over its edge API.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, anyhow};
use fleet_edge_agent::{api::token, config::Config};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{net::TcpStream, time};

use super::{Failure, runtime};

/// Time the agent has to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// `GET path`. Unreachable when nobody answers there, failed when the agent answers with a problem.
pub(super) fn get<T: DeserializeOwned>(config: &Config, path: &str) -> Result<T, Failure> {
    let api = config.api.listen;
    let (status, body) = send(config, &Method::GET, path, None)?;
    if status != StatusCode::OK {
        return Err(Failure::Failed(anyhow!("the agent on {api} answered {status}: {body}")));
    }
    serde_json::from_str(&body)
        .with_context(|| format!("what answers on {api} is no agent of this version"))
        .map_err(Failure::Failed)
}

/// Asks with a body of JSON, or none: whatever is answered. Unreachable when nobody answers there.
pub(super) fn send(
    config: &Config,
    method: &Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(StatusCode, String), Failure> {
    let api = config.api.listen;
    let token = token(&config.api, &config.data);
    let question = Question { api, method, path, token, body: body.map(Value::to_string) };
    let answer = runtime()?.block_on(async { time::timeout(ANSWER, fetch(question)).await });
    let (status, body) = answer
        .map_err(|_| anyhow!("no answer within {ANSWER:?}"))
        .and_then(|answer| answer)
        .with_context(|| {
            format!("no agent answers on {api}; start one with `fleet-agent run`, or give its --api")
        })
        .map_err(Failure::Unreachable)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

struct Question<'a> {
    api: SocketAddr,
    method: &'a Method,
    path: &'a str,
    token: Option<String>,
    body: Option<String>,
}

async fn fetch(question: Question<'_>) -> anyhow::Result<(StatusCode, Bytes)> {
    let Question { api, method, path, token, body } = question;
    let stream = TcpStream::connect(api).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(header::HOST, api.to_string());
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::<Bytes>::from(body.unwrap_or_default()))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => Err(anyhow!("the connection ended: {ended:?}")),
    }
}
