//! The last moments of a connection.

use std::{io, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream, time};

use crate::gate::{conn::scratch::with_scratch, transport};

/// How long the last packet may take to reach the peer, and how much of what it still sends is thrown away.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Sends the last bytes, then reads what the peer still sends: closing a socket with unread bytes would reset the
/// connection and take the last packet with it.
pub(crate) async fn linger(stream: &mut TcpStream, out: &[u8]) {
    let last_words = async {
        stream.write_all(out).await?;
        stream.shutdown().await?;
        let mut left = LINGER_BYTES;
        while left > 0 {
            stream.readable().await?;
            let read = with_scratch(|scratch| stream.try_read(&mut scratch.bytes[..transport::READ]));
            match read {
                Ok(0) => break,
                Ok(n) => left = left.saturating_sub(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        io::Result::Ok(())
    };
    // Late or failed, the connection ends all the same.
    let _ = time::timeout(LINGER, last_words).await;
}
