//! TLS on the edge API over real sockets: REST and gRPC with the agent's own certificate and with given ones, beside
//! plain text from this machine.

use std::{path::Path, sync::Arc, time::Duration};

use fleet_edge_agent::{
    api::grpc::pb::{self, status_client::StatusClient, telemetry_client::TelemetryClient},
    run::Handle,
};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use crate::{PATIENCE, get_json, grpc, post, quiet, start, until, url};

/// A client that trusts what is in these PEM texts.
fn connector(roots: &str, protocol: &str) -> TlsConnector {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn secured(
    agent: &Handle,
    roots: &str,
    name: &'static str,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(agent.api()).await?;
    let connecting = connector(roots, protocol).connect(ServerName::try_from(name).unwrap(), stream);
    time::timeout(PATIENCE, connecting).await.expect("the agent shakes hands")
}

/// One request over TLS.
async fn ask(agent: &Handle, roots: &str, name: &'static str, body: Option<Value>) -> (u16, Value) {
    let stream = secured(agent, roots, name, "http/1.1").await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driven = tokio::spawn(connection);
    let request = match &body {
        Some(_) => Request::post("/api/v1/telemetry").header("content-type", "application/json"),
        None => Request::get("/api/v1/status"),
    };
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = request.header("host", name).body(Full::new(bytes::Bytes::from(body))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    driven.abort();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn grpc_over(agent: &Handle, roots: String, name: &'static str) -> Channel {
    let api = agent.api();
    let connect = tower::service_fn(move |_: hyper::Uri| {
        let connector = connector(&roots, "h2");
        async move {
            let stream = TcpStream::connect(api).await?;
            connector.connect(ServerName::try_from(name).unwrap(), stream).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://edge").connect_with_connector(connect).await.unwrap()
}

#[tokio::test]
async fn with_a_certificate_of_its_own_both_are_served_beside_plain_text() {
    let (_folder, mut config) = quiet("tls-1");
    config.api.tls = true;
    let agent = start(config.clone()).await;
    let own = std::fs::read_to_string(config.data.join("api-certificate.pem")).unwrap();
    for name in ["fleet-agent", "localhost", "127.0.0.1", "tls-1"] {
        let body = json!({"samples": [{"metric": "m", "value": 1.5}]});
        assert_eq!(ask(&agent, &own, name, Some(body)).await, (202, json!({"accepted": 1})));
    }
    let (status, view) = ask(&agent, &own, "fleet-agent", None).await;
    assert_eq!((status, &view["node_id"]), (200, &json!("tls-1")));
    let channel = grpc_over(&agent, own.clone(), "fleet-agent").await;
    let mut telemetry = TelemetryClient::new(channel.clone());
    let sent =
        [grpc::batch("1", vec![grpc::sample("m", 1.0)]), grpc::batch("2", vec![grpc::sample("m", 2.0)])];
    let mut answers = telemetry.submit_stream(futures_util::stream::iter(sent)).await.unwrap().into_inner();
    let mut records = 0;
    while let Some(told) = answers.message().await.unwrap() {
        records = told.records;
    }
    assert_eq!(records, 2);
    let over_grpc = StatusClient::new(channel).get(pb::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(over_grpc.node_id, "tls-1");
    // Programs on this machine need not know of it.
    let body = json!({"samples": [{"metric": "m", "value": 1.5}]});
    assert_eq!(post(&url(&agent, "/api/v1/telemetry"), body).await.0, 202);
    assert_eq!(get_json(&url(&agent, "/api/v1/outbox")).await["held_records"], 4 + 2 + 1);
    // Somebody who trusts another certificate, or looks for another name, does not go on.
    let other = rcgen::generate_simple_self_signed(vec!["fleet-agent".to_owned()]).unwrap().cert.pem();
    assert!(secured(&agent, &other, "fleet-agent", "h2").await.is_err());
    assert!(secured(&agent, &own, "elsewhere", "h2").await.is_err());
    agent.stop().await;
    // The one that clients pinned is still there.
    let agent = start(config).await;
    assert_eq!(ask(&agent, &own, "fleet-agent", None).await.0, 200);
    agent.stop().await;
}

#[tokio::test]
async fn half_a_handshake_gives_its_place_back() {
    let (_folder, mut config) = quiet("tls-2");
    config.api.tls = true;
    config.api.connections = 2;
    config.api.read = Duration::from_millis(300);
    let agent = start(config.clone()).await;
    let own = std::fs::read_to_string(config.data.join("api-certificate.pem")).unwrap();
    for first in [b"\x16\x03\x01\x02\x00\x01".as_slice(), b"\x16\x03\x01\x00\x05hello"] {
        let mut stalled = TcpStream::connect(agent.api()).await.unwrap();
        stalled.write_all(first).await.unwrap();
        // Cut off in time, whatever was said before.
        let mut rest = Vec::new();
        time::timeout(PATIENCE, stalled.read_to_end(&mut rest))
            .await
            .expect("it is cut off")
            .unwrap_or_default();
    }
    assert_eq!(ask(&agent, &own, "fleet-agent", None).await.0, 200);
    agent.stop().await;
}

/// A CA that signs a server's certificate; writes it and its key.
fn issue(ca: &CertifiedIssuer<'_, KeyPair>, folder: &Path, serial: u64) {
    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["edge.site".to_owned()]).unwrap();
    params.serial_number = Some(serial.into());
    let certificate = params.signed_by(&pair, ca).unwrap();
    std::fs::write(folder.join("key.pem"), pair.serialize_pem()).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.join("key.pem"), mode).unwrap();
    std::fs::write(folder.join("chain.pem"), certificate.pem()).unwrap();
}

#[tokio::test]
async fn files_that_somebody_renews_are_shown_without_a_restart() {
    let (folder, mut config) = quiet("tls-3");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    issue(&ca, folder.path(), 1);
    config.api.certificate_file = Some(folder.path().join("chain.pem"));
    config.api.key_file = Some(folder.path().join("key.pem"));
    let agent = start(config.clone()).await;
    let roots = ca.pem();
    let shown = async || {
        let stream = secured(&agent, &roots, "edge.site", "http/1.1").await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let first = shown().await;
    assert_eq!(ask(&agent, &roots, "edge.site", None).await.0, 200);
    assert!(!config.data.join("api-key.pem").exists(), "none of its own is made");
    issue(&ca, folder.path(), 2);
    until("the renewed certificate", shown, |found| *found != first).await;
    agent.stop().await;
    // Without its key it does not listen.
    std::fs::remove_file(folder.path().join("key.pem")).unwrap();
    let refused = fleet_edge_agent::run::start(config).await.expect_err("no key").to_string();
    assert!(refused.contains("key.pem") && refused.contains("TLS"), "{refused}");
}
