//! The bytes of a connection of the load: plain TCP, or TLS over it, without a task or a copy of its own.
//!
//! Waits for nothing but readiness. Knows no MQTT.

use std::{
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    sync::Arc,
};

use fleet_schemas::enrol::HUB_NAME;
use rustls::{ClientConfig, ClientConnection};
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
};

/// Read at once.
const CHUNK: usize = 16 * 1024;

/// A connection.
pub(super) struct Stream {
    tcp: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Stream {
    /// Connects; a TLS handshake goes with the first bytes. The broker has to have the name of hubs.
    pub(super) async fn open(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = HUB_NAME.try_into().expect("the name of hubs is a DNS name");
        let tls = tls.map(|config| ClientConnection::new(config.clone(), name)).transpose();
        Ok(Self { tcp, tls: tls.map_err(io::Error::other)?.map(Box::new) })
    }

    /// Waits until something can be read; or written, when there is something, `more` or TLS's own.
    pub(super) async fn ready(&self, more: bool) -> io::Result<Ready> {
        let writes = more || self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        let interest = if writes { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.tcp.ready(interest).await
    }

    /// Adds what is there to `into`; nothing is no error, the end is.
    pub(super) fn read(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            let length = into.len();
            into.resize(length + CHUNK, 0);
            let read = self.tcp.try_read(&mut into[length..]);
            into.truncate(length + *read.as_ref().unwrap_or(&0));
            return is_open(read);
        };
        is_open(tls.read_tls(&mut Raw(&self.tcp)))?;
        let state = match tls.process_new_packets() {
            Ok(state) => state,
            Err(error) => {
                // The alert says why; if it does not go out, the end of the connection has to do.
                let _ = tls.write_tls(&mut Raw(&self.tcp));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        };
        let length = into.len();
        into.resize(length + state.plaintext_bytes_to_read(), 0);
        tls.reader().read_exact(&mut into[length..])
    }

    /// Takes what it can of `bytes`, and says how many; 0 when it has to wait.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return if bytes.is_empty() { Ok(0) } else { taken(self.tcp.try_write(bytes)) };
        };
        let count = tls.writer().write(bytes)?;
        while tls.wants_write() && taken(tls.write_tls(&mut Raw(&self.tcp)))? > 0 {}
        Ok(count)
    }
}

/// The socket as TLS wants it.
struct Raw<'a>(&'a TcpStream);

impl io::Read for Raw<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

impl io::Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_open(read: io::Result<usize>) -> io::Result<()> {
    match read {
        Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the broker closed the connection")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

fn taken(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}
