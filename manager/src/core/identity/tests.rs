//! The rules of who gets in, change by change, on the plain data.

use std::time::Duration;

use fleet_schemas::{Lane, StreamId, session::StreamState};

use super::*;
use crate::core::{
    fleet::{Node, Record},
    ledger::{self, Counters},
    mark::{Mark, Said},
};

const NOW: i64 = 1_800_000_000_000;
const DAY: i64 = 24 * 3_600_000;

/// Everybody there is, at a time.
struct Given {
    fleet: Fleet,
    known: Identities,
    now_ms: i64,
}

fn node(id: &str) -> NodeId {
    NodeId::parse(id).unwrap()
}

fn key(n: u8) -> Hash {
    [n; 32]
}

fn certificate(issued_ms: i64) -> Certificate {
    Certificate { der: vec![1], issued_ms, not_after_ms: issued_ms + 30 * DAY, ca: [9; 32] }
}

fn shown(n: u8, issued_ms: i64) -> Shown {
    Shown { key: key(n), issued_ms, not_after_ms: issued_ms + 30 * DAY }
}

fn token(id: &str) -> Token {
    Token {
        id: id.to_owned(),
        secret: [7; 32],
        created_ms: NOW,
        created_by: "operator test".to_owned(),
        expires_ms: NOW + 900_000,
        uses: 1,
        labels: [("site".to_owned(), "plant".to_owned())].into(),
        approve: false,
        replace: None,
        used_by: Vec::new(),
    }
}

impl Given {
    fn new() -> Self {
        Self { fleet: Fleet::default(), known: Identities::default(), now_ms: NOW }
    }

    fn take(&mut self, change: Change) -> Result<Effects, RegistryError> {
        let mut effects = Effects::default();
        let now = Now { wall_ms: self.now_ms, mono: Duration::ZERO };
        let before = (self.known.clone(), self.fleet.nodes.len());
        let taken = take(&mut self.known, &mut self.fleet, &mut effects, change, 0, now);
        if let Err(error) = taken {
            assert_eq!((self.known.clone(), self.fleet.nodes.len()), before, "all or nothing");
            assert!(effects.nothing_to_write() && effects.cuts.is_empty());
            return Err(error);
        }
        Ok(effects)
    }

    fn ask(&self, token: &str, id: &str, n: u8) -> Ask {
        let certificate = Some(certificate(self.now_ms));
        Ask { token: token.to_owned(), secret: [7; 32], node: node(id), key: key(n), certificate }
    }

    fn enrol(&mut self, token: &str, id: &str, n: u8) -> Result<Effects, RegistryError> {
        let ask = self.ask(token, id, n);
        self.take(Change::Enrol(ask))
    }

    fn joined(id: &str, n: u8) -> Self {
        let mut given = Self::new();
        given.take(Change::PutToken(token("t"))).unwrap();
        given.enrol("t", id, n).unwrap();
        given
    }
}

fn refused(refused: Refused) -> Result<Effects, RegistryError> {
    Err(RegistryError::Refused(refused))
}

#[test]
fn a_token_is_used_up_by_the_commit_that_makes_the_node() {
    let mut given = Given::new();
    given.take(Change::PutToken(token("t"))).unwrap();
    let effects = given.enrol("t", "a", 1).unwrap();
    assert_eq!(effects.identities, [Row::Token("t".into()), Row::Enrolment(node("a"))].into());
    assert_eq!(effects.nodes, [node("a")].into());
    assert!(effects.cuts.is_empty(), "there was nobody to cut");
    assert_eq!(given.fleet.nodes["a"].record.labels["site"], "plant");
    // The same again changes nothing; another key is refused.
    assert!(given.enrol("t", "a", 1).unwrap().nothing_to_write());
    assert_eq!(given.enrol("t", "b", 2), refused(Refused::TokenUsed("t".into(), "a".into())));
    let wrong = Ask { secret: [8; 32], ..given.ask("t", "a", 1) };
    assert_eq!(given.take(Change::Enrol(wrong)), refused(Refused::TokenSecret("t".into())));
}

