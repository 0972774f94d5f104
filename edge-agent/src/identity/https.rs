//! What the agent asks the hub over HTTPS: to enrol it, to renew its certificate, whom to trust, and for releases.
//!
//! One connection a question: they are days apart. Nothing is written before the TLS handshake has shown that the
//! other end is the hub.

use std::{io, sync::Arc, time::Duration};

use fleet_schemas::enrol::{
    BODY_BYTES, ENROL_PATH, Enrol, HUB_NAME, Issued, Pending, RENEW_PATH, RefusalCode, Renew, TRUST_PATH,
    Trust,
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::TcpStream, task::JoinHandle, time};
use tokio_rustls::TlsConnector;

use super::trust::Trouble;
use crate::address::Address;

/// Time to reach the hub and to shake hands.
const REACH: Duration = Duration::from_secs(15);
/// Time the hub has to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody there.
    #[error("{hub} cannot be reached: {source}; check the address, the port and the network")]
    Unreachable {
        /// Where.
        hub: String,
        /// What the system said.
        source: io::Error,
    },
    /// The handshake failed.
    #[error("{hub}: {trouble}")]
    Tls {
        /// Where.
        hub: String,
        /// Why.
        trouble: Trouble,
    },
    /// Silence.
    #[error("{0} does not answer in time; check the address and the network")]
    Slow(String),
    /// The connection broke.
    #[error("the connection to {0} broke off: {1}; run it again, nothing is lost")]
    Broken(String, String),
    /// The hub says no.
    #[error("{0}")]
    Refused(Refused),
    /// No hub, or one of another age.
    #[error(
        "{hub} answers what this agent does not understand ({what}); is it a hub of a version that fits?"
    )]
    Strange {
        /// Where.
        hub: String,
        /// What it was.
        what: String,
    },
}

/// The hub's no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub code: RefusalCode,
    /// What the hub says about it; may be empty.
    pub detail: String,
    /// The status of HTTP.
    pub status: u16,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.code {
            RefusalCode::TokenUnknown => {
                "the hub does not know this join token: it was removed, or is of another hub. \
                 Make a new one there with `fleet join-token create`"
            }
            RefusalCode::TokenSecret => {
                "the secret of this join token is wrong. Copy the whole line that `fleet join-token create` printed"
            }
            RefusalCode::TokenExpired => {
                "this join token has expired. Make a new one on the hub with `fleet join-token create`"
            }
            RefusalCode::TokenUsed => {
                "this join token was used as often as it may. Make a new one on the hub with \
                 `fleet join-token create`; if you did not use it, somebody else did: look at `fleet node ls`"
            }
            RefusalCode::NodeExists => {
                "another machine has this node id. Choose another with --node, or remove the old one on the hub with \
                 `fleet node rm`"
            }
            RefusalCode::Revoked => {
                "an operator shut this node out. Ask for it to be let in again, then join with a new token and --force"
            }
            RefusalCode::BadRequest => "the hub cannot read what this agent asks, or does not take its kind of key",
            RefusalCode::BadCertificate => {
                "the hub does not take this node's certificate: it is of another hub, or was replaced. \
                 Join again with a new token and --force"
            }
            RefusalCode::TooLate => {
                "this node's certificate ended too long ago to be renewed. Join again with a new token and --force"
            }
            RefusalCode::ClockInDoubt => {
                "the hub issues nothing while its clock is in doubt. Set its clock, then try again"
            }
            RefusalCode::Unavailable => "the hub cannot store it now. Try again in a minute",
            RefusalCode::Other => "the hub refuses for a reason that this agent does not know",
        })?;
        match (self.detail.as_str(), self.code) {
            ("", RefusalCode::Other) => write!(f, " (status {})", self.status),
            ("", _) => Ok(()),
            (detail, _) => write!(f, " (the hub says: {detail})"),
        }
    }
}

/// The hub's answer to [`enrol`].
#[derive(Debug)]
pub(crate) enum Enrolled {
    /// A certificate.
    Issued(Box<Issued>),
    /// An operator has to approve first.
    Pending(Pending),
}

/// Asks for a first certificate.
///
/// # Errors
/// [`AskError`].
pub(crate) async fn enrol(hub: &Address, tls: Arc<ClientConfig>, body: &Enrol) -> Result<Enrolled, AskError> {
    let (status, answer) = ask(hub, tls, Method::POST, ENROL_PATH, json(body)).await?;
    if status == StatusCode::ACCEPTED {
        return read(hub, &answer).map(Enrolled::Pending);
    }
    read(hub, &granted(hub, status, answer)?).map(|issued| Enrolled::Issued(Box::new(issued)))
}

