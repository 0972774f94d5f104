//! A hub of a test, machines that want to be its nodes, and the clients they use.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use fleet_manager::{
    clock,
    config::Config,
    core::{
        identity::{Change, Token},
        registry::Intent,
    },
    pki,
    run::{self, RunningHub},
};
use fleet_schemas::{
    NodeId,
    enrol::{ENROL_PATH, Enrol, HUB_NAME, Issued, JoinToken, RENEW_PATH, secret_text},
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Longest wait for anything: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a session has to be cut.
pub(crate) const SOON: Duration = Duration::from_secs(2);

/// A running hub.
pub(crate) struct Site {
    pub(crate) running: RunningHub,
    pub(crate) data: TempDir,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap()).await
    }

    pub(crate) async fn start_in(data: TempDir) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut config = Config { data: data.path().to_owned(), ..Config::default() };
        config.listen.http = any;
        config.listen.mqtt = any;
        config.listen.mqtts = any;
        config.listen.node_https = any;
        Self { running: run::start(&config).await.unwrap(), data }
    }

    /// Stops it; gives its folder for the next start.
    pub(crate) async fn stop(self) -> TempDir {
        self.running.stop().await;
        self.data
    }

    pub(crate) async fn intend(&self, change: Change) {
        self.running.hub.intend("operator test", Intent::Identity(change)).await.unwrap();
    }

    /// A join token, with whatever is changed about it.
    pub(crate) async fn token(&self, change: impl FnOnce(&mut Token)) -> JoinToken {
        let now_ms = self.running.hub.clock().now().wall_ms;
        let id: String = clock::random::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
        let token = JoinToken { pin: self.running.pki.pin(), id: id.clone(), secret: clock::random() };
        let mut kept = Token {
            id,
            secret: Sha256::digest(token.secret).into(),
            created_ms: now_ms,
            created_by: "test".to_owned(),
            expires_ms: now_ms + 900_000,
            uses: 1,
            labels: Default::default(),
            approve: false,
            replace: None,
            used_by: Vec::new(),
        };
        change(&mut kept);
        self.intend(Change::PutToken(kept)).await;
        token
    }

    pub(crate) fn used_by(&self, token: &JoinToken) -> Vec<NodeId> {
        self.running.hub.with_identities(|known| known.tokens[&token.id].used_by.clone())
    }

    /// What whoever trusts this hub trusts at present.
    pub(crate) fn ca(&self) -> String {
        self.running.pki.ca_pem()
    }

    /// Posts JSON to the port for nodes.
    pub(crate) async fn post(&self, path: &str, body: &Value, shows: Option<&Holds>) -> Answer {
        let tls = dial(self.running.addresses.node_https.unwrap(), &self.ca(), shows).await.unwrap();
        ask(tls, "POST", path, &body.to_string()).await
    }

    pub(crate) async fn join(&self, token: &JoinToken, node: &str, key: &KeyPair) -> Answer {
        self.post(ENROL_PATH, &wish(token, node, key), None).await
    }

    /// Joins with a new key and a new token.
    pub(crate) async fn joined(&self, node: &str) -> Holds {
        let token = self.token(|_| ()).await;
        let key = KeyPair::generate().unwrap();
        let answer = self.join(&token, node, &key).await;
        answer.holds(key)
    }

    pub(crate) async fn renew(&self, shows: &Holds, key: &KeyPair) -> Answer {
        self.post(RENEW_PATH, &json!({ "csr": csr(key) }), Some(shows)).await
    }

    /// Opens an MQTT session over TLS.
    pub(crate) async fn connect(&self, shows: Option<&Holds>, hello: &Hello<'_>) -> (Session, u8) {
        let tls = dial(self.running.addresses.mqtts.unwrap(), &self.ca(), shows).await.unwrap();
        Session::open(tls, hello).await
    }

    /// Opens one as a node does.
    pub(crate) async fn connect_node(&self, node: &str, shows: &Holds) -> (Session, u8) {
        self.connect(Some(shows), &Hello { client_id: node, ..Hello::default() }).await
    }
}

/// What an enrolment says.
pub(crate) fn wish(token: &JoinToken, node: &str, key: &KeyPair) -> Value {
    let enrol = Enrol {
        id: token.id.clone(),
        secret: secret_text(&token.secret),
        csr: csr(key),
        node: NodeId::parse(node).unwrap(),
    };
    serde_json::to_value(enrol).unwrap()
}