#[test]
fn tokens_end_and_are_listed_for_a_week_more() {
    let mut given = Given::new();
    given.take(Change::PutToken(token("t"))).unwrap();
    assert!(matches!(given.take(Change::PutToken(token("t"))), Err(RegistryError::Exists { .. })));
    given.now_ms = NOW + 900_000;
    assert_eq!(given.enrol("t", "a", 1), refused(Refused::TokenExpired("t".into())));
    given.now_ms += 8 * DAY;
    let late = Token { expires_ms: given.now_ms + 1, ..token("u") };
    given.take(Change::PutToken(late)).unwrap();
    assert_eq!(given.known.tokens.keys().collect::<Vec<_>>(), ["u"]);
    assert_eq!(given.enrol("t", "a", 1), refused(Refused::TokenUnknown("t".into())));
}

#[test]
fn terms_that_make_no_sense_are_refused() {
    let mut given = Given::new();
    let bad = [
        Token { uses: 0, ..token("t") },
        Token { expires_ms: NOW, ..token("t") },
        Token { uses: 2, replace: Some(node("a")), ..token("t") },
        Token { labels: [("k".to_owned(), "v".repeat(64))].into(), ..token("t") },
        Token { labels: (0..33).map(|n| (format!("k{n}"), String::new())).collect(), ..token("t") },
    ];
    for token in bad {
        assert!(matches!(given.take(Change::PutToken(token)), Err(RegistryError::Field { .. })));
    }
}

#[test]
fn a_node_that_was_heard_is_taken_by_nobody_without_replace() {
    let mut given = Given::new();
    let mut record = Record::new(node("a"), NOW);
    record.session = Some(fleet_schemas::SessionId([1; 8]));
    given.fleet.insert(Node::new(1, record));
    given.fleet.insert(Node::new(2, Record::new(node("imported"), NOW)));
    given.take(Change::PutToken(Token { uses: 2, ..token("t") })).unwrap();
    assert_eq!(given.enrol("t", "a", 1), refused(Refused::NodeExists(node("a"))));
    assert!(
        given.enrol("t", "imported", 1).unwrap().left.is_empty(),
        "what waits for it waits for this machine"
    );
    given.take(Change::PutToken(Token { replace: Some(node("a")), ..token("r") })).unwrap();
    let effects = given.enrol("r", "whatever", 2).unwrap();
    assert_eq!(effects.left, [node("a")].into());
    let cut = Cut::Node { node: node("a"), why: "another machine has its place" };
    assert_eq!(effects.cuts, [cut].into());
    assert!(given.known.is_held(&node("a")) && !given.known.is_held(&node("whatever")));
}

#[test]
fn whoever_takes_a_nodes_place_gets_its_history_and_what_the_old_one_had_is_written_off() {
    let mut given = Given::joined("a", 1);
    let stream = |n: u8| StreamId([n; 16]);
    {
        let known = given.fleet.nodes.get_mut("a").unwrap();
        known.record.labels.insert("rack".to_owned(), "12".to_owned());
        known.record.session = Some(fleet_schemas::SessionId([1; 8]));
        known.record.session_epoch = 70;
        for (lane, n, seq, next) in [(Lane::Telemetry, 1, 3, 31), (Lane::Backfill, 1, 0, 500)] {
            let said = Said { boot: [1; 8], up_ms: 1 };
            let state = StreamState {
                stream: stream(n),
                floor_seq: 1,
                floor_record: 1,
                next_seq: 90,
                next_record: next,
                counted: next - 1,
                tombstoned: 0,
            };
            let mut mark = Mark::default();
            mark.seq = seq;
            mark.birth(&state, said, NOW);
            known.marks.insert((lane, stream(n)), mark);
        }
    }
    let number = given.fleet.nodes["a"].number;
    given.take(Change::PutToken(Token { replace: Some(node("a")), ..token("r") })).unwrap();
    let effects = given.enrol("r", "whatever", 2).unwrap();
    let off = |lane, written_off| ((number, lane), Counters { written_off, ..Counters::default() });
    assert_eq!(effects.booked, [off(Lane::Telemetry, 30), off(Lane::Backfill, 499)].into());
    assert_eq!(effects.marks.len(), 2);
    let said: Vec<_> = effects.events.iter().map(|new| new.event.kind.as_str()).collect();
    assert_eq!(said, ["node_replaced"]);
    let known = &given.fleet.nodes["a"];
    assert_eq!((known.number, known.record.labels["rack"].as_str()), (number, "12"));
    let accounts =
        known.ledger(|number, lane| effects.booked.get(&(number, lane)).copied().unwrap_or_default());
    for account in accounts {
        assert_eq!((account.state, account.at_edge), (ledger::Standing::Balanced, 0), "{account:?}");
    }
    // Its sessions are counted anew: a count that begins at one is no card that was set back.
    assert_eq!((known.record.session, known.record.session_epoch), (None, 0));
    // The same machine asks again when its certificate has ended: nothing more is given up.
    given.fleet.nodes.get_mut("a").unwrap().record.session_epoch = 5;
    given.now_ms += 31 * DAY;
    let again = given.enrol("r", "whatever", 2).unwrap();
    assert_eq!((again.booked.len(), again.events.len()), (0, 0));
    assert_eq!(given.fleet.nodes["a"].record.session_epoch, 5);
}

