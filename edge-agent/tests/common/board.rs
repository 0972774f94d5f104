//! A board behind a node, as a client library speaks for it.

use std::{net::SocketAddr, time::Duration};

use rumqttc::{AsyncClient, ConnectReturnCode, ConnectionError, Event, MqttOptions, Packet, QoS};
use tokio::{
    sync::{mpsc, watch},
    time,
};

/// An open session of a board.
pub(crate) struct Board {
    pub(crate) client: AsyncClient,
    heard: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
    acked: watch::Receiver<usize>,
    ended: watch::Receiver<bool>,
}

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

impl Board {
    pub(crate) async fn open(listener: SocketAddr, client_id: &str) -> Self {
        Self::connect(listener, client_id, None).await.expect("it is let in")
    }

    pub(crate) async fn connect(
        listener: SocketAddr,
        client_id: &str,
        login: Option<(&str, &str)>,
    ) -> Result<Self, ConnectReturnCode> {
        let mut options = MqttOptions::new(client_id, listener.ip().to_string(), listener.port());
        options.set_keep_alive(Duration::from_secs(60));
        if let Some((user, password)) = login {
            options.set_credentials(user, password);
        }
        let (client, mut events) = AsyncClient::new(options, 64);
        let first = time::timeout(PATIENCE, events.poll()).await.expect("an answer in time");
        match first {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {}
            Err(ConnectionError::ConnectionRefused(code)) => return Err(code),
            other => panic!("{other:?}"),
        }
        let (says, heard) = mpsc::unbounded_channel();
        let ((acks, acked), (ends, ended)) = (watch::channel(0), watch::channel(false));
        tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::Publish(said))) => {
                        let _ = says.send((said.topic, said.payload.to_vec()));
                    }
                    Ok(Event::Incoming(Packet::PubAck(_))) => acks.send_modify(|count| *count += 1),
                    Ok(_) => {}
                    Err(_) => {
                        ends.send_replace(true);
                        return;
                    }
                }
            }
        });
        Ok(Self { client, heard, acked, ended })
    }

    /// Says it as a MicroClaw does, at QoS 0.
    pub(crate) async fn say(&self, topic: &str, payload: impl ToString) {
        self.client.publish(topic, QoS::AtMostOnce, false, payload.to_string()).await.unwrap();
    }

    /// Says it, and waits until the agent has it on disk.
    pub(crate) async fn say_safely(&mut self, topic: &str, payload: impl ToString) {
        let before = *self.acked.borrow_and_update();
        self.client.publish(topic, QoS::AtLeastOnce, false, payload.to_string()).await.unwrap();
        let acked = self.acked.wait_for(|count| *count > before);
        drop(time::timeout(PATIENCE, acked).await.expect("an acknowledgement in time").unwrap());
    }

    pub(crate) async fn listen(&self, filter: &str) {
        self.client.subscribe(filter, QoS::AtMostOnce).await.unwrap();
    }

    /// The next thing it hears: topic and payload.
    pub(crate) async fn hear(&mut self) -> (String, String) {
        let heard = time::timeout(PATIENCE, self.heard.recv()).await.expect("something in time");
        let (topic, payload) = heard.expect("an open session");
        (topic, String::from_utf8(payload).unwrap())
    }

    /// Whether it heard nothing so far.
    pub(crate) fn heard_nothing(&mut self) -> bool {
        self.heard.try_recv().is_err()
    }

    /// Waits until the other end has ended the session.
    pub(crate) async fn ended(&mut self) {
        drop(
            time::timeout(PATIENCE, self.ended.wait_for(|ended| *ended))
                .await
                .expect("an end in time")
                .unwrap(),
        );
    }
}
