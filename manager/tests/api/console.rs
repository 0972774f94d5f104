//! The console over HTTP: who gets in, what a page may do, that nothing said by a node becomes markup, what changes
//! live.

use futures_util::StreamExt as _;
use reqwest::{
    Client, Method, Response, StatusCode,
    header::{COOKIE, LOCATION, SET_COOKIE},
    redirect::Policy,
};

use crate::given::{Node, PATIENCE, Site, operator, sign_greeter};
use fleet_manager::core::identity::Role;

/// A browser: keeps cookies, follows nothing by itself.
pub(crate) struct Browser {
    client: Client,
    base: String,
    cookies: Vec<(String, String)>,
}

impl Browser {
    pub(crate) fn new(site: &Site) -> Self {
        let client = Client::builder().redirect(Policy::none()).build().unwrap();
        Self { client, base: site.url(""), cookies: Vec::new() }
    }

    /// One that has logged in.
    pub(crate) async fn of(site: &Site, token: &str) -> Self {
        let mut browser = Self::new(site);
        let answer = browser.log_in(token, "/").await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        browser
    }

    async fn log_in(&mut self, token: &str, next: &str) -> Response {
        let form = self.get("/login").await.text().await.unwrap();
        let csrf = csrf(&form);
        self.post("/login", &[("csrf", &csrf), ("token", token), ("next", next)]).await
    }

    fn cookie(&self) -> String {
        let pairs: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("; ")
    }

    fn keep(&mut self, answer: &Response) {
        for cookie in answer.headers().get_all(SET_COOKIE) {
            let (pair, attributes) = cookie.to_str().unwrap().split_once(';').unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            assert!(
                attributes.contains("HttpOnly") && attributes.contains("SameSite=Strict"),
                "{attributes}"
            );
            self.cookies.retain(|(of, _)| of != name);
            if !value.is_empty() {
                self.cookies.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.base)).header(COOKIE, self.cookie());
        let answer = request.header("accept", "text/html").send().await.unwrap();
        self.keep(&answer);
        answer
    }

    /// A page that must be there.
    pub(crate) async fn page(&mut self, path: &str) -> String {
        let answer = self.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.text().await.unwrap()
    }

    pub(crate) async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Response {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = self.client.post(format!("{}{path}", self.base)).header(COOKIE, self.cookie());
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        let answer = request.header("origin", &self.base).send().await.unwrap();
        self.keep(&answer);
        answer
    }

