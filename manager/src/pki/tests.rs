//! The keys over a hub's life: made, kept, changed, refused; with real handshakes against the rules they make.

use std::{
    fs, os::unix::fs::PermissionsExt as _, sync::atomic::AtomicI64, sync::atomic::Ordering, time::Duration,
};

use fleet_broker::Keys as _;
use rcgen::{CertificateParams, KeyPair, SigningKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection, crypto::ring};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};

use super::*;

const START: i64 = 1_800_000_000_000;
const DAY: i64 = 24 * 3_600_000;

struct Given {
    folder: tempfile::TempDir,
    now_ms: Arc<AtomicI64>,
}

impl Given {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), now_ms: Arc::new(AtomicI64::new(START)) }
    }

    fn open(&self) -> Result<Pki, Error> {
        self.open_with(&[])
    }

    fn open_with(&self, names: &[String]) -> Result<Pki, Error> {
        let now_ms = self.now_ms.clone();
        let now = move || Now { wall_ms: now_ms.load(Ordering::Relaxed), mono: Duration::ZERO };
        // A negative time stands for a clock in doubt.
        Pki::open(self.folder.path(), names, Arc::new(move || (now(), now().wall_ms < 0)))
    }

    fn at(&self, now_ms: i64) {
        self.now_ms.store(now_ms, Ordering::Relaxed);
    }

    fn keys(&self) -> std::path::PathBuf {
        self.folder.path().join("pki/keys.json")
    }
}

fn request(key: &impl SigningKey) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

/// A node with its key and certificate.
struct Holds {
    key: KeyPair,
    certificate: Certificate,
}

fn joins(pki: &Pki, id: &str) -> Holds {
    let key = KeyPair::generate().unwrap();
    let request = Request::read(&request(&key)).unwrap();
    let certificate = pki.issue_node(&request, &NodeId::parse(id).unwrap()).unwrap();
    Holds { key, certificate }
}

/// Shakes hands in memory: what the server learned of the client, or why not.
fn shake(pki: &Pki, ca: &str, holds: Option<&Holds>) -> Result<Option<Peer>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(ca.unwrap()).unwrap();
    }
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut client = match holds {
        None => client.with_no_client_auth(),
        Some(holds) => {
            let chain = vec![CertificateDer::from(holds.certificate.der.clone())];
            let key = PrivatePkcs8KeyDer::from(holds.key.serialize_der());
            client.with_client_auth_cert(chain, key.into()).unwrap()
        }
    };
    // The tests live in 2027.
    #[derive(Debug)]
    struct Then;
    impl rustls::time_provider::TimeProvider for Then {
        fn current_time(&self) -> Option<rustls_pki_types::UnixTime> {
            Some(rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_millis(START as u64)))
        }
    }
    client.time_provider = Arc::new(Then);
    let name = ServerName::try_from(HUB_NAME).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(pki.keys().server_config()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut &wire[..]).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut &wire[..]).unwrap();
        client.process_new_packets()?;
    }
    Ok(server.peer_certificates().and_then(|chain| Peer::read(&chain[0])))
}

#[test]
fn the_same_keys_come_back_after_a_restart() {
    let given = Given::new();
    let first = given.open().unwrap();
    let (pin, ca) = (first.pin(), first.ca_pem());
    let again = given.open().unwrap();
    assert_eq!((again.pin(), again.ca_pem(), again.status()), (pin, ca.clone(), first.status()));
    assert_eq!(fs::read_to_string(given.folder.path().join("pki/ca.pem")).unwrap(), ca);
}

#[test]
fn keys_are_for_the_owner_only_and_others_stop_the_hub_with_the_cure() {
    let given = Given::new();
    drop(given.open().unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&given.folder.path().join("pki")), 0o700);
    for file in fs::read_dir(given.folder.path().join("pki")).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
    fs::set_permissions(given.keys(), fs::Permissions::from_mode(0o640)).unwrap();
    let refused = given.open().err().unwrap().to_string();
    assert!(refused.contains("chmod 600") && refused.contains("keys.json"), "{refused}");
}

