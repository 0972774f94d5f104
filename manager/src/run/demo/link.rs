//! The way of one demo node to the hub, which can be cut: while a file called `offline` lies in the node's data folder.
//!
//! Passes bytes on and looks at none of them: TLS is between the agent and the hub.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::{AbortHandle, JoinSet},
    time,
};

/// The file that cuts the link of the node in whose data folder it lies.
pub(super) const OFFLINE: &str = "offline";
/// How often the file is looked for.
const LOOK: Duration = Duration::from_millis(250);

/// A way to the hub; dropping it cuts it for good.
pub(super) struct Link {
    /// Where the agent finds it.
    pub(super) at: SocketAddr,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// A way to `hub` for the node with this data folder.
    ///
    /// # Errors
    /// What the system says of a new listener.
    pub(super) async fn open(hub: SocketAddr, folder: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let at = listener.local_addr()?;
        let task = tokio::spawn(pass(listener, hub, folder.join(OFFLINE))).abort_handle();
        Ok(Self { at, task })
    }
}

async fn pass(listener: TcpListener, hub: SocketAddr, file: PathBuf) {
    let (cut, is_cut) = watch::channel(file.exists());
    let mut look = time::interval(LOOK);
    let mut connections = JoinSet::new();
    loop {
        select! {
            _ = look.tick() => {
                cut.send_if_modified(|cut| std::mem::replace(cut, file.exists()) != *cut);
            }
            accepted = listener.accept() => {
                let Ok((agent, _)) = accepted else { continue };
                // Who comes while it is cut finds a closed door.
                if !*is_cut.borrow() {
                    connections.spawn(one(agent, hub, is_cut.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until either side ends it or it is cut.
async fn one(mut agent: TcpStream, hub: SocketAddr, mut is_cut: watch::Receiver<bool>) {
    let Ok(mut hub) = TcpStream::connect(hub).await else { return };
    // What is small and waits for an answer is not held back.
    let _ = agent.set_nodelay(true).and(hub.set_nodelay(true));
    select! {
        _ = copy_bidirectional(&mut agent, &mut hub) => {}
        _ = is_cut.wait_for(|cut| *cut) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Longest wait for anything.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn echo(listener: TcpListener) {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = socket.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    }

    /// Whether a new connection reaches the other end.
    async fn reaches(at: SocketAddr) -> bool {
        let Ok(mut socket) = TcpStream::connect(at).await else { return false };
        let mut answer = [0];
        socket.write_all(b"x").await.is_ok() && socket.read_exact(&mut answer).await.is_ok()
    }

    #[tokio::test]
    async fn the_file_cuts_the_link_and_its_removal_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let hub = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Link::open(hub.local_addr().unwrap(), folder.path().to_owned()).await.unwrap();
        tokio::spawn(echo(hub));
        assert!(reaches(link.at).await);
        let mut open = TcpStream::connect(link.at).await.unwrap();
        std::fs::write(folder.path().join(OFFLINE), "").unwrap();
        let ended = time::timeout(PATIENCE, open.read(&mut [0])).await.expect("it is cut");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        assert!(!reaches(link.at).await);
        std::fs::remove_file(folder.path().join(OFFLINE)).unwrap();
        let mended = async {
            while !reaches(link.at).await {
                tokio::task::yield_now().await;
            }
        };
        time::timeout(PATIENCE, mended).await.expect("it is mended");
    }
}
