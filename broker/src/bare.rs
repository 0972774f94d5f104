//! rumqttd with its own listener and nothing of ours: what the gate's throughput is compared with (`fleet bench`).
//!
//! For measuring only. It has none of the gate's rules and must never serve a fleet.

use std::{collections::HashMap, net::SocketAddr};

use fleet_schemas::limits;
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

/// It did not come up, or ended.
#[derive(Debug, thiserror::Error)]
#[error("the bare router cannot serve {listen}: {why}; is the port taken?")]
pub struct Ended {
    listen: SocketAddr,
    why: String,
}

/// Links that it takes.
const CONNECTIONS: usize = 10_010;
/// Messages it reads from a log at once, as in its own example of a configuration.
const READ_AT_ONCE: u64 = 200;
/// Of a log; its subscriber may fall behind so far before it is cheated of messages.
const SEGMENT_BYTES: usize = 32 * 1024 * 1024;
const SEGMENTS: usize = 10;

/// Serves MQTT 3.1.1 in the clear to anybody who connects, and blocks while it does.
pub fn serve(listen: SocketAddr) -> Ended {
    let connections = ConnectionSettings {
        connection_timeout_ms: 60_000,
        max_payload_size: limits::PACKET_BYTES,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings {
        name: "bare".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    let config = Config {
        router: RouterConfig {
            max_connections: CONNECTIONS,
            max_outgoing_packet_count: READ_AT_ONCE,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        },
        v4: Some(HashMap::from([("bare".to_owned(), server)])),
        ..Config::default()
    };
    let why = match Broker::new(config).start() {
        Ok(()) => "its listener ended".to_owned(),
        Err(error) => error.to_string(),
    };
    Ended { listen, why }
}