pub(crate) fn csr(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

/// A key and its certificate.
pub(crate) struct Holds {
    pub(crate) key: KeyPair,
    pub(crate) certificate: String,
}

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn code(&self) -> (u16, &str) {
        (self.status, self.body["code"].as_str().unwrap_or("none"))
    }

    pub(crate) fn issued(&self) -> Issued {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_value(self.body.clone()).unwrap()
    }

    pub(crate) fn holds(&self, key: KeyPair) -> Holds {
        Holds { key, certificate: self.issued().certificate }
    }
}

/// Shakes hands as somebody who trusts `ca` and looks for the hub's fixed name.
pub(crate) async fn dial(
    address: SocketAddr,
    ca: &str,
    shows: Option<&Holds>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(ca.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match shows {
        None => config.with_no_client_auth(),
        Some(holds) => {
            let chain = vec![CertificateDer::from_pem_slice(holds.certificate.as_bytes()).unwrap()];
            let key = PrivatePkcs8KeyDer::from(holds.key.serialize_der());
            config.with_client_auth_cert(chain, key.into()).unwrap()
        }
    };
    let name = ServerName::try_from(HUB_NAME).unwrap();
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Asks once over HTTP/1.1.
pub(crate) async fn ask(mut tls: TlsStream<TcpStream>, method: &str, path: &str, body: &str) -> Answer {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: hub\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    tls.write_all(body.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    time::timeout(PATIENCE, tls.read_to_end(&mut text)).await.unwrap().unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, body: serde_json::from_str(body).unwrap_or(Value::Null) }
}

/// What a CONNECT says.
#[derive(Default)]
pub(crate) struct Hello<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) user: Option<&'a str>,
    pub(crate) password: Option<&'a str>,
}

/// An MQTT 5 session.
pub(crate) struct Session<S = TlsStream<TcpStream>>(S);

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Session<S> {
    /// Sends CONNECT; gives the reason code of CONNACK (MQTT 5 §3.2.2.2).
    pub(crate) async fn open(mut stream: S, hello: &Hello<'_>) -> (Self, u8) {
        let text = |packet: &mut Vec<u8>, text: &str| {
            packet.extend((text.len() as u16).to_be_bytes());
            packet.extend(text.as_bytes());
        };
        let mut body = Vec::new();
        text(&mut body, "MQTT");
        let flags = 2 | hello.user.map_or(0, |_| 0x80) | hello.password.map_or(0, |_| 0x40);
        body.extend([5, flags, 0, 60, 0]);
        text(&mut body, hello.client_id);
        [hello.user, hello.password].into_iter().flatten().for_each(|given| text(&mut body, given));
        let mut packet = vec![0x10, u8::try_from(body.len()).unwrap()];
        assert!(body.len() < 128);
        packet.append(&mut body);
        stream.write_all(&packet).await.unwrap();
        let mut session = Self(stream);
        let answer = session.packet().await.unwrap();
        assert_eq!(answer[0], 0x20, "{answer:?}");
        (session, answer[3])
    }

    /// Whether it lives: PINGREQ is answered.
    pub(crate) async fn lives(&mut self) -> bool {
        self.0.write_all(&[0xC0, 0]).await.is_ok()
            && self.packet().await.is_some_and(|packet| packet[0] == 0xD0)
    }

    /// Waits for its end; gives the reason of the DISCONNECT before it.
    pub(crate) async fn ended(&mut self) -> Option<u8> {
        let mut reason = None;
        while let Some(packet) = self.packet().await {
            reason = (packet[0] == 0xE0).then(|| packet.get(2).copied().unwrap_or(0));
        }
        reason
    }

    async fn packet(&mut self) -> Option<Vec<u8>> {
        let read = async {
            let mut packet = vec![0; 2];
            self.0.read_exact(&mut packet).await.ok()?;
            assert!(packet[1] < 128, "a short packet");
            packet.resize(2 + usize::from(packet[1]), 0);
            self.0.read_exact(&mut packet[2..]).await.ok()?;
            Some(packet)
        };
        time::timeout(PATIENCE, read).await.unwrap()
    }
}

/// The certificate that a hub shows at an address.
pub(crate) async fn shown(address: SocketAddr, ca: &str) -> Vec<u8> {
    let tls = dial(address, ca, None).await.unwrap();
    tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// The same bytes that a certificate's text has.
pub(crate) fn is_signed_by(certificate: &str, ca: &str) -> bool {
    let (certificate, ca) =
        [certificate, ca].map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).into();
    let (_, ca) = x509_parser::parse_x509_certificate(&ca).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    certificate.verify_signature(Some(ca.public_key())).is_ok()
}

pub(crate) fn peer(holds: &Holds) -> pki::Peer {
    pki::Peer::read(&CertificateDer::from_pem_slice(holds.certificate.as_bytes()).unwrap()).unwrap()
}