#[test]
fn renewal_keeps_the_old_key_good_until_another_machine_has_the_place() {
    let mut given = Given::joined("a", 1);
    given.now_ms += 20 * DAY;
    let renew =
        |shown, n, at| Change::Renew { node: node("a"), shown, key: key(n), certificate: certificate(at) };
    given.take(renew(shown(1, NOW), 2, given.now_ms)).unwrap();
    let made = given.known.renewal(&node("a"), &shown(1, NOW), &key(2), given.now_ms).unwrap();
    assert_eq!(made.map(|made| made.issued_ms), Some(given.now_ms));
    let admitted = |given: &Given, n, at| given.known.admit(&node("a"), &shown(n, at), given.now_ms);
    assert_eq!(admitted(&given, 1, NOW), Ok(()));
    assert_eq!(admitted(&given, 2, given.now_ms), Ok(()));
    let late = given.now_ms;

    given.now_ms += DAY;
    let replace = Token { replace: Some(node("a")), expires_ms: given.now_ms + 1, ..token("r") };
    given.take(Change::PutToken(replace)).unwrap();
    given.enrol("r", "a", 3).unwrap();
    // The first key too, of which nothing but its age is known.
    for (n, at) in [(1, NOW), (2, late)] {
        assert_eq!(admitted(&given, n, at), Err(Refused::Replaced(node("a"))));
        let again = given.take(renew(shown(n, at), 4, given.now_ms));
        assert_eq!(again, refused(Refused::Replaced(node("a"))));
    }
    assert_eq!(admitted(&given, 3, given.now_ms), Ok(()));
    let back = given.known.renewal(&node("a"), &shown(3, given.now_ms), &key(2), given.now_ms);
    assert_eq!(back, Err(Refused::Replaced(node("a"))), "a key that was shut out is not renewed to");
    given.now_ms += 30 * DAY;
    assert_eq!(admitted(&given, 3, given.now_ms - 30 * DAY), Err(Refused::Expired(node("a"))));
}

#[test]
fn a_hub_whose_clock_was_ahead_goes_on_when_it_is_right_again() {
    let mut given = Given::joined("a", 1);
    let (ahead, right) = (NOW, NOW - 3_650 * DAY);
    given.now_ms = right;
    assert_eq!(given.known.admit(&node("a"), &shown(1, ahead), right), Ok(()));
    let change =
        |shown, n| Change::Renew { node: node("a"), shown, key: key(n), certificate: certificate(right) };
    given.take(change(shown(1, ahead), 2)).unwrap();
    given.take(change(shown(2, right), 3)).unwrap();
    for (n, at) in [(1, ahead), (2, right), (3, right)] {
        assert_eq!(given.known.admit(&node("a"), &shown(n, at), right), Ok(()), "{n}");
    }
}

#[test]
fn a_node_of_after_the_backup_is_known_again_by_its_certificate() {
    let mut given = Given::new();
    assert_eq!(given.known.admit(&node("a"), &shown(1, NOW), NOW), Ok(()));
    let change =
        Change::Renew { node: node("a"), shown: shown(1, NOW), key: key(2), certificate: certificate(NOW) };
    given.take(change).unwrap();
    assert_eq!(given.known.enrolments["a"].certificate, Some(certificate(NOW)));
    let nobody = given.take(Change::Revoke { node: node("b"), reason: String::new() });
    assert!(matches!(nobody, Err(RegistryError::Unknown { .. })));
    given.take(Change::Revoke { node: node("a"), reason: String::new() }).unwrap();
    assert_eq!(given.known.admit(&node("a"), &shown(2, NOW), NOW), Err(Refused::Revoked(node("a"))));
}