#[test]
fn what_a_crash_of_the_first_start_leaves_is_no_obstacle_but_lost_keys_are() {
    let given = Given::new();
    fs::create_dir(given.folder.path().join("pki")).unwrap();
    fs::write(given.folder.path().join("pki/keys.json.new"), "{\"format\":1,\"auth").unwrap();
    let pin = given.open().unwrap().pin();
    assert_eq!(given.open().unwrap().pin(), pin);
    let text = fs::read_to_string(given.keys()).unwrap();
    fs::remove_file(given.keys()).unwrap();
    assert!(matches!(given.open(), Err(Error::File(FileError::Lost { .. }))));
    for (wrong, kind) in
        [("{", "damaged"), ("{\"format\":2}", "format 2"), (&text[..text.len() / 2], "damaged")]
    {
        file::replace(&given.keys(), wrong.as_bytes()).unwrap();
        let refused = given.open().err().unwrap().to_string();
        assert!(refused.contains(kind), "{refused}");
    }
}

#[test]
fn a_node_is_known_by_its_certificate_and_a_stranger_by_none() {
    let given = Given::new();
    let pki = given.open().unwrap();
    let node = joins(&pki, "edge-1");
    let peer = shake(&pki, &pki.ca_pem(), Some(&node)).unwrap().unwrap();
    assert_eq!(peer.who, Who::Node(NodeId::parse("edge-1").unwrap()));
    let Certificate { issued_ms, not_after_ms, .. } = node.certificate;
    let key = Request::read(&request(&node.key)).unwrap().key;
    assert_eq!(peer.shown, crate::core::identity::Shown { key, issued_ms, not_after_ms });
    assert_eq!((issued_ms, not_after_ms), (START, START + 30 * DAY));
    assert_eq!(shake(&pki, &pki.ca_pem(), None), Ok(None));
    let foreign = Given::new().open().unwrap();
    assert!(shake(&pki, &pki.ca_pem(), Some(&joins(&foreign, "edge-1"))).is_err());
    assert!(shake(&pki, &foreign.ca_pem(), Some(&node)).is_err());
}

#[test]
fn a_certificate_that_ended_or_has_not_begun_passes_the_handshake_for_the_directory_to_judge() {
    let given = Given::new();
    let pki = given.open().unwrap();
    for issued in [0, START - 400 * DAY, START + 400 * DAY] {
        given.at(issued);
        let node = joins(&pki, "edge-1");
        given.at(START);
        let peer = shake(&pki, &pki.ca_pem(), Some(&node)).unwrap().unwrap();
        assert_eq!(peer.shown.not_after_ms, issued + 30 * DAY);
    }
}

#[test]
fn the_hubs_own_certificate_is_no_clients() {
    let given = Given::new();
    let pki = given.open().unwrap();
    let (made, key) = pki.lock().server.clone();
    let certificate =
        Certificate { der: made.der.to_vec(), issued_ms: 0, not_after_ms: 0, ca: pki.signer().0 };
    let server = Holds { key: KeyPair::from_pem(&key).unwrap(), certificate };
    assert!(shake(&pki, &pki.ca_pem(), Some(&server)).is_err());
}

#[test]
fn of_a_signing_request_only_the_key_is_used() {
    let given = Given::new();
    let pki = given.open().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut wish = CertificateParams::new(vec!["hub.fleet.internal".to_owned()]).unwrap();
    wish.distinguished_name.push(rcgen::DnType::CommonName, "root");
    wish.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = Request::read(&wish.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
    let made = pki.issue_node(&request, &NodeId::parse("edge-1").unwrap()).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&made.der).unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=edge-1");
    assert!(!certificate.is_ca() && certificate.version().0 == 2);
    assert_eq!(certificate.raw_serial().len(), 17);
    assert!(Peer::read(&made.der).is_some_and(|peer| peer.shown.key == request.key));
}

#[test]
fn requests_are_refused_for_their_signature_key_or_form() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        assert!(Request::read(&request(&key)).is_ok());
    }
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    /// Shows one key and signs with another.
    struct Forged<'a>(&'a KeyPair, &'a KeyPair);
    impl rcgen::PublicKeyData for Forged<'_> {
        fn der_bytes(&self) -> &[u8] {
            self.0.der_bytes()
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            rcgen::PublicKeyData::algorithm(self.0)
        }
    }
    impl SigningKey for Forged<'_> {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            self.1.sign(message)
        }
    }
    assert_eq!(Request::read(&request(&Forged(&key, &other))).err(), Some(RequestError::Signature));
    assert_eq!(Request::read("hello").err(), Some(RequestError::Form));
    let pki = Given::new().open().unwrap();
    assert_eq!(Request::read(&pki.ca_pem()).err(), Some(RequestError::Form));
}

