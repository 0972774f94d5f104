//! Nodes over MQTT with TLS: bound to their certificates, and cut when they are shut out.

use fleet_manager::core::identity::Change;
use fleet_schemas::NodeId;
use rcgen::KeyPair;
use tokio::{net::TcpStream, time};

use crate::given::{Hello, SOON, Session, Site, dial};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_cut_at_once_and_stays_out_until_another_machine_has_its_place() {
    let site = Site::start().await;
    let old = site.joined("edge-1").await;
    let (mut session, code) = site.connect_node("edge-1", &old).await;
    assert!(code == 0 && session.lives().await);
    let (mut other, _) = site.connect_node("edge-2", &site.joined("edge-2").await).await;

    let node = NodeId::parse("edge-1").unwrap();
    site.intend(Change::Revoke { node: node.clone(), reason: "stolen".to_owned() }).await;
    assert_eq!(time::timeout(SOON, session.ended()).await.unwrap(), Some(0x98), "administrative action");
    assert_eq!(site.connect_node("edge-1", &old).await.1, 0x8A, "banned");
    assert_eq!(site.renew(&old, &KeyPair::generate().unwrap()).await.code(), (403, "revoked"));
    let token = site.token(|token| token.uses = 2).await;
    assert_eq!(site.join(&token, "edge-1", &old.key).await.code(), (403, "revoked"));
    assert!(other.lives().await, "nobody else is disturbed");

    let token = site.token(|token| token.replace = Some(node)).await;
    let key = KeyPair::generate().unwrap();
    // Whatever id it asks for, the token decides.
    let new = site.join(&token, "edge-7", &key).await;
    assert_eq!(new.issued().node.as_str(), "edge-1");
    let new = new.holds(key);
    let (mut session, code) = site.connect_node("edge-1", &new).await;
    assert!(code == 0 && session.lives().await);
    assert_eq!(site.connect_node("edge-1", &old).await.1, 0x87, "another machine has its place");
    assert_eq!(site.renew(&old, &KeyPair::generate().unwrap()).await.code(), (403, "bad_certificate"));
    assert!(session.lives().await);

    let site = Site::start_in(site.stop().await).await;
    assert_eq!(site.connect_node("edge-1", &old).await.1, 0x87);
    assert_eq!(site.connect_node("edge-1", &new).await.1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_replaced_loses_its_session() {
    let site = Site::start().await;
    let old = site.joined("edge-1").await;
    let (mut session, _) = site.connect_node("edge-1", &old).await;
    let token = site.token(|token| token.replace = NodeId::parse("edge-1").ok()).await;
    site.join(&token, "edge-1", &KeyPair::generate().unwrap()).await.issued();
    assert_eq!(time::timeout(SOON, session.ended()).await.unwrap(), Some(0x98));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_opens_its_own_nodes_session_only() {
    let site = Site::start().await;
    let holds = site.joined("edge-1").await;
    assert_eq!(site.connect_node("edge-2", &holds).await.1, 0x85);
    // A user name beside a certificate proves nothing, and changes nothing.
    let hello = Hello { client_id: "edge-1", user: Some("edge-2"), password: Some("x") };
    assert_eq!(site.connect(Some(&holds), &hello).await.1, 0);
    let hello = Hello { client_id: "edge-2", user: Some("edge-2"), password: Some("x") };
    assert_eq!(site.connect(Some(&holds), &hello).await.1, 0x85);
    assert_eq!(site.connect(None, &hello).await.1, 0x86, "over TLS a secret is no identity");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_another_ca_end_the_handshake() {
    let (site, other) = (Site::start().await, Site::start().await);
    let foreign = other.joined("edge-1").await;
    for address in [site.running.addresses.mqtts, site.running.addresses.node_https] {
        // In TLS 1.3 the client is through before the server has looked; the first read tells.
        let refused = match dial(address.unwrap(), &site.ca(), Some(&foreign)).await {
            Err(_) => true,
            Ok(mut tls) => tokio::io::AsyncReadExt::read(&mut tls, &mut [0; 1]).await.is_err(),
        };
        assert!(refused);
        assert!(
            dial(address.unwrap(), &other.ca(), None).await.is_err(),
            "the client would not go on either"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_plain_listener_a_node_that_joined_is_refused_and_others_are_held_to_their_secret() {
    let site = Site::start().await;
    site.joined("edge-1").await;
    let plain = async |id: &str, secret: &str| {
        let stream = TcpStream::connect(site.running.addresses.mqtt).await.unwrap();
        let hello = Hello { client_id: id, user: Some(id), password: Some(secret) };
        Session::open(stream, &hello).await.1
    };
    assert_eq!(plain("edge-1", "guess").await, 0x87);
    assert_eq!((plain("edge-2", "mine").await, plain("edge-2", "theirs").await), (0, 0x86));
    let node = NodeId::parse("edge-1").unwrap();
    site.intend(Change::Revoke { node, reason: String::new() }).await;
    assert_eq!(plain("edge-1", "guess").await, 0x8A);
}