    /// A page's stream, read until `done` says so of a part: its id and its content.
    pub(crate) async fn until(&self, path: &str, done: impl Fn(&str, &str) -> bool) {
        let request = self.client.get(format!("{}{path}", self.base)).header(COOKIE, self.cookie());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut body = answer.bytes_stream();
        let mut text = String::new();
        let reading = async {
            loop {
                text.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
                while let Some(end) = text.find("\n\n") {
                    let message: String = text.drain(..end + 2).collect();
                    let Some(data) = message.lines().find_map(|line| line.strip_prefix("data: ")) else {
                        continue;
                    };
                    let parts: Vec<(String, String)> = serde_json::from_str(data).unwrap();
                    if parts.iter().any(|(id, html)| done(id, html)) {
                        return;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the page is told");
    }
}

/// The secret of a page's forms.
pub(crate) fn csrf(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"csrf\" value=\"").expect("a form with its secret");
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_logs_in_and_the_session_ends_with_it() {
    let site = Site::start().await;
    let token = operator(&site.hub, "ada", Role::Operator, None).await;
    let mut browser = Browser::new(&site);
    let away = browser.get("/?state=offline").await;
    assert_eq!(
        (away.status(), &away.headers()[LOCATION]),
        (StatusCode::SEE_OTHER, &"/login?next=%2F%3Fstate%3Doffline".parse().unwrap())
    );
    let wrong = browser.log_in("fleet_wrong", "/").await;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    let text = wrong.text().await.unwrap();
    assert!(text.contains("role=\"alert\"") && !text.contains("fleet_wrong"), "{text}");
    let answer = browser.log_in(&token, "/?state=offline").await;
    assert_eq!(
        (answer.status(), &answer.headers()[LOCATION]),
        (StatusCode::SEE_OTHER, &"/?state=offline".parse().unwrap())
    );
    let page = browser.page("/").await;
    assert!(page.contains(">ada</bdi>") && page.contains("Log out"), "{page}");
    // An operator that is removed is out, whatever cookies it has.
    let gone = fleet_manager::core::identity::Change::RemoveOperator("ada".to_owned());
    site.hub.intend("hub", fleet_manager::core::registry::Intent::Identity(gone)).await.unwrap();
    assert_eq!(browser.get("/").await.status(), StatusCode::SEE_OTHER);
    let mut other = Browser::of(&site, &site.admin).await;
    let secret = csrf(&other.page("/").await);
    assert_eq!(other.post("/logout", &[("csrf", &secret)]).await.status(), StatusCode::SEE_OTHER);
    assert_eq!(other.get("/").await.status(), StatusCode::SEE_OTHER);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_link_works_once() {
    let site = Site::start().await;
    let admin = site.hub.with_identities(|known| known.operators["admin"].token);
    let secret = site.sessions.link(admin, [7; 32], fleet_manager::clock::mono());
    let mut browser = Browser::new(&site);
    assert_eq!(browser.get(&format!("/login?link={secret}")).await.status(), StatusCode::SEE_OTHER);
    assert!(browser.page("/").await.contains(">admin</bdi>"));
    let mut late = Browser::new(&site);
    assert_eq!(late.get(&format!("/login?link={secret}")).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(late.get("/").await.status(), StatusCode::SEE_OTHER);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_without_its_session_s_secret_is_refused() {
    let site = Site::start().await;
    let mut browser = Browser::of(&site, &site.admin).await;
    let mut other = Browser::of(&site, &site.admin).await;
    let of_another = csrf(&other.page("/").await);
    for fields in [&[][..], &[("csrf", "")], &[("csrf", of_another.as_str())]] {
        assert_eq!(browser.post("/logout", fields).await.status(), StatusCode::FORBIDDEN, "{fields:?}");
    }
    browser.page("/").await;
    // The login form, too: nobody is logged in as somebody else by a foreign page.
    let mut fresh = Browser::new(&site);
    let answer = fresh.post("/login", &[("csrf", "x"), ("token", &site.admin)]).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(fresh.get("/").await.status(), StatusCode::SEE_OTHER);
    let secret = csrf(&browser.page("/").await);
    let foreign = browser.client.post(site.url("/logout")).header(COOKIE, browser.cookie());
    let foreign = foreign
        .header("origin", "http://evil.example")
        .header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(foreign.body(format!("csrf={secret}")).send().await.unwrap().status(), StatusCode::FORBIDDEN);
    // A cookie opens pages, and nothing of the API.
    let api = browser.client.get(site.url("/api/v1/nodes")).header(COOKIE, browser.cookie());
    assert_eq!(api.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_load_nothing_but_our_own_files() {
    let site = Site::start().await;
    let mut browser = Browser::of(&site, &site.admin).await;
    for path in ["/", "/login", "/nowhere", "/assets/fleet.js", "/api/v1/nodes"] {
        let answer = browser.get(path).await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
    }
    for path in ["/", "/login"] {
        let page = browser.page(path).await;
        for inline in ["<style", "style=", "onclick", "javascript:", "http://", "https://"] {
            assert!(!page.contains(inline), "{inline} in {path}");
        }
        for (at, _) in page.match_indices("<script") {
            assert!(page[at..].starts_with("<script src=\"/assets/"), "a script in {path}");
        }
    }
    let page = browser.page("/").await;
    let (_, style) = page.split_once("href=\"/assets/fleet.css").unwrap();
    let style = browser.get(&format!("/assets/fleet.css{}", style.split('"').next().unwrap())).await;
    assert_eq!(style.headers()["content-type"], "text/css; charset=utf-8");
    assert!(style.headers()["cache-control"].to_str().unwrap().contains("immutable"));
    assert!(include_str!("../../src/console/assets/fleet.js").lines().count() < 300, "a small script");
    site.stop().await;
}

/// Names as somebody would give them who means harm.
pub(crate) const HOSTILE: [&str; 3] =
    ["<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "\u{202e}gnihton\u{2066}"];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_says_is_text() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    for hostile in HOSTILE {
        let body = serde_json::json!({ "name": hostile, "site": hostile });
        let (status, told) =
            site.ask(reqwest::Method::PATCH, "/api/v1/nodes/edge-1", Some(&body.to_string())).await;
        // What the API takes is shown, and what it refuses is not there.
        let taken = status == StatusCode::OK;
        assert!(taken || status == StatusCode::UNPROCESSABLE_ENTITY, "{told}");
        node.told("door", hostile).await;
        let page = Browser::of(&site, &site.admin).await.page("/").await;
        assert!(!page.contains("<script>alert") && !page.contains("<img src=x"), "{page}");
        let escaped = hostile.replace('<', "&#60;").replace('>', "&#62;").replace('"', "&#34;");
        assert!(page.matches(&escaped).count() > usize::from(taken), "{escaped}: {page}");
    }
    node.told("long", &"x".repeat(4_000)).await;
    let page = Browser::of(&site, &site.admin).await.page("/").await;
    assert!(page.contains("xxx…") && !page.contains(&"x".repeat(1_000)));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_searched_and_told_what_changes() {
    let site = Site::start().await;
    let csv = (0..120).map(|n| format!("edge-{n:03},site-{}\n", n % 3)).collect::<String>();
    let request = site.client().post(site.url("/api/v1/nodes/import")).header("content-type", "text/csv");
    let answer = request.body(format!("id,site\n{csv}")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut browser = Browser::of(&site, &site.admin).await;
    let rows = |page: &str| page.matches("<tr id=\"node-").count();
    let page = browser.page("/").await;
    assert_eq!(rows(&page), 50);
    assert!(page.contains("1 to 50 of 120") && page.contains("120 in all"), "{page}");
    assert_eq!(rows(&browser.page("/?page=3").await), 20);
    assert_eq!(rows(&browser.page("/?q=EDGE-00").await), 10);
    assert_eq!(rows(&browser.page("/?site=site-1&q=00").await), 4);
    assert_eq!(rows(&browser.page("/?selector=site+in+(site-0)").await), 40);
    assert!(browser.page("/?selector=site+in+(").await.contains("at character"));
    assert!(browser.page("/?q=nobody").await.contains("No node is like that"));
    let told =
        browser.until("/live?q=edge-007", |id, html| id == "node-edge-007" && html.contains("state online"));
    // A page that is looked at again shows its list as it is then, and who is not on it any more is gone.
    let anew = |wanted: &'static str| move |id: &str, html: &str| id == "rows" && html.contains(wanted);
    browser.until("/live?q=edge-00", anew("<tr id=\"node-edge-009\">")).await;
    browser.until("/live?state=offline", anew("No node is like that")).await;
    let mut born = None;
    let birth = async { born = Some(Node::born(&site, "edge-007").await) };
    tokio::join!(told, birth);
    let counts =
        |id: &str, html: &str| id == "tiles" && html.contains("<b>1</b> <span class=\"state online\">");
    browser.until("/live", counts).await;
    let (status, _) = site.ask(Method::DELETE, "/api/v1/nodes/edge-001?data=keep", None).await;
    assert!(status.is_success(), "{status}");
    assert!(browser.page("/nodes/edge-001").await.contains("edge-001"), "its history is shown");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_called_well_by_a_part_of_the_alerts() {
    let site = Site::start().await;
    let mut browser = Browser::of(&site, &site.admin).await;
    let calm = "Nothing is wrong";
    assert!(browser.page("/alerts").await.contains(calm));
    for part in ["severity=critical", "rule=node-offline", "state=resolved"] {
        let page = browser.page(&format!("/alerts?{part}")).await;
        assert!(!page.contains(calm) && page.contains("No alert is like that"), "{part}");
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_is_looked_at_without_logging_in() {
    let data = tempfile::tempdir().unwrap();
    let disk = std::sync::Arc::new(fleet_manager::store::disk::Folder::new(data.path()));
    let site = Site::with(disk, data, false, true).await;
    let mut browser = Browser::new(&site);
    let page = browser.page("/").await;
    assert!(page.contains("looking only") && !page.contains("name=\"csrf\""), "{page}");
    assert_eq!(browser.post("/logout", &[]).await.status(), StatusCode::FORBIDDEN);
    let proxied =
        browser.client.get(site.url("/")).header("x-forwarded-for", "192.0.2.1").send().await.unwrap();
    assert_eq!(proxied.status(), StatusCode::SEE_OTHER);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_s_page_has_everything_that_is_known_of_it() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let now = fleet_manager::clock::wall_ms();
    // Half an hour of samples, with ten minutes missing.
    let minutes = (1..=30).filter(|minute| !(10..20).contains(minute));
    let samples: Vec<_> = minutes
        .flat_map(|m| {
            (0..12).map(move |n| (now - m * 60_000 + n * 5_000, "dht22", "temperature", 20.0 + n as f64))
        })
        .collect();
    node.measures(&samples).await;
    node.told("door_opened", HOSTILE[0]).await;
    let layer = Some(r#"{"node": {"heartbeat_s": 30}}"#);
    site.ask(reqwest::Method::PUT, "/api/v1/config/site/berlin", layer).await;
    let body = Some(r#"{"site": "berlin", "labels": {"rack": "r7"}}"#);
    site.ask(reqwest::Method::PATCH, "/api/v1/nodes/edge-1", body).await;
    let mut browser = Browser::of(&site, &site.admin).await;
    let page = browser.page("/nodes/edge-1?range=1h").await;
    for part in [
        "state online",
        "rack=r7",
        "/node/heartbeat_s",
        "site/berlin",
        "operator admin",
        "state balanced",
        "door_opened",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("<script>alert"));
    let (_, chart) = page.split_once("<figure class=\"chart\">").unwrap();
    let (chart, _) = chart.split_once("</figure>").unwrap();
    assert!(chart.contains("aria-label=\"temperature: last 31 °C, between 20 °C and 31 °C, "), "{chart}");
    assert!(chart.matches("class=\"gap\"").count() >= 2, "before the first, and in between: {chart}");
    let (_, line) = chart.split_once("class=\"avg\" d=\"").unwrap();
    assert!(line.split('"').next().unwrap().matches('M').count() >= 2, "the line is broken: {line}");
    let one = browser.page("/nodes/edge-1?series=dht22/temperature&range=24h").await;
    assert_eq!(one.matches("<figure").count(), 1);
    for (path, status) in [
        ("/nodes/nobody", StatusCode::NOT_FOUND),
        ("/nodes/edge-1?range=1y", StatusCode::UNPROCESSABLE_ENTITY),
        ("/nodes/edge-1?series=a/%3Cscript%3E", StatusCode::OK),
    ] {
        let answer = browser.get(path).await;
        assert_eq!(
            (answer.status(), answer.headers()["content-type"].to_str().unwrap()),
            (status, "text/html; charset=utf-8"),
            "{path}"
        );
        assert!(!answer.text().await.unwrap().contains("<script>"));
    }
    let told =
        browser.until("/live/nodes/edge-1?range=15m", |id, html| id == "events" && html.contains("second"));
    tokio::join!(told, node.told("another", "second"));
    node.leaves().await;
    browser.until("/live/nodes/edge-1", |id, html| id == "head" && html.contains("state sleeping")).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_for_the_nodes_that_were_shown() {
    let site = Site::start().await;
    let csv = "id,site\na-1,berlin\na-2,berlin\nb-1,hamburg\n";
    let import = site.client().post(site.url("/api/v1/nodes/import")).header("content-type", "text/csv");
    assert_eq!(import.body(csv).send().await.unwrap().status(), StatusCode::OK);
    let token = operator(&site.hub, "ada", Role::Operator, None).await;
    let mut browser = Browser::of(&site, &token).await;
    let nothing = browser.page("/commands/new").await;
    assert!(
        nothing.contains("Select nodes first") && !nothing.contains("action=\"/commands\">"),
        "{nothing}"
    );
    let form = browser.page("/commands/new?site=berlin").await;
    assert!(
        form.contains("It is for 2 nodes") && form.contains("value=\"a-1\" checked") && !form.contains("b-1"),
        "{form}"
    );
    let secret = csrf(&form);
    let fields = [
        ("csrf", secret.as_str()),
        ("key", "k"),
        ("node", "a-1"),
        ("node", "a-2"),
        ("kind", "exec"),
        ("program", "uptime -p"),
    ];
    let made = browser.post("/commands", &fields).await;
    assert_eq!(made.status(), StatusCode::SEE_OTHER, "{}", made.text().await.unwrap());
    let at = made.headers()[LOCATION].to_str().unwrap().to_owned();
    assert_eq!(
        browser.post("/commands", &fields).await.headers()[LOCATION],
        at.as_str(),
        "sent twice, made once"
    );
    let command = site.get(&format!("/api/v1{at}")).await;
    let nodes: Vec<_> =
        command["executions"].as_array().unwrap().iter().map(|one| one["node"].as_str().unwrap()).collect();
    assert_eq!(
        (nodes, &command["params"]),
        (vec!["a-1", "a-2"], &serde_json::json!({"argv": ["uptime", "-p"]}))
    );
    let audit = site.get("/api/v1/audit?who=ada").await;
    assert_eq!(audit["items"].as_array().unwrap().len(), 1, "{audit}");
    let page = browser.page(&at).await;
    assert!(page.contains("state queued") && page.contains("a-2"), "{page}");
    assert!(browser.page("/commands").await.contains(&format!("href=\"{at}\"")));
    // Looking does not take it, and a session without the secret does not do it.
    let viewer = operator(&site.hub, "eve", Role::Viewer, None).await;
    let mut other = Browser::of(&site, &viewer).await;
    assert!(!other.page(&at).await.contains("/cancel\""));
    let of_other = csrf(&other.page("/commands").await);
    for path in ["/commands".to_owned(), format!("{at}/cancel")] {
        assert_eq!(
            other.post(&path, &[("csrf", &of_other), ("node", "a-1")]).await.status(),
            StatusCode::FORBIDDEN
        );
        assert_eq!(browser.post(&path, &[("node", "a-1")]).await.status(), StatusCode::FORBIDDEN);
    }
    let wrong = browser.post("/commands", &[("csrf", &secret), ("node", "nobody"), ("kind", "ping")]).await;
    assert_eq!(wrong.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(wrong.text().await.unwrap().contains("there is no node"));
    let live = format!("/live{at}");
    let watched = browser.until(&live, |id, html| id == "head" && html.contains("2 canceled"));
    let canceled = async {
        let mut second = Browser::of(&site, &token).await;
        let secret = csrf(&second.page("/commands").await);
        assert_eq!(
            second.post(&format!("{at}/cancel"), &[("csrf", &secret)]).await.status(),
            StatusCode::SEE_OTHER
        );
    };
    tokio::join!(watched, canceled);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_is_taken_care_of_and_kept_quiet_from_its_page() {
    let site = Site::start().await;
    let rules = format!(
        "rules:\n  - {{id: hot, sensor: any, field: temperature, condition: \"value > 27\", severity: critical, message: {:?}}}\n",
        HOSTILE[0]
    );
    let put = site.client().put(site.url("/api/v1/rules")).header("content-type", "application/yaml");
    assert_eq!(put.body(rules).send().await.unwrap().status(), StatusCode::OK);
    let token = operator(&site.hub, "ada", Role::Operator, None).await;
    let mut browser = Browser::of(&site, &token).await;
    assert!(browser.page("/alerts").await.contains("no alert is open"));
    let mut node = Node::born(&site, "edge-1").await;
    let fires = browser.until("/live/alerts", |id, html| id == "list" && html.contains("state firing"));
    let hot = [(fleet_manager::clock::wall_ms(), "dht22", "temperature", 30.0)];
    tokio::join!(fires, node.measures(&hot));
    let page = browser.page("/alerts").await;
    assert!(!page.contains("<script>alert") && page.contains("&#60;script&#62;alert"), "{page}");
    let (_, rest) = page.split_once("action=\"/alerts/").unwrap();
    let id = rest.split('/').next().unwrap().to_owned();
    let secret = csrf(&page);
    for what in ["acknowledge", "silence"] {
        let path = format!("/alerts/{id}/{what}");
        assert_eq!(browser.post(&path, &[]).await.status(), StatusCode::FORBIDDEN, "{what}");
        let done = browser.post(&path, &[("csrf", &secret), ("for_s", "3600")]).await;
        assert_eq!(done.status(), StatusCode::SEE_OTHER, "{what}: {}", done.text().await.unwrap());
    }
    let page = browser.page("/alerts").await;
    assert!(
        page.contains("taken care of by <bdi>operator ada</bdi>") && page.contains("state silenced"),
        "{page}"
    );
    let (_, rest) = page.split_once("action=\"/silences/").unwrap();
    let ended = format!("/silences/{}/remove", rest.split('/').next().unwrap());
    assert_eq!(browser.post(&ended, &[("csrf", &secret)]).await.status(), StatusCode::SEE_OTHER);
    assert!(browser.page("/alerts").await.contains("state acknowledged"));
    let audit = site.get("/api/v1/audit?who=ada").await;
    assert_eq!(audit["items"].as_array().unwrap().len(), 3, "{audit}");
    let viewer = operator(&site.hub, "eve", Role::Viewer, None).await;
    assert!(!Browser::of(&site, &viewer).await.page("/alerts").await.contains("Acknowledge"));
    site.stop().await;
}

#[tokio::test]
async fn a_rollout_is_watched_and_steered_by_whoever_may() {
    let site = Site::start().await;
    sign_greeter(&site.hub);
    let _node = Node::born(&site, "edge-1").await;
    let token = operator(&site.hub, "ada", Role::Operator, None).await;
    let mut browser = Browser::of(&site, &token).await;
    assert!(browser.page("/rollouts").await.contains("fleet rollout create"));
    assert_eq!(browser.get("/rollouts/nothing").await.status(), StatusCode::NOT_FOUND);
    let made = r#"{"release": "greeter@1.0.0", "all": true, "terms": {"approve": "any"}}"#;
    let shows = browser.until("/live/rollouts", |id, html| id == "list" && html.contains("waiting approval"));
    let asked = site.ask(reqwest::Method::POST, "/api/v1/rollouts", Some(made));
    let ((), (status, answer)) = tokio::join!(shows, asked);
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let path = "/rollouts/greeter-1.0.0-1";
    let page = browser.page(path).await;
    assert!(page.contains("greeter@1.0.0") && page.contains("edge-1") && page.contains("The plan"), "{page}");
    let secret = csrf(&page);
    let approve = format!("{path}/approve");
    assert_eq!(browser.post(&approve, &[]).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(browser.post(&approve, &[("csrf", &secret)]).await.status(), StatusCode::SEE_OTHER);
    let page = browser.page(path).await;
    assert!(page.contains("approved by") || page.contains("Approved by"), "{page}");
    assert!(page.contains("Pause") && !page.contains(">Approve<"), "{page}");
    let wrong = browser.post(&format!("{path}/explode"), &[("csrf", &secret)]).await;
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    let viewer = operator(&site.hub, "eve", Role::Viewer, None).await;
    assert!(!Browser::of(&site, &viewer).await.page(path).await.contains("<button>Pause"));
    site.stop().await;
}
