//! `openapi.json`, which the hub serves: written down in [`tests`], and held against the routes and their answers.
//!
//! `FLEET_BLESS=1 cargo test -p fleet-manager --lib openapi` writes the file anew.

use axum::{
    http::header,
    response::{IntoResponse as _, Response},
};

const DOCUMENT: &str = include_str!("../../../schemas/openapi.json");

/// `GET /openapi.json`.
pub(super) async fn get() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    //! Shapes come from the types that are answered, roles from the table of routes; the rest stands here.

    use std::{collections::BTreeMap, fs, path::Path};

    use serde_json::{Map, Value, json};
    use utoipa::{ToSchema, openapi::RefOr};

    use super::super::{
        access, alerts, artifacts, backup, commands, config, enrolment, field_tokens, groups, join_tokens,
        log_level, operators, pki, releases,
        rights::{Needs, Right},
        shapes::{self, config as settings},
        sites, table,
    };

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/openapi.json");

    /// Components by name.
    #[derive(Default)]
    struct Shapes(BTreeMap<String, Value>);

    impl Shapes {
        fn of<T: ToSchema>(&mut self) -> Value {
            let mut list: Vec<(String, RefOr<utoipa::openapi::Schema>)> = Vec::new();
            T::schemas(&mut list);
            list.push((T::name().into_owned(), T::schema()));
            for (name, schema) in list {
                let schema = serde_json::to_value(schema).unwrap();
                let before = self.0.insert(name.clone(), schema.clone());
                assert!(before.is_none_or(|before| before == schema), "two shapes are called {name}");
            }
            json!({ "$ref": format!("#/components/schemas/{}", T::name()) })
        }
    }

    impl Shapes {
        /// A page `{items, next}` of these.
        fn page<T: ToSchema>(&mut self) -> Value {
            json!({
                "type": "object",
                "required": ["items", "next"],
                "properties": {
                    "items": {"type": "array", "items": self.of::<T>()},
                    "next": {"type": ["string", "null"], "description": "Hand it back as `cursor`; null on the last page."},
                },
            })
        }
    }

    /// What a route takes and gives.
    struct Does {
        says: &'static str,
        query: &'static [&'static str],
        body: Option<(&'static str, Value)>,
        status: u16,
        answer: Vec<(&'static str, Value)>,
    }

    fn does(says: &'static str, answer: Value) -> Does {
        Does { says, query: &[], body: None, status: 200, answer: vec![("application/json", answer)] }
    }

    fn gone(says: &'static str) -> Does {
        Does { status: 204, answer: Vec::new(), ..does(says, Value::Null) }
    }

    impl Does {
        fn query(self, query: &'static [&'static str]) -> Self {
            Self { query, ..self }
        }

        fn takes(self, body: Value) -> Self {
            self.takes_as("application/json", body)
        }

        fn takes_as(self, kind: &'static str, body: Value) -> Self {
            Self { body: Some((kind, body)), ..self }
        }

        fn status(self, status: u16) -> Self {
            Self { status, ..self }
        }

        fn given_as(self, kind: &'static str) -> Self {
            let answer = self.answer.into_iter().map(|(_, shape)| (kind, shape)).collect();
            Self { answer, ..self }
        }

        fn or(mut self, kind: &'static str, shape: Value) -> Self {
            self.answer.push((kind, shape));
            self
        }
    }

    const PAGE: &[&str] = &["limit", "cursor"];
    const CHANGE: &[&str] = &["dry_run", "revision"];

    fn parameter(name: &str) -> (&'static str, Value) {
        let (text, number, flag) =
            (json!({"type": "string"}), json!({"type": "integer", "minimum": 0}), json!({"type": "boolean"}));
        match name {
            "limit" => (
                "Items of a page.",
                json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
            ),
            "cursor" => ("The `next` of the page before.", text),
            "data" => (
                "What becomes of its history: it stays readable by the node's id, or it goes.",
                json!({"type": "string", "enum": ["keep", "purge"]}),
            ),
            "selector" => ("Nodes by label and field, such as `site=roof,kind=picclaw`.", text),
            "group" => ("A saved selector.", text),
            "node" => ("A node's id.", text),
            "state" => ("Only these states, by commas.", text),
            "kind" => ("Only this kind; of a stream, kinds by commas.", text),
            "command" => ("Only this command, a UUID.", text),
            "device" => ("Only this device; empty is the node itself.", text),
            "metric" => ("Only this metric.", text),
            "severity" => ("Only these severities, by commas.", text),
            "rule" => ("Only of this rule.", text),
            "site" => ("Only of this site.", text),
            "causes" => ("Only what is not inhibited by another.", flag),
            "from_ms" => (
                "From then on, Unix milliseconds; an hour before the end unless given.",
                json!({"type": "integer"}),
            ),
            "to_ms" => ("Before then, Unix milliseconds; now unless given.", json!({"type": "integer"})),
            "step_ms" => (
                "One point for so many milliseconds; every sample unless given.",
                json!({"type": "integer", "minimum": 1}),
            ),
            "agg" => (
                "What a point is: `avg` unless given.",
                json!({"type": "string", "enum": ["avg", "min", "max", "last", "sum", "count"]}),
            ),
            "dry_run" => ("Only tell what would change.", flag),
            "revision" => ("The revision that this follows; another is refused (409).", number),
            "verify" => ("Count every stored record anew.", flag),
            "after" => (
                "The cursor of the last line that was read, or `start` for the oldest held; from now on unless given.",
                text,
            ),
            "follow" => ("Stay, and tell what comes: true unless given.", flag),
            "who" => ("Only by this one.", text),
            "action" => ("Only this action.", text),
            "since_ms" => ("From then on, Unix milliseconds.", json!({"type": "integer"})),
            "external" => ("Labels that Prometheus adds, to be taken off the matchers.", text),
            other => panic!("say what the parameter {other} is"),
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table: one line for each route")]
    fn described(s: &mut Shapes) -> Vec<(&'static str, &'static str, Does)> {
        let text = || json!({"type": "string"});
        let any = || json!({"type": "object"});
        let layer = [("", "of the fleet"), ("/{kind}/{name}", "of a group, site or node")];
        let mut all = vec![
            ("GET", "/livez", does("Whether the process lives.", any())),
            ("GET", "/readyz", does("Whether batches are stored and acked; 503 with the reasons when not.", any())),
            ("GET", "/version", does("The build, and the hub's clock.", any())),
            ("GET", "/openapi.json", does("This document.", any())),
            ("GET", "/metrics", does("The page that Prometheus reads.", text()).given_as("text/plain")),
            ("GET", "/api/v1/status", does("How the hub is.", s.of::<shapes::Status>())),
            ("GET", "/api/v1/nodes", does("Nodes.", s.page::<shapes::Node>()).query(&["selector", "group", "limit", "cursor"])),
            ("POST", "/api/v1/nodes/import", does("Places, names and labels of many nodes.", s.of::<shapes::Import>()).query(&["dry_run"]).takes_as("text/csv", text())),
            ("GET", "/api/v1/nodes/{id}", does("One node.", s.of::<shapes::Node>())),
            ("PATCH", "/api/v1/nodes/{id}", does("Changes name, site, location and labels (RFC 7386).", s.of::<shapes::Node>()).takes_as("application/merge-patch+json", any())),
            ("GET", "/api/v1/nodes/{id}/telemetry", does("Samples by series.", s.of::<shapes::Telemetry>()).or("text/csv", text()).query(&["device", "metric", "from_ms", "to_ms", "step_ms", "agg"])),
            ("GET", "/api/v1/nodes/{id}/events", does("Events of a node, newest first.", s.page::<shapes::Event>()).query(PAGE)),
            ("GET", "/api/v1/nodes/{id}/devices", does("Devices behind a node.", s.page::<shapes::Device>())),
            ("GET", "/api/v1/nodes/{id}/commands", does("Commands of a node, newest first.", s.page::<shapes::Command>()).query(&["state", "kind", "limit", "cursor"])),
            ("GET", "/api/v1/nodes/{id}/why", does("Why a node is as it is.", s.of::<shapes::NodeWhy>())),
            ("GET", "/api/v1/commands", does("Commands, newest first.", s.page::<shapes::Command>()).query(&["node", "state", "kind", "limit", "cursor"])),
            ("POST", "/api/v1/commands", does("Has nodes do something.", s.of::<shapes::BriefCommand>()).status(202).takes(s.of::<commands::Ask>())),
            ("GET", "/api/v1/commands/{id}", does("One command and where it stands.", s.of::<shapes::Command>()).query(&["node", "state", "limit", "cursor"])),
            ("GET", "/api/v1/commands/{id}/why", does("Why a command stands where it does.", s.of::<shapes::CommandWhy>()).query(&["node", "state", "limit", "cursor"])),
            ("POST", "/api/v1/commands/{id}/cancel", does("Cancels what is not over.", s.of::<shapes::BriefCommand>()).status(202).takes(s.of::<commands::CancelAsk>())),
            ("POST", "/api/v1/commands/{id}/approve-held", does("Lets a command go on that is held since the hub was restored.", s.of::<shapes::BriefCommand>()).status(202).takes(s.of::<commands::ApproveAsk>())),
            ("POST", "/api/v1/backup", does("The hub at this moment: a tar, compressed by zstd, with everything that `fleet restore` needs. Not encrypted, and whole only if its last entry is there.", json!({"type": "string", "format": "binary"})).given_as("application/zstd").takes(s.of::<backup::Wanted>())),
            ("GET", "/api/v1/events", does("Events, newest first.", s.page::<shapes::Event>()).query(PAGE)),
            ("GET", "/api/v1/nodes/{id}/config", does("What a node is to be and is, with where each key comes from.", s.of::<settings::NodeConfig>())),
            ("POST", "/api/v1/nodes/{id}/config/retry", does("Has a node try a document again that failed.", s.of::<settings::NodeConfig>()).takes(any())),
            ("GET", "/api/v1/config", does("Layers of configuration.", s.page::<settings::BriefLayer>()).query(PAGE)),
            ("GET", "/api/v1/config-schema", does("What documents must hold to.", s.of::<settings::Schema>())),
            ("PUT", "/api/v1/config-schema", does("Sets what documents must hold to (JSON Schema 2020-12).", s.of::<settings::Schema>()).query(CHANGE).takes(any())),
            ("DELETE", "/api/v1/config-schema", does("Lets documents be anything.", s.of::<settings::Schema>()).query(CHANGE)),
            ("GET", "/api/v1/config-schema/revisions", does("Its revisions, newest first.", s.page::<settings::Revision>()).query(PAGE)),
            ("GET", "/api/v1/groups", does("Saved selectors.", s.page::<shapes::Group>()).query(PAGE)),
            ("GET", "/api/v1/groups/{name}", does("One saved selector.", s.of::<shapes::Group>())),
            ("PUT", "/api/v1/groups/{name}", does("Saves a selector; 201 when it is new.", s.of::<shapes::Group>()).takes(s.of::<groups::Wanted>())),
            ("DELETE", "/api/v1/groups/{name}", gone("Forgets a saved selector; the nodes stay.")),
            ("GET", "/api/v1/sites", does("Sites by name, with their time zones.", s.page::<shapes::Site>()).query(PAGE)),
            ("GET", "/api/v1/sites/{name}", does("One site.", s.of::<shapes::Site>())),
            ("PUT", "/api/v1/sites/{name}", does("Says in which time zone a site is.", s.of::<shapes::Site>()).takes(s.of::<sites::Wanted>())),
            ("DELETE", "/api/v1/sites/{name}", gone("Forgets the time zone of a site; its nodes stay.")),
            ("GET", "/api/v1/ledger", does("The account of every record.", s.of::<shapes::Ledger>()).query(&["node", "verify"])),
            ("GET", "/api/v1/stream", does("What is committed, as server-sent events.", text()).given_as("text/event-stream").query(&["node", "kind", "command"])),
            ("GET", "/api/v1/whoami", does("The holder of the token.", s.of::<shapes::Whoami>())),
            ("POST", "/api/v1/nodes/{id}/approve", does("Lets a node in that waits.", s.of::<shapes::Node>()).takes(s.of::<enrolment::Nothing>())),
            ("DELETE", "/api/v1/nodes/{id}", gone("Takes a node out of the fleet: revoked, its retained topics cleared, what it still has written off.").query(&["data"])),
            ("GET", "/api/v1/log-level", does("How much the hub logs.", s.of::<shapes::LogLevel>())),
            ("PUT", "/api/v1/log-level", does("Changes how much the hub logs, until it starts again.", s.of::<shapes::LogLevel>()).takes(s.of::<log_level::Wanted>())),
            ("POST", "/api/v1/nodes/{id}/revoke", does("Shuts a node out and cuts its session.", s.of::<shapes::Node>()).takes(s.of::<enrolment::Why>())),
            ("GET", "/api/v1/join-tokens", does("Tokens that let nodes in.", s.page::<shapes::JoinToken>()).query(PAGE)),
            ("POST", "/api/v1/join-tokens", does("A new one; the token is shown this once.", s.of::<shapes::NewJoinToken>()).status(201).takes(s.of::<join_tokens::Wanted>())),
            ("DELETE", "/api/v1/join-tokens/{id}", gone("Takes a token away.")),
            ("GET", "/api/v1/field-tokens", does("Tokens of agents that speak the field's dialects.", s.page::<shapes::FieldToken>()).query(PAGE)),
            ("POST", "/api/v1/field-tokens", does("A new one; the token is shown this once.", s.of::<shapes::NewFieldToken>()).status(201).takes(s.of::<field_tokens::Wanted>())),
            ("DELETE", "/api/v1/field-tokens/{id}", gone("Takes a token away.")),
            ("GET", "/api/v1/genes", does("Texts that agents published.", s.page::<shapes::Gene>()).query(PAGE)),
            ("GET", "/api/v1/genes/{digest}", does("One of them.", s.of::<shapes::Gene>())),
            ("GET", "/api/v1/operators", does("Operators.", s.page::<shapes::Operator>()).query(PAGE)),
            ("POST", "/api/v1/operators", does("A new one; the token is shown this once.", s.of::<shapes::NewOperator>()).status(201).takes(s.of::<operators::Wanted>())),
            ("DELETE", "/api/v1/operators/{name}", gone("Takes an operator away.")),
            ("GET", "/api/v1/access", does("Tools that may read or write topics.", s.page::<shapes::Access>()).query(PAGE)),
            ("POST", "/api/v1/access", does("A new one; its password is shown this once.", s.of::<shapes::NewAccess>()).status(201).takes(s.of::<access::Wanted>())),
            ("DELETE", "/api/v1/access/{name}", gone("Takes a tool away.")),
            ("GET", "/api/v1/audit", does("What was done by whom, newest first.", s.page::<shapes::AuditEntry>()).query(&["limit", "cursor", "who", "action", "since_ms"])),
            ("GET", "/api/v1/pki", does("Certificates, and the nodes that a change waits for.", s.of::<shapes::Pki>())),
            ("POST", "/api/v1/pki/rotate", does("Changes the server's certificate, or the CA.", s.of::<shapes::Pki>()).takes(s.of::<pki::Wanted>())),
            ("GET", "/api/v1/pki/ca.pem", does("The CA certificates.", text()).given_as("application/x-pem-file")),
            ("GET", "/api/v1/alerts", does("Alerts, newest first.", s.page::<shapes::Alert>()).query(&["state", "severity", "rule", "node", "site", "causes", "limit", "cursor"])),
            ("GET", "/api/v1/alerts/{id}", does("One alert.", s.of::<shapes::Alert>())),
            ("POST", "/api/v1/alerts/{id}/acknowledge", does("Somebody takes care of it.", s.of::<shapes::Alert>()).takes(s.of::<alerts::Acknowledge>())),
            ("POST", "/api/v1/alerts/{id}/silence", does("Silences its rule at its node and device.", s.of::<shapes::Silence>()).status(201).takes(s.of::<alerts::Wanted>())),
            ("GET", "/api/v1/silences", does("Silences that have not ended.", s.page::<shapes::Silence>()).query(PAGE)),
            ("POST", "/api/v1/silences", does("A new silence.", s.of::<shapes::Silence>()).status(201).takes(s.of::<alerts::Wanted>())),
            ("DELETE", "/api/v1/silences/{id}", gone("Ends a silence; what still fires is told at once.")),
            ("GET", "/api/v1/receivers", does("Who is told of alerts.", s.page::<shapes::Receiver>()).query(PAGE)),
            ("POST", "/api/v1/receivers/{name}/test", does("Tells a receiver that somebody tries it.", s.of::<shapes::Receiver>()).status(202)),
            ("GET", "/api/v1/rules", does("The rules, and what was refused.", s.of::<shapes::Rules>()).or("application/yaml", text()).query(PAGE)),
            ("PUT", "/api/v1/rules", does("Sets the rules: the text of rules.yaml.", s.of::<shapes::Rules>()).takes_as("application/yaml", text())),
            ("PUT", "/api/v1/rules/kits/{name}", does("Takes a kit's alerts.yaml as it is.", s.of::<shapes::Rules>()).takes_as("application/yaml", text())),
            ("GET", "/api/v1/rollouts", does("Rollouts, newest first.", s.page::<shapes::Rollout>()).query(&["state", "limit", "cursor"])),
            ("POST", "/api/v1/rollouts", does("Rolls a signed release out in waves; with `dry_run` it answers 200 with a `RolloutDraft` and makes nothing.", s.of::<shapes::Rollout>()).status(201).query(&["dry_run"]).takes(s.of::<shapes::RolloutAsk>())),
            ("GET", "/api/v1/rollouts/{id}", does("One rollout, with a page of its nodes and where each stands.", s.of::<shapes::Rollout>()).query(&["state", "limit", "cursor"])),
            ("GET", "/api/v1/rollouts/{id}/why", does("Why a rollout is where it is.", s.of::<shapes::RolloutWhy>())),
            ("POST", "/api/v1/rollouts/{id}/pause", does("Tells no further node.", s.of::<shapes::Rollout>()).takes(s.of::<shapes::RolloutReason>())),
            ("POST", "/api/v1/rollouts/{id}/resume", does("Goes on; what failed until now does not count again.", s.of::<shapes::Rollout>()).takes(s.of::<shapes::RolloutReason>())),
            ("POST", "/api/v1/rollouts/{id}/abort", does("Calls it off; nodes that have the release keep it.", s.of::<shapes::Rollout>()).takes(s.of::<shapes::RolloutReason>())),
            ("POST", "/api/v1/rollouts/{id}/rollback", does("Calls it off, and takes every node that has the release back.", s.of::<shapes::Rollout>()).takes(s.of::<shapes::RolloutReason>())),
            ("POST", "/api/v1/rollouts/{id}/approve", does("Lets it begin.", s.of::<shapes::Rollout>()).takes(s.of::<shapes::RolloutReason>())),
            ("DELETE", "/api/v1/rules/kits/{name}", gone("Takes a kit's rules away; its alerts are over.")),
            ("GET", "/api/v1/artifacts", does("Artifacts, by digest.", s.page::<shapes::Artifact>()).query(PAGE)),
            ("POST", "/api/v1/artifacts", does("Begins an upload, or tells where it stands; complete at once when the bytes are here.", s.of::<shapes::Upload>()).status(201).takes(s.of::<artifacts::Wanted>())),
            ("GET", "/api/v1/artifacts/{digest}", does("One artifact.", s.of::<shapes::Artifact>())),
            ("DELETE", "/api/v1/artifacts/{digest}", gone("Removes an artifact that no release names, or an upload.")),
            ("GET", "/api/v1/artifacts/{digest}/upload", does("Where an upload stands; also as Upload-Offset and Upload-Length.", s.of::<shapes::Upload>())),
            ("PATCH", "/api/v1/artifacts/{digest}/upload", does("More bytes, from the header Upload-Offset on; the last ones make it an artifact. No bytes do where all are there and it is not complete: the hub was cut at its end.", s.of::<shapes::Upload>()).takes_as("application/offset+octet-stream", json!({"type": "string", "format": "binary"}))),
            ("GET", "/api/v1/releases", does("Releases, by kind, name and version.", s.page::<shapes::Release>()).query(PAGE)),
            ("GET", "/api/v1/releases/metadata", does("Where the signed metadata stands, and the hub's public keys.", s.of::<shapes::ReleaseMetadata>())),
            ("PUT", "/api/v1/releases/metadata", does("Takes the next root.json (admins) and targets.json as they were signed.", s.of::<shapes::ReleaseMetadata>()).takes(s.of::<releases::Wanted>())),
            ("GET", "/api/v1/releases/metadata/{file}", does("A file of the signed metadata (TUF 1.0), such as timestamp.json or 1.root.json.", any())),
            ("GET", "/api/v1/feed", does("Every record and event that was committed, a JSON object a line, gapless from a cursor on. Here `limit` counts lines, any number of them unless given.", text()).given_as("application/x-ndjson").query(&["after", "follow", "limit", "node", "selector", "group"])),
            ("POST", "/api/v1/prom/read", does("Remote read of Prometheus: snappy, protobuf.", text()).given_as("application/x-protobuf").query(&["external"]).takes_as("application/x-protobuf", text())),
        ];
        for (path, whose) in layer {
            let path = |rest: &str| -> &'static str {
                let whole =
                    if path.is_empty() { "/api/v1/config/fleet" } else { "/api/v1/config/{kind}/{name}" };
                Box::leak(format!("{whole}{rest}").into_boxed_str())
            };
            let says =
                |what: &str| -> &'static str { Box::leak(format!("{what} {whose}.").into_boxed_str()) };
            all.extend([
                ("GET", path(""), does(says("The layer"), s.of::<settings::Layer>())),
                (
                    "PUT",
                    path(""),
                    does(says("Sets the layer"), s.of::<settings::Changed>()).query(CHANGE).takes(any()),
                ),
                (
                    "PATCH",
                    path(""),
                    does(says("Changes the layer (RFC 7386)"), s.of::<settings::Changed>())
                        .query(CHANGE)
                        .takes_as("application/merge-patch+json", any()),
                ),
                (
                    "DELETE",
                    path(""),
                    does(says("Empties the layer"), s.of::<settings::Changed>()).query(CHANGE),
                ),
                (
                    "POST",
                    path("/rollback"),
                    does(says("Goes back to an earlier revision"), s.of::<settings::Changed>())
                        .query(CHANGE)
                        .takes(s.of::<config::Back>()),
                ),
                (
                    "GET",
                    path("/revisions"),
                    does(says("Revisions, newest first,"), s.page::<settings::Revision>()).query(PAGE),
                ),
                (
                    "GET",
                    path("/revisions/{revision}"),
                    does(says("One revision"), s.of::<settings::Revision>()),
                ),
            ]);
        }
        all
    }

    fn operation(method: &str, path: &'static str, does: &Does, needs: Needs, problem: &Value) -> Value {
        let in_path = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let mut parameters: Vec<Value> = in_path
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        for name in does.query {
            let (says, schema) = parameter(name);
            parameters.push(json!({"name": name, "in": "query", "description": says, "schema": schema}));
        }
        let content = |kinds: &[(&str, Value)]| -> Value {
            let kinds = kinds.iter().map(|(kind, shape)| ((*kind).to_owned(), json!({"schema": shape})));
            Value::Object(kinds.collect())
        };
        let mut answer = json!({"description": "As asked."});
        if !does.answer.is_empty() {
            answer["content"] = content(&does.answer);
        }
        let mut responses = Map::new();
        if does.status == 200 && method == "PUT" && path.starts_with("/api/v1/groups/") {
            responses.insert("201".to_owned(), answer.clone());
        }
        if path == "/readyz" {
            responses.insert("503".to_owned(), answer.clone());
        }
        responses.insert(does.status.to_string(), answer);
        let wrong = json!({
            "description": "What went wrong, where, and what to do (RFC 9457).",
            "content": {"application/problem+json": {"schema": problem}},
        });
        responses.insert("default".to_owned(), wrong);
        let role = match needs {
            Needs::Nothing => "nothing".to_owned(),
            Needs::Here => "a request from the hub's machine, or the role viewer".to_owned(),
            Needs::Role(role) | Needs::Session(role) => format!("the role {role}"),
        };
        let mut operation = json!({
            "summary": does.says,
            "description": format!("Needs {role}."),
            "responses": responses,
        });
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
        if let Some((kind, shape)) = &does.body {
            operation["requestBody"] = json!({"content": content(&[(kind, shape.clone())])});
        }
        operation["security"] = if needs == Needs::Nothing { json!([]) } else { json!([{"token": []}]) };
        operation
    }

    fn document() -> String {
        let mut shapes = Shapes::default();
        let problem = shapes.of::<shapes::Problem>();
        shapes.of::<shapes::RolloutDraft>();
        let described = described(&mut shapes);
        let table = table();
        let key = |right: &Right| (right.method.to_string(), right.path);
        let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
        for (method, path, does) in &described {
            let found = table.iter().find(|right| key(right) == ((*method).to_owned(), *path));
            let right = found.unwrap_or_else(|| panic!("{method} {path} is described, and no route"));
            let operation = operation(method, path, does, right.needs, &problem);
            let before = paths.entry(path).or_default().insert(method.to_lowercase(), operation);
            assert!(before.is_none(), "{method} {path} is described twice");
        }
        // The console's pages are for people.
        for right in table.iter().filter(|right| right.path.starts_with("/api/")) {
            let known = paths
                .get(right.path)
                .is_some_and(|item| item.contains_key(&right.method.as_str().to_lowercase()));
            assert!(known, "describe {} {} in api/openapi.rs", right.method, right.path);
        }
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Clawland Fleet: the hub's HTTP API",
                "description": "Times are Unix milliseconds. Lists are pages `{items, next}`. A write is answered after it is committed; `Idempotency-Key` makes a repeated POST one.",
                "version": "1",
                "license": {"name": "BUSL-1.1"},
            },
            "servers": [{"url": "http://127.0.0.1:8080"}],
            "paths": paths,
            "components": {
                "schemas": shapes.0,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "An operator's token: `fleet operator create`."}},
            },
        });
        serde_json::to_string_pretty(&document).unwrap() + "\n"
    }

    #[test]
    fn openapi_is_the_document_in_schemas_and_has_every_route() {
        let made = document();
        if std::env::var_os("FLEET_BLESS").is_some() {
            fs::write(Path::new(FILE), &made).unwrap();
        }
        let found = fs::read_to_string(FILE).unwrap();
        assert!(found == made, "schemas/openapi.json is not what is described; bless it with FLEET_BLESS=1");
    }
}
