//! `fleet demo`: a hub and real agents in one process, on real sockets, with this machine's real figures.

mod link;
pub(super) mod releases;
mod story;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fleet_edge_agent::{
    config::Config as AgentConfig,
    identity::{
        self,
        https::AskError,
        join::{JoinError, Wish},
    },
    run::Handle as AgentHandle,
};
use fleet_schemas::{
    NodeId,
    enrol::{JoinToken, NODE_HTTPS_PORT, RefusalCode},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time,
};

use self::link::{Link, OFFLINE};
use super::{RunningHub, StartError, admin};
use crate::{
    clock,
    config::Config,
    consume::FeedItem,
    core::{
        alert::{Alert, Stage},
        identity::{Change, Role, Token},
        presence::State,
        registry::Intent,
        time::millis,
    },
};

/// How often a demo node measures; an order of magnitude more often than a real one, so that there is something to see.
const MEASURE: Duration = Duration::from_secs(1);
const UPLOAD: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long the demo's nodes may take to join.
const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// How often the demo says what arrived.
const REPORT: Duration = Duration::from_secs(10);

/// Which addresses the user named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each listener")]
pub struct Named {
    /// `--http`.
    pub http: bool,
    /// `--mqtt`.
    pub mqtt: bool,
    /// `--mqtts`.
    pub mqtts: bool,
    /// `--node-https`.
    pub node_https: bool,
}

/// Runs a hub with `nodes` agents until `shutdown`, and plays a story on them if wanted. A default port that is taken is replaced by a free one; an address
/// that the user named is not.
///
/// # Errors
/// [`StartError`].
pub async fn demo(
    config: &Config,
    named: Named,
    nodes: u16,
    with_story: bool,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let mut config = config.clone();
    config.anonymous_viewer = true;
    let listen = &mut config.listen;
    for (address, named) in [
        (&mut listen.http, named.http),
        (&mut listen.mqtt, named.mqtt),
        (&mut listen.mqtts, named.mqtts),
        (&mut listen.node_https, named.node_https),
    ] {
        if !named && TcpListener::bind(*address).is_err() {
            address.set_port(0);
        }
    }
    let running = super::start(&config).await?;
    // Before the first agent, which pins the root when it joins.
    if let Err(error) = releases::init(&running.hub, &config.data) {
        running.stop().await;
        return Err(error.into());
    }
    // Before the first agent, so that the story begins with it.
    let feed = running.hub.feed();
    let (mut agents, mut links) = (Vec::new(), Vec::new());
    if let Err(error) = start_agents(&running, &config.data, nodes, &mut agents, &mut links).await {
        stop(agents, running).await;
        return Err(error);
    }
    introduce(&running, &config.data, &agents);
    let cast = cast(&agents, &config.data).filter(|_| with_story);
    let began = clock::mono();
    tokio::select! {
        () = narrate(&running, feed, began) => {}
        () = tell(&running, cast.clone(), began) => {}
        () = shutdown => {}
    }
    // A story that was cut short leaves no link cut.
    if let Some(cast) = &cast
        && let Err(error) = story::mend(&cast.away.1)
    {
        tracing::warn!(%error, "{}", cast.away.1.display());
    }
    println!("stopping; the data stay in {}", config.data.display());
    stop(agents, running).await;
    println!("stopped");
    Ok(())
}

/// The story's nodes: the first, and the second where there is one.
fn cast(agents: &[AgentHandle], data: &Path) -> Option<story::Cast> {
    let (warm, away) = (agents.first()?, agents.get(1).or(agents.first())?);
    let folder = data.join("nodes").join(away.node().as_str());
    Some(story::Cast { warm: (warm.node().clone(), warm.api()), away: (away.node().clone(), folder) })
}

/// Plays the story, if there is one; never returns.
async fn tell(running: &RunningHub, cast: Option<story::Cast>, began: Duration) {
    if let (Some(cast), Some(alerts)) = (cast, running.hub.alerts()) {
        let told = |line: &str| println!("{}  * {line}", stamp(began));
        if let Err(error) = story::play(alerts, cast, told).await {
            println!("{}  the story is not told: {error}", stamp(began));
        }
    }
    std::future::pending::<()>().await;
}

/// Seconds since the demo began.
fn stamp(began: Duration) -> String {
    format!("{:>6.1} s", clock::mono().saturating_sub(began).as_secs_f64())
}

async fn stop(agents: Vec<AgentHandle>, running: RunningHub) {
    let stopping: Vec<_> = agents.into_iter().map(|agent| tokio::spawn(agent.stop())).collect();
    for agent in stopping {
        if agent.await.is_err() {
            tracing::error!("stopping an agent panicked");
        }
    }
    running.stop().await;
}