#[test]
fn the_ca_changes_while_both_are_trusted() {
    let given = Given::new();
    let pki = given.open().unwrap();
    let (old_pin, old_ca) = (pki.pin(), pki.ca_pem());
    let node = joins(&pki, "edge-1");
    let mut identities = Identities::default();
    let known = |certificate: &Certificate| {
        let key = Peer::read(&certificate.der).unwrap().shown.key;
        crate::core::identity::Enrolment::enrolled(key, certificate.clone())
    };
    identities.enrolments.insert(NodeId::parse("edge-1").unwrap(), known(&node.certificate));

    pki.rotate_ca().unwrap();
    assert!(matches!(pki.rotate_ca(), Err(Error::Moving)));
    assert_eq!(
        (pki.pin(), pki.status().stage, pki.tick(pki.waiting(&identities).len()).unwrap()),
        (old_pin, "moving", None)
    );
    assert_eq!(pki.trust().ca.len(), 2);
    assert_eq!(pki.waiting(&identities), [NodeId::parse("edge-1").unwrap()]);
    let pki = given.open().unwrap();
    assert!(shake(&pki, &old_ca, Some(&node)).unwrap().is_some());

    let renewed = joins(&pki, "edge-1");
    assert!(shake(&pki, &old_ca, Some(&renewed)).unwrap().is_some());
    identities.enrolments.insert(NodeId::parse("edge-1").unwrap(), known(&renewed.certificate));
    // One of whose certificate a restored store knows nothing may have one of the old CA.
    let unknown = NodeId::parse("edge-2").unwrap();
    let restored = crate::core::identity::Enrolment { certificate: None, ..known(&node.certificate) };
    identities.enrolments.insert(unknown.clone(), restored);
    assert_eq!(
        (pki.waiting(&identities).as_slice(), pki.tick(1).unwrap()),
        ([unknown.clone()].as_slice(), None)
    );
    identities.enrolments.remove(&unknown);
    assert_eq!(pki.tick(pki.waiting(&identities).len()).unwrap(), Some(Step::MakeServer(pki.signer())));
    assert!(pki.pin() == pki.signer() && pki.pin() != old_pin);
    assert!(shake(&pki, &old_ca, None).is_err(), "whoever knows the old CA only is lost now");
    assert!(shake(&pki, &pki.trust().ca[0], Some(&node)).unwrap().is_some(), "its certificate is still good");

    given.at(START + 31 * DAY);
    assert_eq!(pki.tick(pki.waiting(&identities).len()).unwrap(), Some(Step::Drop(old_pin)));
    given.at(START);
    assert_eq!((pki.status().stage, pki.trust().ca.len()), ("settled", 1));
    assert!(shake(&pki, &pki.ca_pem(), Some(&node)).is_err());
}

#[test]
fn a_tools_certificate_keeps_its_ca_trusted_for_a_year() {
    let given = Given::new();
    let pki = given.open().unwrap();
    let key = KeyPair::generate().unwrap();
    let made = pki.issue_access(&request(&key), "grafana").unwrap();
    let der = CertificateDer::from_pem_slice(made.pem.as_bytes()).unwrap();
    let peer = Peer::read(&der).unwrap();
    assert_eq!((peer.who, peer.shown.key), (Who::Tool("grafana".into()), made.key));
    assert!(given.open().unwrap().lock().signer().1.tools);
}

#[test]
fn names_that_are_added_get_into_the_certificate_at_the_next_start() {
    let given = Given::new();
    let first = given.open().unwrap().status();
    let pki = given.open_with(&["hub.example.org".to_owned()]).unwrap();
    assert!(pki.status().server_names.contains(&"hub.example.org".to_owned()));
    assert_eq!(pki.status().authorities, first.authorities);
    assert!(matches!(given.open_with(&["not a name".to_owned()]), Err(Error::Name(_))));
    assert!(given.open().is_ok());
}

