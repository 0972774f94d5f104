//! One question over plain HTTP to a program nearby: bounded in time and size.
//!
//! For exporters and webhooks on this machine or its network; what goes to the hub goes by TLS elsewhere.

use std::{fmt, io, net::IpAddr, str::FromStr, time::Duration};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::{net::TcpStream, time};

/// Longest address.
const URL_BYTES: usize = 2_048;

/// `http://host[:port][/path]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    host: String,
    port: u16,
    path: String,
}

/// A text that is no such address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address such as http://127.0.0.1:9100/metrics ({why})")]
pub struct BadUrl {
    text: String,
    why: &'static str,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0} cannot be reached: {1}; check that it runs there")]
    Unreachable(Url, #[source] io::Error),
    #[error("{0} does not answer within {1:?}")]
    Slow(Url, Duration),
    #[error("the connection to {0} broke off: {1}")]
    Broken(Url, #[source] hyper::Error),
    #[error("{0} answers with status {1}")]
    Status(Url, u16),
    #[error("{0} answers with more than {1} bytes")]
    Large(Url, usize),
}

impl FetchError {
    /// A short stable word for counters.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(..) => "unreachable",
            Self::Slow(..) => "slow",
            Self::Broken(..) => "broken",
            Self::Status(..) => "status",
            Self::Large(..) => "large",
        }
    }
}

impl Url {
    /// Whether it is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let name = self.host.trim_matches(['[', ']']);
        name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for Url {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let wrong = |why| BadUrl { text: text.chars().take(100).collect(), why };
        let rest = text.strip_prefix("http://").ok_or_else(|| {
            wrong("only plain http is spoken, to this machine or its network: let a proxy nearby speak https")
        })?;
        if text.len() > URL_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('@') {
            return Err(wrong("it is too long, or has a space, a sign or a user that do not belong there"));
        }
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("its port"))?)
            }
            Some(_) | None => (authority, 80),
        };
        if host.is_empty() {
            return Err(wrong("its host is missing"));
        }
        Ok(Self { host: host.to_owned(), port, path: path.to_owned() })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

impl Serialize for Url {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Asks for a page of at most `limit` bytes.
pub(crate) async fn get(url: &Url, limit: usize, within: Duration) -> Result<Bytes, FetchError> {
    bounded(url, within, ask(url, Method::GET, Bytes::new(), limit)).await
}

/// Posts JSON; the answer's body is not looked at.
pub(crate) async fn post(url: &Url, body: Vec<u8>, within: Duration) -> Result<(), FetchError> {
    let answer = bounded(url, within, ask(url, Method::POST, body.into(), 64 * 1024)).await;
    match answer {
        // What it said was good; how much of it is none of our business.
        Ok(_) | Err(FetchError::Large(..)) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn bounded<T>(
    url: &Url,
    within: Duration,
    asked: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, FetchError> {
    time::timeout(within, asked).await.unwrap_or_else(|_| Err(FetchError::Slow(url.clone(), within)))
}

async fn ask(url: &Url, method: Method, body: Bytes, limit: usize) -> Result<Bytes, FetchError> {
    let broken = |error| FetchError::Broken(url.clone(), error);
    let host = url.host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, url.port))
        .await
        .map_err(|error| FetchError::Unreachable(url.clone(), error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::builder()
        .method(method)
        .uri(&url.path)
        .header(header::HOST, format!("{}:{}", url.host, url.port))
        .header(header::USER_AGENT, concat!("fleet-agent/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "text/plain, */*;q=0.1")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .expect("the parts of an address were checked");
    let answered = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if !status.is_success() {
            return Err(FetchError::Status(url.clone(), status.as_u16()));
        }
        match Limited::new(response.into_body(), limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(FetchError::Large(url.clone(), limit)),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => Err(broken(*error)),
                Err(other) => Err(FetchError::Unreachable(url.clone(), io::Error::other(other))),
            },
        }
    };
    // The connection lives only as long as the question.
    tokio::pin!(connection);
    tokio::pin!(answered);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut answered => return answer,
            _ = &mut connection, if open => open = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_plain_and_whole() {
        let url: Url = "http://127.0.0.1:9100/metrics?x=1".parse().unwrap();
        assert_eq!(url.to_string(), "http://127.0.0.1:9100/metrics?x=1");
        assert!(url.is_loopback());
        assert_eq!("http://[::1]".parse::<Url>().unwrap().to_string(), "http://[::1]:80/");
        assert!("http://[::1]:81/a".parse::<Url>().unwrap().is_loopback());
        assert!(!"http://10.0.0.7/hook".parse::<Url>().unwrap().is_loopback());
        for bad in [
            "",
            "https://x/",
            "ftp://x",
            "http://",
            "http://:80/",
            "http://a b/",
            "http://u:p@h/",
            "http://h:x/",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }
}
