//! `GET /openapi.json` against what the hub answers: shapes and parameters.

use jsonschema::Validator;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::given::{Node, Site, sign_greeter};

/// A validator for one schema of the document.
fn validator(document: &Value, schema: &Value) -> Validator {
    // OpenAPI 3.1 is JSON Schema 2020-12: references into the components stay valid beside them.
    let schema = json!({ "allOf": [schema], "components": document["components"] });
    jsonschema::validator_for(&schema).unwrap()
}

/// A site with something of everything that lists show.
async fn site(wrong: &mut Vec<String>) -> Site {
    let site = Site::start().await;
    let mut node = Node::born(&site, "node-1").await;
    node.measures(&[(1, "", "cpu_percent", 1.5), (2, "probe", "temperature", 21.0)]).await;
    node.told("note", "something happened").await;
    let made = [
        (Method::PUT, "/api/v1/groups/all", r#"{"selector": "kind=picclaw"}"#),
        (Method::PATCH, "/api/v1/nodes/node-1", r#"{"site": "roof", "location": {"lat": 1, "lon": 2}}"#),
        (Method::PUT, "/api/v1/config/fleet", r#"{"note": "a"}"#),
        (Method::PATCH, "/api/v1/config/fleet", r#"{"note": "b"}"#),
        (Method::PUT, "/api/v1/config/site/roof", r#"{"note": "c"}"#),
        (Method::PUT, "/api/v1/config-schema", r#"{"type": "object"}"#),
        (Method::POST, "/api/v1/commands", r#"{"nodes": ["node-1"], "kind": "ping"}"#),
        (Method::POST, "/api/v1/join-tokens", r#"{"uses": 2}"#),
        (Method::POST, "/api/v1/field-tokens", "{}"),
        (Method::POST, "/api/v1/operators", r#"{"name": "eve", "role": "viewer"}"#),
        (Method::POST, "/api/v1/rollouts", r#"{"release": "greeter@1.0.0", "all": true}"#),
        (Method::POST, "/api/v1/silences", r#"{"site": "roof", "for_s": 60}"#),
        (Method::POST, "/api/v1/access", r#"{"name": "grafana", "read": ["fleet/v1/hub/#"]}"#),
    ];
    sign_greeter(&site.hub);
    let document = site.get("/openapi.json").await;
    for (method, path, body) in made {
        let (status, answer) = site.ask(method.clone(), path, Some(body)).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        let kind = ["group", "site"].iter().find(|kind| path.starts_with(&format!("/api/v1/config/{kind}/")));
        let template = match kind {
            Some(_) => "/api/v1/config/{kind}/{name}".to_owned(),
            None => path.replace("node-1", "{id}").replace("/all", "/{name}"),
        };
        let operation = &document["paths"][&template][method.as_str().to_lowercase()];
        let schema = &operation["responses"][status.as_str()]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{method} {template} answers {status}, which is not described");
        hold(wrong, &document, schema, &answer, &format!("{method} {path}"));
        let body: Value = serde_json::from_str(body).unwrap();
        let taken = operation["requestBody"]["content"].as_object().unwrap();
        taken.values().for_each(|taken| hold(wrong, &document, &taken["schema"], &body, path));
    }
    site
}

/// Notes what of an answer is not as its schema says.
fn hold(wrong: &mut Vec<String>, document: &Value, schema: &Value, answer: &Value, what: &str) {
    let validator = validator(document, schema);
    wrong.extend(
        validator.iter_errors(answer).map(|error| format!("{what}: {}: {error}", error.instance_path())),
    );
}

#[tokio::test]
async fn openapi_describes_what_is_answered_and_every_parameter() {
    let mut wrong = Vec::new();
    let site = site(&mut wrong).await;
    let document = site.get("/openapi.json").await;
    let command = site.get("/api/v1/commands").await["items"][0]["id"].as_str().unwrap().to_owned();
    let mut seen = 0;
    for (template, item) in document["paths"].as_object().unwrap() {
        let id = match () {
            () if template.contains("/commands/") => &command,
            () if template.contains("/rollouts/") => "greeter-1.0.0-1",
            () => "node-1",
        };
        let name = if template.contains("/groups/") { "all" } else { "roof" };
        let path = template.replace("{id}", id).replace("{kind}", "site").replace("{name}", name);
        let path = path.replace("{revision}", "1");
        for (method, operation) in item.as_object().unwrap() {
            let known: Vec<&str> = (operation["parameters"].as_array().into_iter().flatten())
                .filter(|parameter| parameter["in"] == "query")
                .map(|parameter| parameter["name"].as_str().unwrap())
                .collect();
            let method: Method = method.to_uppercase().parse().unwrap();
            let (status, answer) = site.ask(method.clone(), &format!("{path}?nosuch=1"), None).await;
            if template.starts_with("/api/v1/") {
                if status != StatusCode::UNPROCESSABLE_ENTITY {
                    wrong.push(format!("{method} {path} takes any parameter: {status} {answer}"));
                    continue;
                }
                let told =
                    answer["errors"][0]["detail"].as_str().or(answer["detail"].as_str()).unwrap_or_default();
                let told = told.rsplit("known are ").next().unwrap().trim();
                let told: Vec<&str> = told.split(", ").filter(|name| !name.is_empty()).collect();
                if told != known {
                    wrong.push(format!("{method} {template} knows {told:?}, described are {known:?}"));
                }
            }
            let content = &operation["responses"]["200"]["content"];
            let only = content.as_object().filter(|content| content.len() == 1);
            let is_json = only.is_some_and(|content| content.contains_key("application/json"));
            // Of these there is none in this fleet, and nothing that changes is asked without a body.
            let is_none = [
                "/api/v1/genes/{digest}",
                "/api/v1/alerts/{id}",
                "/api/v1/artifacts/{digest}",
                "/api/v1/artifacts/{digest}/upload",
                "/api/v1/releases/metadata/{file}",
            ];
            let is_none = is_none.contains(&template.as_str());
            if method != Method::GET || !is_json || is_none {
                continue;
            }
            let answer = site.get(&path).await;
            hold(&mut wrong, &document, &content["application/json"]["schema"], &answer, &path);
            seen += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 25, "only {seen} answers were compared");
    site.stop().await;
}