#[test]
fn nothing_is_issued_while_the_clock_is_in_doubt() {
    let given = Given::new();
    let pki = given.open().unwrap();
    given.at(-1);
    let key = KeyPair::generate().unwrap();
    let csr = Request::read(&request(&key)).unwrap();
    let node = NodeId::parse("edge-1").unwrap();
    assert!(matches!(pki.issue_node(&csr, &node), Err(Error::ClockInDoubt)));
    assert!(matches!(pki.rotate_server(), Err(Error::ClockInDoubt)));
    assert_eq!(pki.tick(0).unwrap(), None);
}

/// What a backup of the keys holds, and the hub goes on.
fn copy_keys(from: &Given, to: &Given) {
    fs::create_dir(to.folder.path().join(file::FOLDER)).unwrap();
    fs::copy(from.keys(), to.keys()).unwrap();
}

#[test]
fn a_hub_that_is_restored_trusts_the_cas_of_after_its_backup_and_signs_by_its_own() {
    let (lost, restored) = (Given::new(), Given::new());
    let pki = lost.open().unwrap();
    let first = pki.pin();
    copy_keys(&lost, &restored);
    // Two changes after the backup.
    for _ in 0..2 {
        pki.rotate_ca().unwrap();
        pki.finish().unwrap();
    }
    let node = joins(&pki, "edge-1");
    let lines = pki.lines();
    let now_ms = START + DAY;
    let before = restored.open().unwrap();
    assert!(shake(&before, &before.ca_pem(), Some(&node)).is_err(), "nobody told it of the new CAs");
    drop(before);

    let said = readmit::readmit(restored.folder.path(), &lines, now_ms).unwrap();
    assert_eq!(said, readmit::Readmitted { trusted: 2, dropped_ms: None });
    let again = readmit::readmit(restored.folder.path(), &lines, now_ms).unwrap();
    assert_eq!(again.trusted, 0, "they are known");
    restored.at(now_ms);
    let pki = restored.open().unwrap();
    let shown = shake(&pki, &pki.ca_pem(), Some(&node)).unwrap().unwrap();
    assert_eq!(shown.who, Who::Node(NodeId::parse("edge-1").unwrap()));
    assert_eq!((pki.signer(), pki.pin(), pki.trust().ca.len()), (first, first, 1), "it signs by its own");
    pki.rotate_ca().unwrap();
    assert!(shake(&pki, &pki.ca_pem(), Some(&node)).is_ok(), "a change of its own keeps them");
    // Until the last certificate that they signed has ended.
    restored.at(now_ms + 366 * DAY);
    pki.tick(1).unwrap();
    assert!(shake(&pki, &pki.ca_pem(), Some(&node)).is_err());
    drop(pki);
    assert!(shake(&restored.open().unwrap(), &pem_of(&restored), Some(&node)).is_err(), "nor after a start");
}

fn pem_of(given: &Given) -> String {
    fs::read_to_string(given.folder.path().join("pki/ca.pem")).unwrap()
}

#[test]
fn whoever_writes_to_the_trail_makes_no_ca() {
    let (lost, restored, stranger) = (Given::new(), Given::new(), Given::new());
    let (pki, other) = (lost.open().unwrap(), stranger.open().unwrap());
    copy_keys(&lost, &restored);
    let node = joins(&pki, "edge-1");
    other.rotate_ca().unwrap();
    let made = |certificate: String| Line::AuthorityMade { pin: "any".to_owned(), certificate, at_ms: 1 };
    // A certificate that this hub signed but for a node, a CA that signed itself, one that another hub vouches for, none.
    let mut lines = vec![made(pem(&node.certificate.der)), made("nonsense".to_owned())];
    lines.extend(other.lines());
    let before = fs::read(restored.keys()).unwrap();
    assert_eq!(readmit::readmit(restored.folder.path(), &lines, START).unwrap().trusted, 0);
    assert_eq!(fs::read(restored.keys()).unwrap(), before);
    // That the CA was dropped is the lost hub's word.
    let gone = [Line::AuthorityDropped { pin: pki.pin().to_string(), at_ms: 7 }];
    assert_eq!(readmit::readmit(restored.folder.path(), &gone, START).unwrap().dropped_ms, Some(7));
}
