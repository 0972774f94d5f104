//! Artifacts and releases, by the command line and by hand: pushed, signed, shown, and refused.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use fleet_manager::core::identity::Role;

use crate::{
    cli::on,
    given::{Site, operator},
};

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file in the site's folder, and the folder for its keys with the passphrase in a file.
struct Desk<'a> {
    site: &'a Site,
    keys: String,
    passphrase: String,
}

impl<'a> Desk<'a> {
    fn new(site: &'a Site) -> Self {
        let path = |name: &str| site.data.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("passphrase"), "correct horse\n").unwrap();
        Self { site, keys: path("desk"), passphrase: path("passphrase") }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.site.data.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    async fn release(&self, verbs: &[&str]) -> (i32, String, String) {
        let mut all = vec!["release"];
        all.extend(verbs);
        all.extend(["--keys", &self.keys, "--passphrase-file", &self.passphrase]);
        on(self.site, &all).await
    }

    async fn push(&self, file: &str, version: &str) -> (i32, String, String) {
        on(self.site, &["artifact", "push", file, "--name", "greeter", "--version", version]).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_and_signed_is_a_release() {
    let site = Site::start().await;
    let desk = Desk::new(&site);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
    let file = desk.file("greeter.tar", &bytes);
    let (code, text, error) = desk.push(&file, "1.2.0").await;
    assert!(code == 0 && text.contains("skill/greeter/1.2.0/any"), "{text}{error}");
    let (code, text, _) = desk.push(&file, "1.2.0").await;
    assert!(code == 0 && text.contains("was here already"), "{text}");
    let (code, _, error) = desk.release(&["sign", "greeter@1.2.0"]).await;
    assert!(code == 2 && error.contains("fleet release init"), "{error}");
    let (code, _, error) = desk.release(&["init"]).await;
    assert_eq!(code, 0, "{error}");
    assert_eq!(desk.release(&["init"]).await.0, 7, "they are there already");
    let pem = std::fs::read_to_string(format!("{}/root.pem", desk.keys)).unwrap();
    assert!(pem.contains("ENCRYPTED"), "{pem}");
    assert_eq!(desk.release(&["sign", "greeter@1.3.0"]).await.0, 3);
    let (code, text, error) = desk.release(&["sign", "greeter@1.2.0", "--min-from", "1.0.0"]).await;
    assert!(code == 0 && text.contains(&digest(&bytes)), "{text}{error}");

    let (_, text, _) = on(&site, &["release", "ls", "-o", "json"]).await;
    let listed: Value = serde_json::from_str(&text).unwrap();
    let target = &listed["items"][0]["targets"][0];
    assert_eq!((&listed["items"][0]["id"], &target["min_from"]), (&json!("greeter@1.2.0"), &json!("1.0.0")));
    assert_eq!(listed["metadata"]["roles"].as_array().unwrap().len(), 4);
    let (code, text, _) = on(&site, &["release", "show", "greeter@1.2.0"]).await;
    assert!(code == 0 && text.contains("1.0.0"), "{text}");
    assert_eq!(on(&site, &["release", "show", "greeter@9.9.9"]).await.0, 3);
    // A node would take it, and hears of it what was signed.
    let folder = site.data.path().join("releases");
    let verify =
        ["release", "verify", folder.to_str().unwrap(), "--target", "skill/greeter/1.2.0/any", "-o", "json"];
    let (code, text, error) = on(&site, &verify).await;
    let verdict: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &verdict["digest"]), (0, &json!(digest(&bytes))), "{error}");

