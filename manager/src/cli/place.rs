//! Where machines and tools find the hub: what is printed to be pasted elsewhere must not say 127.0.0.1.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

use super::{Failure, client::Client};
use crate::api::shapes::Status;

/// The hub's listeners as seen from where the CLI runs.
#[derive(Debug, Clone)]
pub(super) struct Place {
    dialled: String,
    lan: Option<IpAddr>,
    listeners: BTreeMap<String, String>,
}

impl Place {
    /// Asks the hub where it listens.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn of(client: &Client) -> Result<Self, Failure> {
        let status: Status = client.get(&["api", "v1", "status"], &[]).await?;
        Ok(Self { dialled: client.host().to_owned(), lan: lan(), listeners: status.listeners })
    }

    /// Host and port of a listener, `mqtts` or `node_https`; none when the hub does not serve it.
    #[must_use]
    pub(super) fn address(&self, listener: &str) -> Option<(String, u16)> {
        let bound: SocketAddr = self.listeners.get(listener)?.parse().ok()?;
        let dialled: Option<IpAddr> = self.dialled.trim_matches(['[', ']']).parse().ok();
        let here =
            self.dialled == "localhost" || dialled.is_some_and(|ip| ip.is_loopback() || ip.is_unspecified());
        let ip = bound.ip();
        let host = if ip.is_loopback() {
            ip.to_string()
        } else if !here {
            // What reached the hub over HTTP reaches its other ports.
            self.dialled.trim_matches(['[', ']']).to_owned()
        } else if ip.is_unspecified() {
            self.lan.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string()
        } else {
            ip.to_string()
        };
        Some((host, bound.port()))
    }
}

/// `host:port`, as it stands in URLs.
#[must_use]
pub(super) fn joined((host, port): &(String, u16)) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// This machine's address on the network its default route leads to. Nothing is sent to find out.
fn lan() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address for documentation (RFC 5737), which routes as any other.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dialled: &str, bound: &str, lan: Option<&str>) -> Option<(String, u16)> {
        let listeners = [("mqtts".to_owned(), bound.to_owned())].into();
        let lan = lan.map(|ip| ip.parse().unwrap());
        Place { dialled: dialled.to_owned(), lan, listeners }.address("mqtts")
    }

    #[test]
    fn what_is_pasted_elsewhere_leads_back() {
        for (dialled, bound, lan, expected) in [
            ("127.0.0.1", "0.0.0.0:8883", Some("10.0.0.7"), "10.0.0.7:8883"),
            ("localhost", "[::]:8883", Some("10.0.0.7"), "10.0.0.7:8883"),
            ("127.0.0.1", "0.0.0.0:8883", None, "127.0.0.1:8883"),
            ("127.0.0.1", "127.0.0.1:1", Some("10.0.0.7"), "127.0.0.1:1"),
            ("127.0.0.1", "10.0.0.8:1", Some("10.0.0.7"), "10.0.0.8:1"),
            ("hub.example", "0.0.0.0:8883", Some("10.0.0.7"), "hub.example:8883"),
            ("[2001:db8::1]", "[::]:8883", None, "[2001:db8::1]:8883"),
        ] {
            let found = place(dialled, bound, lan).map(|found| joined(&found));
            assert_eq!(found.as_deref(), Some(expected), "{dialled} {bound}");
        }
        assert_eq!(
            Place { dialled: String::new(), lan: None, listeners: BTreeMap::new() }.address("mqtts"),
            None
        );
    }
}