async fn start_agents(
    running: &RunningHub,
    data: &Path,
    nodes: u16,
    agents: &mut Vec<AgentHandle>,
    links: &mut Vec<Link>,
) -> Result<(), StartError> {
    let token = token(running, u32::from(nodes), None).await?;
    for n in 1..=nodes {
        let id = NodeId::parse(&format!("demo-{n}")).expect("a number makes a node id");
        let folder = data.join("nodes").join(id.as_str());
        join(running, &token, &id, &folder).await?;
        let link = match running.addresses.mqtts {
            Some(at) => Some(Link::open(reached(at), folder.clone()).await.map_err(StartError::Link)?),
            None => None,
        };
        agents.push(start_agent(link.as_ref(), id, n, folder).await?);
        links.extend(link);
    }
    Ok(())
}

/// A join token as an operator makes one, for these nodes only.
async fn token(running: &RunningHub, uses: u32, replace: Option<NodeId>) -> Result<JoinToken, StartError> {
    let now_ms = running.hub.clock().now().wall_ms;
    let id: String = clock::random::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
    let token = JoinToken { pin: running.pki.pin(), id: id.clone(), secret: clock::random() };
    let kept = Token {
        id,
        secret: Sha256::digest(token.secret).into(),
        created_ms: now_ms,
        created_by: "hub".to_owned(),
        expires_ms: now_ms + millis(TOKEN_LIFE),
        uses,
        labels: [("fleet".to_owned(), "demo".to_owned())].into(),
        approve: false,
        replace,
        used_by: Vec::new(),
    };
    running.hub.intend("hub", Intent::Identity(Change::PutToken(kept))).await?;
    Ok(token)
}

/// Joins as any machine does, over the port for nodes; one that has joined only looks where the hub is now.
async fn join(running: &RunningHub, token: &JoinToken, id: &NodeId, data: &Path) -> Result<(), StartError> {
    let at =
        running.addresses.node_https.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, NODE_HTTPS_PORT)));
    let hub = local(at);
    let hub = hub.parse().expect("a host and a port make an address");
    let wish = Wish {
        hub,
        token: token.clone(),
        node: identity::join::WishedId::Told(id.clone()),
        name: None,
        data: data.to_owned(),
        force: false,
    };
    let joined = match identity::join::join(&wish, |_| ()).await {
        // Its folder was removed, or it is of a time when the demo's nodes had a mere secret.
        Err(JoinError::Ask(AskError::Refused(refused))) if refused.code == RefusalCode::NodeExists => {
            let token = self::token(running, 1, Some(id.clone())).await?;
            identity::join::join(&Wish { token, ..wish }, |_| ()).await
        }
        joined => joined,
    };
    joined.map(drop).map_err(|source| StartError::Join { node: id.to_string(), source: Box::new(source) })
}

/// A bound address as a program of this machine reaches it.
fn local(at: SocketAddr) -> String {
    if at.ip().is_unspecified() { format!("localhost:{}", at.port()) } else { at.to_string() }
}

/// The same for a socket.
fn reached(at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() { SocketAddr::from((Ipv4Addr::LOCALHOST, at.port())) } else { at }
}

async fn start_agent(
    link: Option<&Link>,
    id: NodeId,
    n: u16,
    folder: PathBuf,
) -> Result<AgentHandle, StartError> {
    let mut config = AgentConfig { data: folder, ..AgentConfig::default() };
    config.node.id = Some(id.clone());
    config.node.name = Some(format!("Demo node {n}"));
    config.node.heartbeat = HEARTBEAT;
    // Where the hub is this time; a node that joined in an earlier run knows only where it was then.
    let mqtts = link.map(|link| format!("mqtts://{}", link.at));
    config.hub.url = mqtts.map(|url| url.parse().expect("a bound address makes a URL"));
    config.api.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // Nobody but this machine reaches it, so no password is needed.
    config.devices.listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    config.devices.open = true;
    config.system.interval = MEASURE;
    config.outbox.upload = UPLOAD;
    config.outbox.prompt = UPLOAD;
    config.commands.allow = Some(fleet_edge_agent::commands::LOOK_ONLY.into());
    let started = fleet_edge_agent::run::start(config).await;
    started.map_err(|source| StartError::Agent { node: id.to_string(), source: Box::new(source) })
}

/// The console's address that logs somebody in as an admin, once.
fn login_link(running: &RunningHub) -> Option<String> {
    let now_ms = running.hub.clock().now().wall_ms;
    let admin = running.hub.with_identities(|known| {
        let admins = known.operators.values().filter(|operator| operator.role == Role::Admin);
        let mut lasting = admins.filter(|admin| admin.expires_ms.is_none_or(|ends| ends > now_ms));
        lasting.next().map(|admin| admin.token)
    })?;
    let secret = running.sessions.link(admin, clock::random(), clock::mono());
    let scheme = if running.addresses.http_tls { "https" } else { "http" };
    Some(format!("{scheme}://{}/login?link={secret}", local(running.addresses.http)))
}

