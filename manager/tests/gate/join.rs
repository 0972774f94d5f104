//! Machines become nodes, or are told why not.

use fleet_manager::core::identity::Change;
use fleet_schemas::{
    NodeId,
    enrol::{ENROL_PATH, TRUST_PATH, Trust},
};
use rcgen::KeyPair;
use serde_json::json;

use crate::given::{Site, ask, dial, is_signed_by, peer, wish};

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_once_and_is_answered_the_same_when_it_asks_again() {
    let site = Site::start().await;
    let token = site.token(|token| drop(token.labels.insert("site".into(), "plant".into()))).await;
    let key = key();
    let first = site.join(&token, "edge-1", &key).await;
    let issued = first.issued();
    assert_eq!((issued.node.as_str(), issued.trust.ca.len()), ("edge-1", 1));
    assert_eq!(Some(issued.mqtts_port), site.running.addresses.mqtts.map(|at| at.port()));
    assert!(is_signed_by(&issued.certificate, &issued.trust.ca[0]));
    let again = site.join(&token, "edge-1", &key).await.issued();
    assert_eq!((&again.certificate, again.not_after_ms), (&issued.certificate, issued.not_after_ms));
    assert_eq!(site.used_by(&token).len(), 1);
    let labels = site.running.hub.with_fleet(|fleet| fleet.nodes["edge-1"].record.labels.clone());
    assert_eq!(labels["site"], "plant");

    // The answer was lost in a crash: the same one is given after it.
    let site = Site::start_in(site.stop().await).await;
    assert_eq!(site.join(&token, "edge-1", &key).await.issued().certificate, issued.certificate);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_refused_with_what_is_wrong_with_it() {
    let site = Site::start().await;
    let token = site.token(|_| ()).await;
    let mut other = token.clone();
    other.id = "nosuch".to_owned();
    assert_eq!(site.join(&other, "edge-1", &key()).await.code(), (401, "token_unknown"));
    let mut tampered = token.clone();
    tampered.secret[0] ^= 1;
    let refused = site.join(&tampered, "edge-1", &key()).await;
    assert_eq!(refused.code(), (401, "token_secret"));
    assert!(refused.body["detail"].as_str().unwrap().contains("copy the whole token"), "{refused:?}");

    let holds = site.join(&token, "edge-1", &key()).await.holds(key());
    // Stolen after use: for another id, for the same id, and with the tampered secret.
    let refused = site.join(&token, "edge-2", &key()).await;
    assert_eq!(refused.code(), (403, "token_used"));
    assert!(refused.body["detail"].as_str().unwrap().contains("edge-1"), "{refused:?}");
    assert_eq!(site.join(&token, "edge-1", &key()).await.code(), (403, "token_used"));
    assert_eq!(site.join(&tampered, "edge-1", &holds.key).await.code(), (401, "token_secret"));

    let many = site.token(|token| token.uses = 5).await;
    assert_eq!(site.join(&many, "edge-1", &key()).await.code(), (409, "node_exists"));
    site.intend(Change::RemoveToken(many.id.clone())).await;
    assert_eq!(site.join(&many, "edge-2", &key()).await.code(), (401, "token_unknown"));

    let now_ms = site.running.hub.clock().now().wall_ms;
    let brief = site.token(|token| token.expires_ms = now_ms + 300).await;
    while site.running.hub.clock().now().wall_ms < now_ms + 300 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(site.join(&brief, "edge-2", &key()).await.code(), (403, "token_expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_guesses_tokens_is_slowed_and_nobody_else() {
    let site = Site::start().await;
    let token = site.token(|_| ()).await;
    let mut guess = token.clone();
    let key = key();
    let mut slowed = 0;
    for round in 0..30 {
        guess.secret[0] = token.secret[0] ^ (round + 1);
        let answer = site.join(&guess, "edge-1", &key).await;
        match answer.code() {
            (401, "token_secret") => assert_eq!(slowed, 0, "slowed once and then not"),
            (429, _) => slowed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(slowed >= 5, "{slowed} of 30");
    // From the same address.
    assert_eq!(site.join(&token, "edge-1", &key).await.issued().node.as_str(), "edge-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_lets_one_of_many_in() {
    let site = Site::start().await;
    let token = site.token(|_| ()).await;
    let keys: Vec<_> = (0..8).map(|_| key()).collect();
    let names: Vec<_> = (0..8).map(|n| format!("edge-{n}")).collect();
    let asks = keys.iter().zip(&names).map(|(key, name)| site.join(&token, name, key));
    let answers = futures_util::future::join_all(asks).await;
    let codes: Vec<_> = answers.iter().map(|answer| answer.code()).collect();
    assert_eq!(codes.iter().filter(|code| **code == (200, "none")).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == (403, "token_used")).count(), 7, "{codes:?}");

    // The same machine, impatient: every connection is given the same certificate, and the token is used once.
    let token = site.token(|token| token.uses = 3).await;
    let key = key();
    let answers = futures_util::future::join_all((0..8).map(|_| site.join(&token, "edge-9", &key))).await;
    let mut certificates: Vec<_> = answers.iter().map(|answer| answer.issued().certificate).collect();
    certificates.dedup();
    assert_eq!((certificates.len(), site.used_by(&token).len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_waits_until_an_operator_has_approved() {
    let site = Site::start().await;
    let token = site.token(|token| (token.approve, token.uses) = (true, 2)).await;
    let (first, second) = (key(), key());
    for _ in 0..2 {
        let answer = site.join(&token, "edge-1", &first).await;
        assert_eq!((answer.status, answer.body["node"].as_str()), (202, Some("edge-1")));
        assert!(answer.body["retry_s"].as_u64().unwrap() > 0);
    }
    assert_eq!(site.join(&token, "edge-2", &second).await.status, 202);
    let (edge_1, edge_2) = (NodeId::parse("edge-1").unwrap(), NodeId::parse("edge-2").unwrap());
    site.intend(Change::Approve(edge_1)).await;
    site.intend(Change::Revoke { node: edge_2, reason: "who is this".to_owned() }).await;
    let issued = site.join(&token, "edge-1", &first).await.issued();
    assert_eq!(site.join(&token, "edge-1", &first).await.issued().certificate, issued.certificate);
    assert_eq!(site.join(&token, "edge-2", &second).await.code(), (403, "revoked"));
    assert_eq!(site.used_by(&token).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_without_repeating_it() {
    let site = Site::start().await;
    let token = site.token(|_| ()).await;
    let mut body = wish(&token, "edge-1", &key());
    body["csr"] = json!("-----BEGIN NONSENSE-----");
    assert_eq!(site.post(ENROL_PATH, &body, None).await.code(), (400, "bad_request"));
    body["node"] = json!("hub");
    let refused = site.post(ENROL_PATH, &body, None).await;
    assert_eq!(refused.code(), (400, "bad_request"));
    let secret = body["secret"].as_str().unwrap();
    assert!(!refused.body.to_string().contains(secret), "{refused:?}");
    let large = json!({ "csr": "x".repeat(20_000) });
    assert_eq!(site.post(ENROL_PATH, &large, None).await.code(), (413, "bad_request"));
    assert_eq!(site.post("/elsewhere", &large, None).await.status, 404);
    assert_eq!(site.used_by(&token), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_renews_with_a_new_key_and_a_stranger_with_none() {
    let site = Site::start().await;
    let first = site.joined("edge-1").await;
    assert_eq!(site.renew(&first, &first.key).await.code(), (400, "bad_request"));
    let next = key();
    // The first certificate is a moment old; waiting keeps a broken agent from filling the trail.
    let early = site.renew(&first, &next).await;
    assert_eq!(early.status, 429, "{early:?}");
    let renewed = loop {
        let answer = site.renew(&first, &next).await;
        if answer.status != 429 {
            break answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    };
    let again = site.renew(&first, &next).await;
    assert_eq!(again.issued().certificate, renewed.issued().certificate);
    let renewed = renewed.holds(next);
    assert_eq!(site.connect_node("edge-1", &renewed).await.1, 0);
    assert_eq!(site.connect_node("edge-1", &first).await.1, 0, "it may not have got the answer");
    let nobody = site.post(fleet_schemas::enrol::RENEW_PATH, &json!({ "csr": "" }), None).await;
    assert_eq!(nobody.code(), (403, "bad_certificate"));
    assert_eq!(peer(&first).who, peer(&renewed).who);
}

#[tokio::test(flavor = "multi_thread")]
async fn anybody_may_ask_what_to_trust() {
    let site = Site::start().await;
    let tls = dial(site.running.addresses.node_https.unwrap(), &site.ca(), None).await.unwrap();
    let trust: Trust = serde_json::from_value(ask(tls, "GET", TRUST_PATH, "").await.body).unwrap();
    assert_eq!(trust.ca, [site.ca()]);
    assert!(trust.hub_ms > 1_700_000_000_000);
}
