//! rumqttd as it comes, listener and all, in a process of its own: what the gate is not to cost.

use std::{net::SocketAddr, path::Path, thread};

use tokio::{net::TcpStream, sync::oneshot};

use super::{
    super::{Error, child},
    Config,
    load::{Door, Subscriber, measure},
};

/// Messages a second at one subscriber over TCP. `fleet` is this program, which serves as the broker.
///
/// At QoS 0, where it is far stronger: at QoS 1 its router lets a hundred messages out to a subscriber and then, while
/// publishers flood it, finds the answers late. The gate's consumer has no answers to give either.
pub(super) async fn run(config: &Config, fleet: &Path) -> Result<f64, Error> {
    let folder = child::Folder::new(config.folder.as_deref())?;
    let address = child::free_address()?;
    let log = folder.path().join("rumqttd.log");
    let args = ["bench", "rumqttd", &address.to_string()];
    let mut process = child::Process::start("rumqttd", fleet, &args, &log)?;
    process.until(async || TcpStream::connect(address).await.ok()).await?;
    let subscriber = Subscriber::start(address, 0);
    let door = Door { address, certificates: None };
    let rates = measure(config, &door, &[&subscriber.tally]).await;
    subscriber.end().await?;
    process.stop().await?;
    Ok(rates?[0])
}

/// Is that broker, until the process is ended from outside; gives why it is not.
pub async fn serve(listen: SocketAddr) -> Error {
    let (ended, why) = oneshot::channel();
    // A thread that nobody waits for: the broker has no way to end.
    thread::spawn(move || {
        // Nobody listens any more when the process ends.
        let _ = ended.send(fleet_broker::bare::serve(listen));
    });
    match why.await {
        Ok(why) => Error::Child(why.to_string()),
        Err(_) => Error::Child("the bare router's thread panicked".to_owned()),
    }
}
