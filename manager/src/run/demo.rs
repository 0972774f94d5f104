//! `fleet demo`: a hub and real agents in one process, on real sockets, with this machine's real figures.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use fleet_edge_agent::{config::Config as AgentConfig, mqtt::HubUrl, run::Handle as AgentHandle};
use fleet_schemas::NodeId;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time,
};

use super::{RunningHub, StartError};
use crate::{clock, config::Config, consume::FeedItem, core::presence::State};

/// How often a demo node measures; an order of magnitude more often than a real one, so that there is something to see.
const MEASURE: Duration = Duration::from_secs(1);
const UPLOAD: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often the demo says what arrived.
const REPORT: Duration = Duration::from_secs(10);

/// Runs a hub with `nodes` agents until `shutdown`. A default port that is taken is replaced by a free one; an address
/// that the user named is not.
///
/// # Errors
/// [`StartError`].
pub async fn demo(
    config: &Config,
    (http_named, mqtt_named): (bool, bool),
    nodes: u16,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let mut config = config.clone();
    for (address, named) in [(&mut config.listen.http, http_named), (&mut config.listen.mqtt, mqtt_named)] {
        if !named && TcpListener::bind(*address).is_err() {
            address.set_port(0);
        }
    }
    let running = super::start(&config).await?;
    // Before the first agent, so that the story begins with it.
    let feed = running.hub.feed();
    let mut agents = Vec::new();
    for n in 1..=nodes {
        match start_agent(&config.data, n, running.addresses.mqtt).await {
            Ok(agent) => agents.push(agent),
            Err(error) => {
                stop(agents, running).await;
                return Err(error);
            }
        }
    }
    introduce(&running, &config.data, &agents);
    tokio::select! {
        () = narrate(&running, feed) => {}
        () = shutdown => {}
    }
    println!("stopping; the data stay in {}", config.data.display());
    stop(agents, running).await;
    println!("stopped");
    Ok(())
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

async fn start_agent(data: &Path, n: u16, mqtt: SocketAddr) -> Result<AgentHandle, StartError> {
    let id = NodeId::parse(&format!("demo-{n}")).expect("a number makes a node id");
    let folder = data.join("nodes").join(id.as_str());
    let mut config = AgentConfig { data: folder, ..AgentConfig::default() };
    config.node.id = Some(id.clone());
    config.node.name = Some(format!("Demo node {n}"));
    config.node.heartbeat = HEARTBEAT;
    let url: HubUrl = format!("mqtt://{mqtt}").parse().expect("a bound address makes a URL");
    config.hub.url = Some(url);
    config.api.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.system.interval = MEASURE;
    config.outbox.upload = UPLOAD;
    config.outbox.prompt = UPLOAD;
    let started = fleet_edge_agent::run::start(config).await;
    started.map_err(|source| StartError::Agent { node: id.to_string(), source: Box::new(source) })
}

fn introduce(running: &RunningHub, data: &Path, agents: &[AgentHandle]) {
    let addresses = &running.addresses;
    let data = data.display();
    println!("A hub and {} nodes run in this process.", agents.len());
    println!();
    println!("  hub        http://{}/api/v1/nodes", addresses.http);
    println!("  metrics    http://{}/metrics", addresses.http);
    println!(
        "  mqtt       {} (a password for reading is in {data}/{})",
        addresses.mqtt,
        crate::admit::TOOL_FILE
    );
    for agent in agents {
        println!("  {:<10} edge API http://{}", agent.node().as_str(), agent.api());
    }
    println!();
    println!("Look at it from another terminal:");
    println!("  fleet --data {data} top");
    println!("  fleet --data {data} node ls");
    println!("  fleet --data {data} telemetry demo-1 --metric cpu_percent --since 5m");
    println!("  fleet --data {data} ledger");
    println!();
    println!("Ctrl-C stops it.");
    println!();
}

/// Says which nodes come and go, and how many samples arrived, until the hub is gone.
async fn narrate(running: &RunningHub, mut feed: broadcast::Receiver<Arc<FeedItem>>) {
    let mut online = BTreeSet::new();
    let (mut samples, mut first) = (0_u64, true);
    let mut report = time::interval(REPORT);
    report.tick().await;
    let began = clock::mono();
    let stamp = || format!("{:>6.1} s", clock::mono().saturating_sub(began).as_secs_f64());
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
                Ok(FeedItem::Execution(_)) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}
