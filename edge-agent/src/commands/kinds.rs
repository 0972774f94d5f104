//! The kinds of commands that this agent does, and their parameters.
//!
//! Reads parameters and says no; does nothing.

use std::{collections::BTreeMap, fmt};

use ciborium::Value;
use fleet_schemas::{MetricName, command::Reason, update};
use serde::{Deserialize, Deserializer};

use super::allow::{Plan, Source, Wish};
use crate::{
    core::queue::{DEVICE, LOCAL, MOVE, RESTART, UPDATE, reason},
    devices::Order,
    identity::moving,
    logs,
    uplink::Judge,
};

/// Every kind, as refusals name them.
const KINDS: [&str; 9] = [DEVICE, "exec", LOCAL, LOGS, MOVE, "ping", "query", RESTART, UPDATE];
/// The kind that shows what the node logs.
pub(super) const LOGS: &str = "logs";

/// What a command asks for, read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Work {
    /// Tell the time.
    Ping,
    /// Run a program.
    Exec(Box<Plan>),
    /// Tell what the agent knows.
    Query(What),
    /// Show lines of logs.
    Logs(logs::line::Query),
    /// Leave for another hub.
    Move(Box<moving::Order>),
    /// Start the agent again.
    Restart,
    /// For an app on the node.
    Local,
    /// Tell a device.
    Device(Order),
    /// Run another release.
    Update(Box<update::Order>),
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    /// What `GET /api/v1/status` says.
    Status,
    /// What `GET /api/v1/outbox` says.
    Outbox,
    /// The machine and its figures.
    System,
    /// What `GET /api/v1/config` says.
    Config,
}

/// Knows which commands the node does.
#[derive(Debug, Clone)]
pub(crate) struct Kinds {
    /// The allow-list.
    pub(crate) allow: Source,
    /// Whether the agent can start itself again: not when it is a part of another program.
    pub(crate) restarts: bool,
    /// Whether devices are served here, so that they hear commands.
    pub(crate) devices: bool,
    /// Whether releases are taken.
    pub(crate) updates: Updates,
    /// Whether the node can leave for another hub.
    pub(crate) moves: Moves,
}

/// Whether the node can leave for another hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moves {
    /// It can.
    Can,
    /// It has no certificate: its hub is one on its own machine.
    NotJoined,
    /// Its configuration says which its hub is.
    Bound,
}

/// Whether releases are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Updates {
    /// They are.
    Taken,
    /// `agent.toml` says no.
    Off,
    /// The node has no certificate, and so no way to what is signed.
    NotJoined,
    /// Their account cannot be opened.
    Broken,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exec {
    name: Option<String>,
    #[serde(default)]
    args: BTreeMap<String, Word>,
    program: Option<String>,
    argv: Option<Vec<Word>>,
}