#[test]
fn the_first_word_on_a_revocation_stays_and_the_same_key_may_come_back() {
    let mut given = Given::joined("a", 1);
    for reason in ["stolen", "again"] {
        given.take(Change::Revoke { node: node("a"), reason: reason.to_owned() }).unwrap();
    }
    let Standing::Revoked { reason, .. } = &given.known.enrolments["a"].standing else { panic!("revoked") };
    assert_eq!(reason, "stolen");
    assert_eq!(given.take(Change::Approve(node("a"))), refused(Refused::Revoked(node("a"))));
    given.take(Change::PutToken(Token { replace: Some(node("a")), ..token("r") })).unwrap();
    given.enrol("r", "a", 1).unwrap();
    assert_eq!(given.known.admit(&node("a"), &shown(1, NOW), NOW), Ok(()));
}

#[test]
fn a_node_that_waits_is_let_in_by_an_operator_only() {
    let mut given = Given::new();
    given.take(Change::PutToken(Token { approve: true, ..token("t") })).unwrap();
    let ask = Ask { certificate: None, ..given.ask("t", "a", 1) };
    given.take(Change::Enrol(ask.clone())).unwrap();
    assert_eq!(
        given.known.enrol(&given.fleet, &ask, NOW),
        Ok(Enrolled::Wait { node: node("a"), new: false })
    );
    assert_eq!(given.known.admit(&node("a"), &shown(1, NOW), NOW), Err(Refused::Pending(node("a"))));
    // Its token may end meanwhile, and is not forgotten before it has its answer.
    given.now_ms += 30 * DAY;
    given.take(Change::PutToken(Token { expires_ms: given.now_ms + 1, ..token("u") })).unwrap();
    given.take(Change::Approve(node("a"))).unwrap();
    assert_eq!(given.known.enrol(&given.fleet, &ask, given.now_ms), Ok(Enrolled::Issue(node("a"))));
    // Nor when it was off when it was approved.
    given.take(Change::PutToken(Token { expires_ms: given.now_ms + 1, ..token("v") })).unwrap();
    assert_eq!(given.known.enrol(&given.fleet, &ask, given.now_ms), Ok(Enrolled::Issue(node("a"))));
    let effects = given.enrol("t", "a", 1).unwrap();
    assert!(effects.left.is_empty(), "what was wanted of it since it was approved is still wanted");
    assert_eq!(given.known.admit(&node("a"), &shown(1, given.now_ms), given.now_ms), Ok(()));
    assert_eq!(given.known.tokens["t"].used_by, [node("a")]);
}

#[test]
fn access_and_operators_are_put_once_and_the_last_admin_stays() {
    let mut given = Given::new();
    let access = |name: &str, write: &str| {
        let (read, write) = (vec!["fleet/v1/hub/#".to_owned()], vec![write.to_owned()]);
        let (name, created_by) = (name.to_owned(), "test".to_owned());
        Change::PutAccess(Access { name, read, write, password: None, key: None, created_ms: 0, created_by })
    };
    given.take(access("ha", "homeassistant/#")).unwrap();
    assert!(matches!(given.take(access("ha", "homeassistant/#")), Err(RegistryError::Exists { .. })));
    for write in ["fleet/v1/a/up/birth", "#", "+/x", "$SYS/x", "a/#/b", ""] {
        assert!(matches!(given.take(access("bad", write)), Err(RegistryError::Field { .. })), "{write}");
    }
    let gone = given.take(Change::RemoveAccess("ha".to_owned())).unwrap();
    assert_eq!(gone.cuts, [Cut::Tool("ha".to_owned())].into());
    assert!(matches!(given.take(Change::RemoveAccess("ha".to_owned())), Err(RegistryError::Unknown { .. })));

    let operator = |name: &str, role, n, expires_ms| Operator {
        name: name.to_owned(),
        role,
        token: key(n),
        created_ms: 0,
        created_by: "test".to_owned(),
        expires_ms,
        on: None,
        used_ms: None,
    };
    given.take(Change::PutOperator(operator("admin", Role::Admin, 1, None))).unwrap();
    given.take(Change::PutOperator(operator("brief", Role::Admin, 2, Some(NOW + 1)))).unwrap();
    let last = given.take(Change::RemoveOperator("admin".to_owned()));
    assert!(matches!(last, Err(RegistryError::Field { .. })), "{last:?}");
    let who = |n, now_ms| given.known.operator(&key(n), now_ms).map(|found| found.name.clone());
    assert_eq!(
        (who(1, NOW).as_deref(), who(2, NOW).as_deref(), who(3, NOW)),
        (Some("admin"), Some("brief"), None)
    );
    assert_eq!(who(2, NOW + 1), None, "it has ended");
}