    // While it is signed its bytes stay.
    let (code, _, error) = on(&site, &["artifact", "rm", &digest(&bytes)]).await;
    assert!(code == 7 && error.contains("release rm"), "{error}");
    // Other keys, another passphrase, and a new version with a higher epoch.
    std::fs::write(&desk.passphrase, "wrong horse").unwrap();
    let (code, _, error) = desk.release(&["sign", "greeter@1.2.0"]).await;
    assert!(code == 2 && error.contains("passphrase"), "{error}");
    std::fs::write(&desk.passphrase, "correct horse").unwrap();
    let other = desk.file("greeter2.tar", b"another");
    assert_eq!(desk.push(&other, "1.2.1").await.0, 0);
    assert_eq!(desk.release(&["sign", "greeter@1.2.1", "--epoch", "2"]).await.0, 0);
    let (code, _, error) = desk.release(&["rotate", "--root", "--targets"]).await;
    assert_eq!(code, 0, "{error}");
    assert_eq!(desk.release(&["rm", "greeter@1.2.0"]).await.0, 0);
    assert_eq!(on(&site, &["artifact", "rm", &digest(&bytes)]).await.0, 0);
    let (code, text, _) = on(&site, &["release", "verify", folder.to_str().unwrap(), "-o", "json"]).await;
    let verdict: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &verdict["seen"]),
        (0, &json!({"root": 2, "timestamp": 5, "snapshot": 5, "targets": 5}))
    );
    assert_eq!(on(&site, &verify).await.0, 1, "it was taken back");
    let trail = site.get("/api/v1/audit?action=release.publish").await;
    assert_eq!(trail["items"].as_array().unwrap().len(), 5);
    assert_eq!(trail["items"][0]["detail"]["removed"], json!(["greeter@1.2.0"]));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_resumed_and_other_bytes_are_refused() {
    let site = Site::start().await;
    let bytes = b"the bytes of an artifact".repeat(1_000);
    let wanted = json!({
        "kind": "firmware", "name": "os", "version": "2026.11", "arch": "aarch64", "length": bytes.len(),
        "sha256": digest(&bytes),
    });
    let (status, upload) = site.ask(Method::POST, "/api/v1/artifacts", Some(&wanted.to_string())).await;
    assert_eq!(
        (status, &upload["offset"], &upload["complete"]),
        (StatusCode::CREATED, &json!(0), &json!(false))
    );
    let path = format!("/api/v1/artifacts/{}/upload", digest(&bytes));
    let patch = async |offset: &str, kind: &str, body: Vec<u8>| {
        let request = site.client().patch(site.url(&path)).header("content-type", kind);
        let answer = request.header("upload-offset", offset).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let kind = "application/offset+octet-stream";
    assert_eq!(patch("0", kind, bytes[..10_000].to_vec()).await.1["offset"], json!(10_000));
    let head = site.client().head(site.url(&path)).send().await.unwrap();
    assert_eq!(head.headers()["upload-offset"], "10000");
    assert_eq!(head.headers()["upload-length"], bytes.len().to_string());
    for (offset, kind, body, status) in [
        ("0", kind, bytes.clone(), 409),
        ("20000", kind, vec![1], 409),
        ("10000", kind, vec![0; bytes.len()], 413),
        ("x", kind, vec![1], 400),
        ("10000", "application/json", vec![1], 415),
    ] {
        let (told, problem) = patch(offset, kind, body).await;
        assert_eq!(told, status, "{offset} {kind}: {problem}");
    }
    let (status, done) = patch("10000", "application/partial-upload", bytes[10_000..].to_vec()).await;
    assert_eq!((status, &done["complete"]), (200, &json!(true)));
    let found = site.get(&format!("/api/v1/artifacts/{}", digest(&bytes))).await;
    assert_eq!(found["pushed"][0]["target"], json!("firmware/os/2026.11/aarch64"));
    // Announced as something that it is not.
    let false_one = json!({
        "kind": "skill", "name": "a", "version": "1.0.0", "arch": "any", "length": 3, "sha256": digest(b"abc"),
    });
    site.ask(Method::POST, "/api/v1/artifacts", Some(&false_one.to_string())).await;
    let path = format!("/api/v1/artifacts/{}/upload", digest(b"abc"));
    let request =
        site.client().patch(site.url(&path)).header("content-type", kind).header("upload-offset", "0");
    assert_eq!(request.body("xyz").send().await.unwrap().status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(site.ask(Method::GET, &path, None).await.0, StatusCode::NOT_FOUND);
    for (key, value) in [
        ("kind", json!("tool")),
        ("name", json!("../x")),
        ("version", json!("one")),
        ("arch", json!("")),
        ("length", json!(0)),
        ("length", json!(1_u64 << 40)),
        ("sha256", json!("abc")),
        ("min_from", json!("a b")),
        ("more", json!(1)),
    ] {
        let mut wrong = false_one.clone();
        wrong[key] = value;
        let (status, problem) = site.ask(Method::POST, "/api/v1/artifacts", Some(&wrong.to_string())).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{key}: {problem}");
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_metadata_is_taken_from_who_may_and_when_it_is_right() {
    let site = Site::start().await;
    let desk = Desk::new(&site);
    let put = async |token: &str, body: Value| {
        let path = "/api/v1/releases/metadata";
        site.ask_as(Some(token), Method::PUT, path, Some(&body.to_string())).await.0.as_u16()
    };
    let changer = operator(&site.hub, "changer", Role::Operator, None).await;
    assert_eq!(put(&changer, json!({"root": "{}"})).await, 403, "the root is an admin's");
    assert_eq!(put(&changer, json!({"targets": "{}"})).await, 409, "there are no keys yet");
    assert_eq!(put(&site.admin, json!({})).await, 422);
    assert_eq!(put(&site.admin, json!({"root": "{}"})).await, 422);
    assert_eq!(desk.release(&["init"]).await.0, 0);
    for wrong in ["{}", "nonsense", "{\"signed\":{},\"signatures\":[]}"] {
        assert_eq!(put(&changer, json!({ "targets": wrong })).await, 422, "{wrong}");
    }
    let old = site.get("/api/v1/releases/metadata/1.targets.json").await.to_string();
    assert_eq!(put(&changer, json!({ "targets": old })).await, 409);
    for missing in ["online.json", "next.json", "..%2Fstate.redb", "9.targets.json", "%00"] {
        let path = format!("/api/v1/releases/metadata/{missing}");
        assert_eq!(site.ask(Method::GET, &path, None).await.0, StatusCode::NOT_FOUND, "{missing}");
    }
    site.stop().await;
}