/// Asks for the next certificate, over a connection that proves the last.
///
/// # Errors
/// [`AskError`].
pub(crate) async fn renew(hub: &Address, tls: Arc<ClientConfig>, body: &Renew) -> Result<Issued, AskError> {
    let (status, answer) = ask(hub, tls, Method::POST, RENEW_PATH, json(body)).await?;
    read(hub, &granted(hub, status, answer)?)
}

/// Asks whom to trust.
///
/// # Errors
/// [`AskError`].
pub(crate) async fn trust(hub: &Address, tls: Arc<ClientConfig>) -> Result<Trust, AskError> {
    let (status, answer) = ask(hub, tls, Method::GET, TRUST_PATH, Bytes::new()).await?;
    read(hub, &granted(hub, status, answer)?)
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    hub: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    // What moves the bytes; ends with the answer.
    connection: JoinHandle<()>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Answer {
    /// The next bytes of the body, `None` at its end. Waits for ever: the caller knows what is slow. Safe to cancel.
    ///
    /// # Errors
    /// [`AskError::Broken`].
    pub(crate) async fn more(&mut self) -> Result<Option<Bytes>, AskError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    // Trailers say nothing here.
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(error)) => return Err(AskError::Broken(self.hub.clone(), error.to_string())),
            }
        }
    }

    /// The whole body, of at most so many bytes; `None` when there are more.
    ///
    /// # Errors
    /// [`AskError`].
    pub(crate) async fn whole(mut self, limit: usize) -> Result<Option<Vec<u8>>, AskError> {
        let hub = self.hub.clone();
        let read = async {
            let mut body = Vec::new();
            while let Some(bytes) = self.more().await? {
                if body.len() + bytes.len() > limit {
                    return Ok(None);
                }
                body.extend_from_slice(&bytes);
            }
            Ok(Some(body))
        };
        match time::timeout(ANSWER, read).await {
            Ok(read) => read,
            Err(_) => Err(AskError::Slow(hub)),
        }
    }
}

