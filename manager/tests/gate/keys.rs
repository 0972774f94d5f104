//! The hub's own keys change while sessions live on.

use rcgen::KeyPair;

use crate::given::{Site, dial, is_signed_by, shown};

#[tokio::test(flavor = "multi_thread")]
async fn server_certificate_and_ca_change_under_a_session_that_lives_on() {
    let site = Site::start().await;
    let pki = &site.running.pki;
    let mqtts = site.running.addresses.mqtts.unwrap();
    let (old_ca, old) = (site.ca(), site.joined("edge-1").await);
    let (mut session, _) = site.connect_node("edge-1", &old).await;
    let before = shown(mqtts, &old_ca).await;
    pki.rotate_server().unwrap();
    assert_ne!(shown(mqtts, &old_ca).await, before);
    assert!(session.lives().await);

    pki.rotate_ca().unwrap();
    let due = || pki.tick(site.running.hub.with_identities(|known| pki.waiting(known)).len()).unwrap();
    assert_eq!(due(), None, "a node has no certificate of the new CA yet");
    assert!(dial(mqtts, &old_ca, Some(&old)).await.is_ok());
    let key = KeyPair::generate().unwrap();
    let renewed = site.renew(&old, &key).await;
    let trust = renewed.issued().trust;
    assert_eq!(trust.ca.len(), 2);
    assert!(is_signed_by(&renewed.issued().certificate, &trust.ca[0]) && trust.ca[1] == old_ca);
    let renewed = renewed.holds(key);
    assert_eq!(site.connect_node("edge-1", &renewed).await.1, 0);
    assert!(due().is_some(), "now the hub shows the new one");
    assert!(dial(mqtts, &old_ca, None).await.is_err() && dial(mqtts, &trust.ca[0], None).await.is_ok());
    let (mut session, code) = site.connect_node("edge-1", &renewed).await;
    assert!(code == 0 && session.lives().await);
    assert_eq!(site.connect_node("edge-1", &old).await.1, 0, "both are trusted");

    pki.finish().unwrap();
    assert_eq!(pki.status().stage, "settled");
    let site = Site::start_in(site.stop().await).await;
    assert_eq!(site.connect_node("edge-1", &renewed).await.1, 0);
}