fn field_token(id: &str, named: Option<&str>) -> FieldToken {
    FieldToken {
        id: id.to_owned(),
        text: [5; 32],
        created_ms: NOW,
        created_by: "operator test".to_owned(),
        expires_ms: None,
        labels: [("site".to_owned(), "hall".to_owned())].into(),
        named: named.is_some(),
        node: named.map(node),
        bound_ms: None,
    }
}

fn brought(id: &str) -> Brought {
    Brought { id: id.to_owned(), text: [5; 32], join: None }
}

fn not_served(refused: NotServed) -> Result<Effects, RegistryError> {
    Err(RegistryError::NotServed(refused))
}

impl Given {
    fn serve(&mut self, token: &str, id: &str) -> Result<Effects, RegistryError> {
        self.take(Change::Serve(brought(token), node(id)))
    }

    fn served(&self, brought: &Brought, asked: Option<&str>) -> Result<Served, NotServed> {
        let asked = asked.map(node);
        self.known.serve(&self.fleet, brought, asked.as_ref(), self.now_ms)
    }

    fn heard(&mut self, id: &str) {
        let mut record = Record::new(node(id), NOW);
        record.session = Some(fleet_schemas::SessionId([1; 8]));
        self.fleet.insert(Node::new(self.fleet.number_after(0), record));
    }
}

#[test]
fn a_field_token_serves_the_first_node_that_comes_and_no_other() {
    let mut given = Given::new();
    given.take(Change::PutField(field_token("f", None))).unwrap();
    assert_eq!(given.served(&brought("f"), None), Err(NotServed::NoNode("f".into())));
    assert_eq!(given.served(&brought("f"), Some("a")), Ok(Served::First(node("a"))));
    let effects = given.serve("f", "a").unwrap();
    assert_eq!(effects.identities, [Row::Field("f".into())].into());
    assert_eq!(given.fleet.nodes["a"].record.labels["site"], "hall", "a stub");
    // Again and again, and also without a name.
    assert!(given.serve("f", "a").unwrap().nothing_to_write());
    assert_eq!(given.served(&brought("f"), None), Ok(Served::Same(node("a"))));
    let other = NotServed::Other { token: "f".into(), serves: node("a"), asked: node("b") };
    assert_eq!(given.serve("f", "b"), not_served(other));
    let guess = Brought { text: [6; 32], ..brought("f") };
    assert_eq!(given.served(&guess, Some("a")), Err(NotServed::Unknown));
    // Taken back: at once.
    given.take(Change::RemoveField("f".into())).unwrap();
    assert_eq!(given.serve("f", "a"), not_served(NotServed::Unknown));
    assert!(given.take(Change::RemoveField("f".into())).is_err());
}