/// A value as people write it: text, a number, true or false.
#[derive(Debug)]
struct Word(String);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Restart {
    what: Thing,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Thing {
    Agent,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    what: What,
}

impl Kinds {
    /// What is to be done.
    ///
    /// # Errors
    /// Why it is not done.
    pub(super) fn read(&self, kind: &MetricName, params: &Value) -> Result<Work, Reason> {
        let bad = |usage: &str| {
            let message = format!("the parameters of {kind} are wrong; give {usage}");
            reason("bad_params", message, false)
        };
        match kind.as_str() {
            "ping" => Ok(Work::Ping),
            "exec" => self.allow.plan(&wish(params)?).map(|plan| Work::Exec(Box::new(plan))),
            "query" => {
                let query: Query = params
                    .deserialized()
                    .map_err(|_| bad("{what: status}, {what: outbox}, {what: config} or {what: system}"))?;
                Ok(Work::Query(query.what))
            }
            LOGS => logs::line::Query::read(params).map(Work::Logs).map_err(|why| {
                bad(&format!("{{unit, grep, priority, since_ms, after, last, wait_s}}, each of which may be left away ({why})"))
            }),
            RESTART => {
                let Restart { what: Thing::Agent } =
                    params.deserialized().map_err(|_| bad("{what: agent}"))?;
                if !self.restarts {
                    let message = "this agent is a part of another program; start that program again";
                    return Err(reason("not_restartable", message, false));
                }
                Ok(Work::Restart)
            }
            MOVE => {
                self.may_move()?;
                moving::Order::read(params).map(|order| Work::Move(Box::new(order))).map_err(|why| {
                    bad(&format!("{{hub: HOST:PORT, token: a join token of that hub}}, as `fleet node move` does ({why})"))
                })
            }
            LOCAL => Ok(Work::Local),
            DEVICE if !self.devices => {
                let message = "devices hear commands over the node's MQTT listener, which is off; write its address \
                               into agent.toml: [devices] listen = \"ADDRESS:1883\"";
                Err(reason("no_listener", message, false))
            }
            DEVICE => Order::read(params).map(Work::Device),
            UPDATE => {
                self.updates.check()?;
                let order = params.deserialized().map_err(|_| {
                    bad("{target: kind/name/version/arch, digest: SHA-256} as `fleet rollout` does")
                })?;
                Ok(Work::Update(Box::new(order)))
            }
            unknown => {
                let message =
                    format!("this agent knows no {unknown:?}, but {}; a newer agent may", KINDS.join(", "));
                Err(reason("unknown_kind", message, false))
            }
        }
    }
}

impl Kinds {
    fn may_move(&self) -> Result<(), Reason> {
        let no = |code, message| Err(reason(code, message, false));
        match self.moves {
            Moves::Can if self.restarts => Ok(()),
            Moves::Can => {
                no("not_restartable", "this agent is a part of another program, and stays with its hub")
            }
            Moves::NotJoined => no(
                "not_joined",
                "only a node with a certificate can move; stop its agent, and let it join the other hub: fleet-agent join HUB \
                 --token T",
            ),
            Moves::Bound => no(
                "bound",
                "this node is told where its hub is, by --hub, FLEET_HUB, or `url` under [hub] in agent.toml; take that away, \
                 and start its agent again",
            ),
        }
    }
}

impl Updates {
    fn check(self) -> Result<(), Reason> {
        let no = |code, message| Err(reason(code, message, false));
        match self {
            Self::Taken => Ok(()),
            Self::Off => no(
                "updates_off",
                "this node takes no updates; write enabled = true under [update] in its agent.toml",
            ),
            Self::NotJoined => no(
                "not_joined",
                "only a node with a certificate takes updates; let it join: fleet-agent join HUB --token T",
            ),
            Self::Broken => no(
                "updates_broken",
                "the account of updates (releases/update.redb) cannot be opened; look at the agent's log, and at its disk",
            ),
        }
    }
}

impl Judge for Kinds {
    fn judge(&self, kind: &MetricName, params: &Value) -> Result<(), Reason> {
        self.read(kind, params).map(drop)
    }
}

fn wish(params: &Value) -> Result<Wish, Reason> {
    let bad = |what: fmt::Arguments<'_>| {
        let message = format!("{what}; give {{name, args}} of the allow-list, or {{argv}}");
        reason("bad_params", message, false)
    };
    let exec: Exec = params.deserialized().map_err(|error| bad(format_args!("{error}")))?;
    let Exec { name, args, program, argv } = exec;
    let words = |argv: Vec<Word>| argv.into_iter().map(|Word(word)| word);
    match (name, program, argv) {
        (Some(name), None, None) => {
            Ok(Wish::Named { name, args: args.into_iter().map(|(key, Word(word))| (key, word)).collect() })
        }
        (None, None, Some(argv)) if args.is_empty() => Ok(Wish::Typed(words(argv).collect())),
        (None, Some(program), argv) if args.is_empty() => {
            Ok(Wish::Typed(std::iter::once(program).chain(words(argv.unwrap_or_default())).collect()))
        }
        (_, _, _) => Err(bad(format_args!("exec takes one way to say what to run"))),
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || serde::de::Error::custom("give a text, a number, true or false");
        match Value::deserialize(deserializer)? {
            Value::Text(text) => Ok(Self(text)),
            Value::Integer(number) => Ok(Self(i128::from(number).to_string())),
            Value::Float(number) => Ok(Self(number.to_string())),
            Value::Bool(yes) => Ok(Self(yes.to_string())),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn read(kind: &str, params: &Json) -> Result<Work, Reason> {
        let allow = "[command.df]\nprogram = \"df\"\nargs = [\"{n}\"]\nparams.n.type = \"int\"";
        let allow = Source { file: "/nonexistent/commands.toml".into(), otherwise: Some(allow.into()) };
        let params = if params.is_null() { Value::Null } else { Value::serialized(params).unwrap() };
        Kinds { allow, restarts: true, devices: true, updates: Updates::Taken, moves: Moves::Can }
            .read(&MetricName::parse(kind).unwrap(), &params)
    }

    #[test]
    fn updates_are_read_where_they_are_taken() {
        let digest = "ab".repeat(32);
        let order = json!({"target": "skill/greeter/1.2.0/any", "digest": digest});
        let Ok(Work::Update(read_order)) = read("update", &order) else { panic!() };
        assert_eq!(read_order.digest.to_string(), digest);
        assert_eq!(read("update", &json!({"target": "greeter"})).unwrap_err().code, "bad_params");
        for (updates, code) in [
            (Updates::Off, "updates_off"),
            (Updates::NotJoined, "not_joined"),
            (Updates::Broken, "updates_broken"),
        ] {
            let allow = Source { file: "/nonexistent/commands.toml".into(), otherwise: None };
            let kinds = Kinds { allow, restarts: true, devices: true, updates, moves: Moves::Can };
            let params = Value::serialized(&order).unwrap();
            assert_eq!(kinds.judge(&MetricName::parse("update").unwrap(), &params).unwrap_err().code, code);
        }
    }

    #[test]
    fn kinds_read_their_parameters() {
        assert_eq!(read("ping", &Json::Null), Ok(Work::Ping));
        assert_eq!(read("local", &json!({"kind": "blink"})), Ok(Work::Local));
        assert_eq!(read("query", &json!({"what": "system"})), Ok(Work::Query(What::System)));
        assert_eq!(read("restart", &json!({"what": "agent"})), Ok(Work::Restart));
        let query = logs::line::Query { last: Some(5), ..logs::line::Query::default() };
        assert_eq!(read("logs", &json!({"last": 5})), Ok(Work::Logs(query)));
        let ways = [
            json!({"name": "df", "args": {"n": 5}}),
            json!({"name": "df", "args": {"n": "5"}}),
            json!({"argv": ["df", "5"]}),
            json!({"argv": ["df", 5]}),
            json!({"program": "df", "argv": ["5"]}),
        ];
        for way in ways {
            let Ok(Work::Exec(plan)) = read("exec", &way) else { panic!("{way}") };
            assert_eq!(plan.args, ["5"], "{way}");
        }
    }

    #[test]
    fn a_command_for_a_device_needs_a_listener_that_it_hears() {
        let params = json!({"device": "shed", "action": "restart"});
        assert!(matches!(read("device", &params), Ok(Work::Device(_))));
        let allow = Source { file: "/nonexistent/commands.toml".into(), otherwise: None };
        let off = Kinds { allow, restarts: true, devices: false, updates: Updates::Off, moves: Moves::Can };
        let refused = off.read(&MetricName::parse("device").unwrap(), &Value::serialized(&params).unwrap());
        let refused = refused.unwrap_err();
        assert_eq!(refused.code, "no_listener");
        assert!(refused.message.contains("[devices] listen"), "{}", refused.message);
    }

    #[test]
    fn a_node_moves_only_if_it_can_leave() {
        let token = format!("fleet-join.{0}.t.{0}", "A".repeat(43));
        let params = json!({"hub": "hub-2.example", "token": token});
        assert!(matches!(read("move", &params), Ok(Work::Move(_))));
        assert_eq!(read("move", &json!({"hub": "hub-2.example"})).unwrap_err().code, "bad_params");
        for (restarts, moves, code) in [
            (false, Moves::Can, "not_restartable"),
            (true, Moves::NotJoined, "not_joined"),
            (true, Moves::Bound, "bound"),
        ] {
            let allow = Source { file: "/nonexistent/commands.toml".into(), otherwise: None };
            let kinds = Kinds { allow, restarts, devices: true, updates: Updates::Off, moves };
            let refused =
                kinds.read(&MetricName::parse("move").unwrap(), &Value::serialized(&params).unwrap());
            assert_eq!(refused.unwrap_err().code, code);
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_what_could() {
        for (kind, params, code) in [
            ("dance", Json::Null, "unknown_kind"),
            ("query", json!({"what": "weather"}), "bad_params"),
            ("query", Json::Null, "bad_params"),
            ("logs", json!({"last": 0}), "bad_params"),
            ("restart", json!({"what": "machine"}), "bad_params"),
            ("device", json!({"device": "shed"}), "bad_params"),
            ("exec", Json::Null, "bad_params"),
            ("exec", json!({"name": "df", "argv": ["df"]}), "bad_params"),
            ("exec", json!({"argv": [["df"]]}), "bad_params"),
            ("exec", json!({"shell": "df"}), "bad_params"),
            ("exec", json!({"argv": ["rm", "-rf", "/"]}), "not_allowed"),
        ] {
            let refused = read(kind, &params).unwrap_err();
            assert_eq!(refused.code, code, "{kind} {params}: {}", refused.message);
        }
        let unknown = read("dance", &Json::Null).unwrap_err().message;
        assert!(KINDS.iter().all(|kind| unknown.contains(kind)), "{unknown}");
    }
}
