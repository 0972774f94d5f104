//! Third-party tools: by password, by certificate, and out.

use argon2::{Argon2, password_hash::PasswordHasher as _};
use fleet_manager::core::identity::{Access, Change};
use rcgen::KeyPair;
use tokio::time;

use crate::given::{Hello, Holds, SOON, Site, csr};

fn access(name: &str) -> Access {
    Access {
        name: name.to_owned(),
        read: vec!["fleet/v1/hub/#".to_owned()],
        write: Vec::new(),
        password: None,
        key: None,
        created_ms: 0,
        created_by: "test".to_owned(),
    }
}

fn hash(password: &str) -> Option<String> {
    Some(Argon2::default().hash_password(password.as_bytes()).unwrap().to_string())
}

fn hello<'a>(name: &'a str, password: &'a str) -> Hello<'a> {
    Hello { client_id: "grafana-1", user: Some(name), password: Some(password) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_comes_by_password_until_its_access_is_removed() {
    let site = Site::start().await;
    site.intend(Change::PutAccess(Access { password: hash("right"), ..access("grafana") })).await;
    let right = hello("grafana", "right");
    let (mut session, code) = site.connect(None, &right).await;
    assert!(code == 0 && session.lives().await);
    assert_eq!(site.connect(None, &hello("grafana", "wrong")).await.1, 0x86);
    assert_eq!(site.connect(None, &hello("nobody", "right")).await.1, 0x86);
    let (mut session, code) = site.connect(None, &right).await;
    assert!(code == 0 && session.lives().await, "it took its own place");

    site.intend(Change::RemoveAccess("grafana".to_owned())).await;
    assert_eq!(time::timeout(SOON, session.ended()).await.unwrap(), Some(0x98));
    assert_eq!(site.connect(None, &right).await.1, 0x86);
    site.intend(Change::PutAccess(Access { password: hash("other"), ..access("grafana") })).await;
    assert_eq!(site.connect(None, &right).await.1, 0x86, "what was remembered of it is forgotten");
    assert_eq!(site.connect(None, &hello("grafana", "other")).await.1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_comes_by_certificate_and_is_no_node() {
    let site = Site::start().await;
    let key = KeyPair::generate().unwrap();
    let made = site.running.pki.issue_access(&csr(&key), "telegraf").unwrap();
    let holds = Holds { key, certificate: made.pem };
    let hello = Hello { client_id: "telegraf-1", ..Hello::default() };
    assert_eq!(site.connect(Some(&holds), &hello).await.1, 0x87, "nobody granted anything");
    site.intend(Change::PutAccess(Access { key: Some(made.key), ..access("telegraf") })).await;
    let (mut session, code) = site.connect(Some(&holds), &hello).await;
    assert!(code == 0 && session.lives().await);
    let renew = site.renew(&holds, &KeyPair::generate().unwrap()).await;
    assert_eq!(renew.code(), (403, "bad_certificate"));
    site.intend(Change::RemoveAccess("telegraf".to_owned())).await;
    assert_eq!(time::timeout(SOON, session.ended()).await.unwrap(), Some(0x98));
    assert_eq!(site.connect(Some(&holds), &hello).await.1, 0x87);
}