#[test]
fn a_field_token_takes_nobody_s_place_unless_an_admin_named_it() {
    let mut given = Given::joined("certified", 1);
    given.heard("by-secret");
    given.take(Change::PutField(field_token("f", None))).unwrap();
    given.take(Change::PutField(field_token("g", None))).unwrap();
    given.serve("g", "taken").unwrap();
    assert_eq!(given.serve("f", "certified"), not_served(NotServed::Certified(node("certified"))));
    assert_eq!(given.serve("f", "by-secret"), not_served(NotServed::Known(node("by-secret"))));
    assert_eq!(given.serve("f", "taken"), not_served(NotServed::Known(node("taken"))));
    // Named: of one that is known, and beside another token, so that tokens can be changed.
    given.take(Change::PutField(field_token("h", Some("by-secret")))).unwrap();
    let effects = given.serve("h", "by-secret").unwrap();
    assert_eq!(effects.cuts.len(), 1, "whoever was there by a secret is cut");
    assert_eq!(effects.left, [node("by-secret")].into(), "and it may be another machine");
    given.take(Change::PutField(field_token("i", Some("taken")))).unwrap();
    given.fleet.nodes.get_mut("taken").unwrap().record.session = Some(fleet_schemas::SessionId([1; 8]));
    assert!(given.serve("i", "taken").unwrap().left.is_empty(), "the same machine under another token");
    assert_eq!(given.served(&brought("g"), None), Ok(Served::Same(node("taken"))));
    let other = NotServed::Other { token: "h".into(), serves: node("by-secret"), asked: node("a") };
    assert_eq!(given.serve("h", "a"), not_served(other));
    assert!(given.take(Change::PutField(field_token("j", Some("certified")))).is_err());
    // Revoked: whatever token it has.
    given.take(Change::Revoke { node: node("taken"), reason: "stolen".into() }).unwrap();
    assert_eq!(given.served(&brought("g"), None), Err(NotServed::Revoked(node("taken"))));
    // And a machine with a certificate does not take a field node's place without a word from an admin.
    given.heard("by-http");
    given.take(Change::PutToken(token("t2"))).unwrap();
    assert_eq!(given.enrol("t2", "by-http", 3), refused(Refused::NodeExists(node("by-http"))));
}

#[test]
fn a_field_token_ends_and_its_terms_make_sense() {
    let mut given = Given::new();
    let brief = FieldToken { expires_ms: Some(NOW + 1_000), ..field_token("f", None) };
    given.take(Change::PutField(brief)).unwrap();
    given.serve("f", "a").unwrap();
    given.now_ms += 1_000;
    assert_eq!(given.serve("f", "a"), not_served(NotServed::Expired("f".into())));
    for bad in [
        FieldToken { expires_ms: Some(NOW), ..field_token("x", None) },
        FieldToken { labels: [("k".to_owned(), "v".repeat(64))].into(), ..field_token("x", None) },
    ] {
        assert!(matches!(given.take(Change::PutField(bad)), Err(RegistryError::Field { .. })));
    }
    assert!(matches!(
        given.take(Change::PutField(field_token("f", None))),
        Err(RegistryError::Exists { .. })
    ));
}

#[test]
fn the_text_of_a_join_token_serves_one_field_node_and_is_used_by_it() {
    let mut given = Given::new();
    given.take(Change::PutToken(token("t"))).unwrap();
    let join = Brought { id: "t".into(), text: [5; 32], join: Some([7; 32]) };
    let wrong = Brought { join: Some([8; 32]), ..join.clone() };
    assert_eq!(given.served(&wrong, Some("a")), Err(NotServed::Unknown));
    let effects = given.take(Change::Serve(join.clone(), node("a"))).unwrap();
    assert_eq!(effects.identities, [Row::Token("t".into()), Row::Field("t".into())].into());
    assert_eq!(given.fleet.nodes["a"].record.labels["site"], "plant");
    assert_eq!(given.enrol("t", "b", 1), refused(Refused::TokenUsed("t".into(), "a".into())));
    // Long after its own end, and after it was taken back as a join token.
    given.now_ms += 100 * DAY;
    given.take(Change::RemoveToken("t".into())).unwrap();
    assert_eq!(given.served(&join, Some("a")), Ok(Served::Same(node("a"))));
    // One that asks for more than a field agent can do is none for it.
    for more in [Token { approve: true, ..token("u") }, Token { replace: Some(node("a")), ..token("v") }] {
        let id = more.id.clone();
        let more = Token { expires_ms: given.now_ms + 1_000, ..more };
        given.take(Change::PutToken(more)).unwrap();
        let join = Brought { id: id.clone(), ..join.clone() };
        assert_eq!(given.served(&join, Some("c")), Err(NotServed::Join(id)));
    }
}