/// Asks for something on the port for nodes, from a byte on, and gives the answer as soon as it begins. `tag`: only if
/// it is still the thing of this tag, else from its beginning (RFC 9110 §13.1.5, §14.2).
///
/// # Errors
/// [`AskError`].
pub(crate) async fn get(
    hub: &Address,
    tls: Arc<ClientConfig>,
    path: &str,
    from: u64,
    tag: Option<&HeaderValue>,
) -> Result<Answer, AskError> {
    let slow = |_| AskError::Slow(hub.to_string());
    let stream = time::timeout(REACH, dial(hub, tls)).await.map_err(slow)??;
    let mut request = Request::builder().uri(path).header(header::HOST, hub.to_string());
    if from > 0 {
        request = request.header(header::RANGE, format!("bytes={from}-"));
        if let Some(tag) = tag {
            request = request.header(header::IF_RANGE, tag.clone());
        }
    }
    let request = request.body(Full::new(Bytes::new())).expect("a valid request");
    let begun = async {
        let broken = |error: hyper::Error| AskError::Broken(hub.to_string(), error.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = tokio::spawn(async move {
            // What goes wrong is seen at the body.
            let _ = connection.await;
        });
        let answer = match sender.send_request(request).await {
            Ok(answer) => answer,
            Err(error) => {
                connection.abort();
                return Err(refused_late(hub, &error));
            }
        };
        let (head, body) = answer.into_parts();
        Ok(Answer { hub: hub.to_string(), status: head.status, headers: head.headers, body, connection })
    };
    time::timeout(ANSWER, begun).await.map_err(slow)?
}

fn json(body: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(body).expect("texts under text keys").into()
}

fn read<T: DeserializeOwned>(hub: &Address, body: &Bytes) -> Result<T, AskError> {
    let strange =
        |error: serde_json::Error| AskError::Strange { hub: hub.to_string(), what: error.to_string() };
    serde_json::from_slice(body).map_err(strange)
}

/// The body, when the hub says yes.
fn granted(hub: &Address, status: StatusCode, body: Bytes) -> Result<Bytes, AskError> {
    /// A problem body (RFC 9457).
    #[derive(Deserialize)]
    struct Problem {
        code: RefusalCode,
        #[serde(default)]
        detail: String,
    }
    if status == StatusCode::OK {
        return Ok(body);
    }
    match serde_json::from_slice(&body) {
        Ok(Problem { code, detail }) => {
            let detail = detail.chars().filter(|c| !c.is_control()).take(500).collect();
            Err(AskError::Refused(Refused { code, detail, status: status.as_u16() }))
        }
        Err(_) => Err(AskError::Strange { hub: hub.to_string(), what: format!("status {status}") }),
    }
}

async fn ask(
    hub: &Address,
    tls: Arc<ClientConfig>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), AskError> {
    let slow = |_| AskError::Slow(hub.to_string());
    let stream = time::timeout(REACH, dial(hub, tls)).await.map_err(slow)??;
    time::timeout(ANSWER, exchange(hub, stream, method, path, body)).await.map_err(slow)?
}

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

async fn dial(hub: &Address, tls: Arc<ClientConfig>) -> Result<Stream, AskError> {
    let unreachable = |source| AskError::Unreachable { hub: hub.to_string(), source };
    let stream = TcpStream::connect((hub.host.as_str(), hub.port)).await.map_err(unreachable)?;
    // Told to whoever routes by it; not what is checked.
    let name = ServerName::try_from(hub.host.clone())
        .unwrap_or_else(|_| ServerName::try_from(HUB_NAME).expect("a valid name"));
    TlsConnector::from(tls).connect(name, stream).await.map_err(|error| match Trouble::of(&error) {
        Some(trouble) => AskError::Tls { hub: hub.to_string(), trouble },
        None => AskError::Broken(hub.to_string(), error.to_string()),
    })
}

async fn exchange(
    hub: &Address,
    stream: Stream,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), AskError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, hub.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(body))
        .expect("a valid request");
    let broken = |error: &dyn std::fmt::Display| AskError::Broken(hub.to_string(), error.to_string());
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let exchanged = async {
        let answer = sender.send_request(request).await.map_err(|error| refused_late(hub, &error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_BYTES).collect().await;
        Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
    };
    tokio::pin!(exchanged);
    tokio::select! {
        // A connection that ended may have brought the answer first.
        biased;
        answer = &mut exchanged => answer,
        ended = connection => match ended {
            Ok(()) => exchanged.await,
            Err(error) => Err(refused_late(hub, &error)),
        },
    }
}

/// In TLS 1.3 a hub that does not accept the node's certificate says so after the handshake.
fn refused_late(hub: &Address, error: &hyper::Error) -> AskError {
    use std::error::Error as _;
    let trouble = error.source().and_then(|source| source.downcast_ref::<io::Error>()).and_then(Trouble::of);
    match trouble {
        Some(trouble) => AskError::Tls { hub: hub.to_string(), trouble },
        None => AskError::Broken(hub.to_string(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do_and_what_the_hub_said() {
        for code in [
            RefusalCode::TokenUnknown,
            RefusalCode::TokenSecret,
            RefusalCode::TokenExpired,
            RefusalCode::TokenUsed,
            RefusalCode::NodeExists,
            RefusalCode::Revoked,
            RefusalCode::BadRequest,
            RefusalCode::BadCertificate,
            RefusalCode::TooLate,
            RefusalCode::ClockInDoubt,
            RefusalCode::Unavailable,
            RefusalCode::Other,
        ] {
            let text = Refused { code, detail: "because".into(), status: 403 }.to_string();
            assert!(text.ends_with("(the hub says: because)"), "{text}");
        }
        let bare = Refused { code: RefusalCode::Other, detail: String::new(), status: 418 }.to_string();
        assert!(bare.ends_with("(status 418)"), "{bare}");
    }

    #[test]
    fn a_problem_without_a_code_is_no_answer_of_a_hub() {
        let hub = Address { host: "hub".into(), port: 1 };
        let body = Bytes::from_static(b"<html>502 Bad Gateway</html>");
        let error = granted(&hub, StatusCode::BAD_GATEWAY, body).unwrap_err();
        assert!(matches!(error, AskError::Strange { .. }), "{error}");
        let body = Bytes::from_static(b"{\"code\":\"token_used\",\"detail\":\"by\\u001b[31m edge-2\"}");
        let error = granted(&hub, StatusCode::CONFLICT, body).unwrap_err();
        let AskError::Refused(refused) = error else { panic!("{error}") };
        assert_eq!((refused.code, refused.detail.as_str()), (RefusalCode::TokenUsed, "by[31m edge-2"));
    }
}