fn introduce(running: &RunningHub, data: &Path, agents: &[AgentHandle]) {
    let addresses = &running.addresses;
    let link = login_link(running);
    let data = data.display();
    println!(
        "A hub and {} nodes run in this process; each joined with a token and speaks MQTT over TLS.",
        agents.len()
    );
    println!();
    if let Some(link) = link {
        println!("  console    {link}");
        println!("             logs in as admin, once, within 15 minutes; without it you may look");
    }
    println!("  hub        {}/api/v1/nodes", addresses.http_url());
    println!("  metrics    {}/metrics", addresses.http_url());
    println!(
        "  mqtt       {} (a password for reading is in {data}/{})",
        addresses.mqtt,
        crate::admit::TOOL_FILE
    );
    if let (Some(mqtts), Some(node_https)) = (addresses.mqtts, addresses.node_https) {
        println!("  nodes      https://{node_https} to join, mqtts://{mqtts}");
    }
    if let Some(token) = &running.admin {
        println!("  admin      {}", admin::shown(token, &format!("{data}/{}", crate::cli::ADMIN)));
    }
    for agent in agents {
        let devices = agent.devices().map(|at| format!(", devices mqtt://{at}")).unwrap_or_default();
        println!("  {:<10} edge API http://{}{devices}", agent.node().as_str(), agent.api());
    }
    println!();
    println!("Look at it from another terminal:");
    println!("  fleet --data {data} top");
    println!("  fleet --data {data} node ls");
    println!("  fleet --data {data} telemetry demo-1 --metric cpu_percent --since 5m");
    println!("  fleet --data {data} ledger");
    println!("  fleet --data {data} command run --all -- uptime");
    println!(
        "  fleet --data {data} release ls             its releases are signed by keys in {data}/{}",
        crate::cli::RELEASE_KEYS
    );
    println!();
    println!("A node is cut off from the hub while there is a file {data}/nodes/NODE/{OFFLINE}:");
    println!("  touch {data}/nodes/demo-2/{OFFLINE}      and later: rm {data}/nodes/demo-2/{OFFLINE}");
    println!();
    println!("Ctrl-C stops it.");
    println!();
}

/// Says which nodes come and go, and how many samples arrived, until the hub is gone.
async fn narrate(running: &RunningHub, mut feed: broadcast::Receiver<Arc<FeedItem>>, began: Duration) {
    let (mut online, mut stages) = (BTreeSet::new(), BTreeMap::new());
    let (mut samples, mut first) = (0_u64, true);
    let mut report = time::interval(REPORT);
    report.tick().await;
    let stamp = || stamp(began);
    loop {
        tokio::select! {
            _ = report.tick() => {
                if let Ok(accounts) = running.hub.ledger() {
                    let broken = accounts.iter().any(|a| a.state == crate::core::ledger::Standing::Broken);
                    let verdict = if broken { "BROKEN" } else { "adds up" };
                    println!("{}  {} nodes online, {samples} samples stored, the ledger {verdict}", stamp(), online.len());
                }
            }
            item = feed.recv() => match item.as_deref() {
                Ok(FeedItem::Node(id)) => {
                    let state = running.hub.with_fleet(|fleet| {
                        fleet.nodes.get(id).map(|node| node.record.presence.state)
                    });
                    if state == Some(State::Online) && online.insert(id.clone()) {
                        println!("{}  {id} is online", stamp());
                    } else if state.is_some_and(|state| state != State::Online) && online.remove(id) {
                        println!("{}  {id} is {}", stamp(), state.map_or("gone", State::as_str));
                    }
                }
                Ok(FeedItem::Samples { node, samples: stored, .. }) => {
                    samples += stored.count();
                    if std::mem::take(&mut first) {
                        println!("{}  the first samples of {node} are stored", stamp());
                    }
                }
                Ok(FeedItem::Event(event)) => println!("{}  {}: {}", stamp(), event.node, event.event.message),
                Ok(FeedItem::Alert(change)) => {
                    let alert = change.alert.as_ref().filter(|alert| alert.stage != Stage::Pending);
                    // It also changes when somebody takes care of it, or is told.
                    let alert = alert.filter(|alert| stages.insert(change.number, alert.stage) != Some(alert.stage));
                    if let Some(Alert { rule, node, stage, severity, message, .. }) = alert {
                        let severity = severity.as_str();
                        println!("{}  {node}: alert {rule} ({severity}) is {}: {message}", stamp(), stage.as_str());
                    }
                }
                Ok(FeedItem::Execution(_) | FeedItem::Config(_) | FeedItem::Rollout(_)) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}
