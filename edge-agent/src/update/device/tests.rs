//! A board over real MQTT that fetches its firmware over real HTTP.

use std::{net::SocketAddr, sync::Arc};

use fleet_schemas::{CommandId, NodeId, update::Custom};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, mpsc};

use super::*;
use crate::{
    config::Config as Whole,
    run::{self, Handle},
};

const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    data: tempfile::TempDir,
    agent: Handle,
}

/// A board: what it was told to do comes out of it.
struct Board {
    client: AsyncClient,
    told: Mutex<mpsc::UnboundedReceiver<Value>>,
}

impl Node {
    async fn start(node: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = Whole { data: data.path().join("data"), ..Whole::default() };
        config.node.id = Some(NodeId::parse(node).unwrap());
        config.api.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.system.interval = Duration::ZERO;
        config.devices.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        config.devices.open = true;
        Self { data, agent: run::start(config).await.unwrap() }
    }

    fn slot(&self, within: Duration) -> Device {
        let shelf = Shelf(self.data.path().join("releases/device-firmware"));
        Device {
            config: Config { within, url: None },
            doubts: Arc::new(std::sync::Mutex::new(Doubts::open(shelf.doubts()))),
            shelf,
            outbox: self.agent.outbox.clone(),
            line: self.agent.line.clone(),
        }
    }

    fn plan(&self, version: &str) -> Plan {
        let content = version.repeat(20_000);
        let file = self.data.path().join(version);
        fs::write(&file, &content).unwrap();
        let order = Order {
            target: format!("device-firmware/esp32/{version}/any").parse().unwrap(),
            digest: Digest(Sha256::digest(&content).into()),
            rollout: None,
            device: Some(DeviceId::parse("shed").unwrap()),
            back: false,
            probation_ms: None,
            window: None,
            offline_ok: false,
        };
        let custom = Custom { device_kind: Some("microclaw".to_owned()), ..Custom::default() };
        let length = content.len() as u64;
        Plan { command: CommandId([1; 16]), order, length, custom, from: None, file }
    }

    async fn board(&self) -> Arc<Board> {
        let at = self.agent.devices().unwrap();
        let (client, mut events) =
            AsyncClient::new(MqttOptions::new("esp", at.ip().to_string(), at.port()), 16);
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                if let Event::Incoming(Packet::Publish(said)) = event {
                    let _ = tell.send(serde_json::from_slice(&said.payload).unwrap());
                }
            }
        });
        client.subscribe("clawland/shed/cmd", QoS::AtMostOnce).await.unwrap();
        let board = Board { client, told: Mutex::new(told) };
        board.says(r#"{"status":"online","version":"1.0.0"}"#).await;
        let id = DeviceId::parse("shed").unwrap();
        let known = async {
            while self.agent.outbox.device(id.clone()).await.unwrap().is_none() {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        time::timeout(PATIENCE, known).await.unwrap();
        Arc::new(board)
    }
}

impl Board {
    async fn says(&self, status: &str) {
        self.client.publish("clawland/shed/status", QoS::AtLeastOnce, false, status).await.unwrap();
    }

    async fn told(&self) -> Value {
        time::timeout(PATIENCE, self.told.lock().await.recv()).await.expect("told in time").unwrap()
    }

    /// Does as it is told: fetches the file in two parts, checks it, and runs it.
    async fn obeys(&self) {
        let told = self.told().await;
        assert_eq!(told["action"], "update");
        let (url, size) = (told["url"].as_str().unwrap(), told["size"].as_u64().unwrap());
        let mut bytes = Vec::new();
        for range in [format!("bytes=0-{}", size / 3), format!("bytes={}-", size / 3 + 1)] {
            let part = reqwest::Client::new().get(url).header("range", range).send().await.unwrap();
            assert_eq!(part.status(), 206);
            bytes.extend(part.bytes().await.unwrap());
        }
        assert_eq!(bytes.len() as u64, size);
        assert_eq!(Digest(Sha256::digest(&bytes).into()).to_string(), told["sha256"].as_str().unwrap());
        let without = reqwest::get(url.split('?').next().unwrap()).await.unwrap();
        assert_eq!(without.status(), 404, "the token is in the address");
        self.says(r#"{"status":"updating"}"#).await;
        let version = told["version"].as_str().unwrap();
        self.says(&format!(r#"{{"status":"online","version":"{version}"}}"#)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_fetches_its_firmware_proves_it_by_its_word_and_goes_back() {
    let node = Node::start("devices-ota").await;
    let board = node.board().await;
    let slot = node.slot(PATIENCE);
    for version in ["1.1.0", "1.2.0"] {
        let plan = node.plan(version);
        slot.admit(&plan).unwrap();
        slot.install(&plan).await.unwrap();
        let obeys = tokio::spawn({
            let board = board.clone();
            async move { board.obeys().await }
        });
        assert_eq!(slot.switch(&plan).await, Ok(Switched::Done));
        obeys.await.unwrap();
        assert_eq!(slot.switch(&plan).await, Ok(Switched::Done), "it runs, and needs not be told again");
        slot.commit(&plan).await.unwrap();
        assert_eq!(slot.runs(&plan).await.unwrap().digest, plan.order.digest);
    }
    assert!(board.told.lock().await.try_recv().is_err());
    // On trial, and undone: it is told to fetch what it ran before.
    let plan = node.plan("1.3.0");
    let obeys = tokio::spawn({
        let board = board.clone();
        async move {
            board.obeys().await;
            board.obeys().await;
        }
    });
    slot.switch(&plan).await.unwrap();
    assert_eq!(slot.undo(&plan).await, Ok(Switched::Done));
    obeys.await.unwrap();
    assert_eq!(slot.runs(&plan).await.unwrap().version.as_str(), "1.2.0");
    node.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_that_refuses_or_says_nothing_fails_and_one_that_runs_it_is_not_told() {
    let node = Node::start("devices-ota-2").await;
    let plan = node.plan("1.1.0");
    let hasty = node.slot(Duration::from_millis(300));
    assert_eq!(hasty.install(&plan).await.unwrap_err().code, "no_device", "it was never heard");
    let board = node.board().await;
    assert_eq!(hasty.switch(&plan).await.unwrap_err().code, "device_timeout");
    board.told().await;
    assert_eq!(hasty.undo(&plan).await, Ok(Switched::Done), "it never left what it ran");
    // It fetched it and says nothing: it may come up with it yet.
    let fetches = tokio::spawn({
        let board = board.clone();
        async move {
            let told = board.told().await;
            reqwest::get(told["url"].as_str().unwrap()).await.unwrap().bytes().await.unwrap();
        }
    });
    let patient = node.slot(Duration::from_secs(3));
    assert_eq!(patient.switch(&plan).await.unwrap_err().code, "device_timeout");
    fetches.await.unwrap();
    let unsure = patient.undo(&plan).await.unwrap_err();
    assert!(unsure.code == code::UNSURE && unsure.message.contains("1.1.0"), "{unsure:?}");
    // Nor does the agent that comes after this one know more.
    let unsure = node.slot(PATIENCE).undo(&plan).await.unwrap_err();
    assert_eq!(unsure.code, code::UNSURE);
    // What it said before is no proof that it runs what it ran; its next word is.
    let back = node.plan("1.0.0");
    assert_eq!(patient.runs(&back).await, None);
    board.says(r#"{"status":"online","version":"1.0.0"}"#).await;
    let heard = async {
        while patient.runs(&back).await.is_none() {
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    time::timeout(PATIENCE, heard).await.unwrap();
    let slot = node.slot(PATIENCE);
    let refuses = tokio::spawn({
        let board = board.clone();
        async move {
            board.told().await;
            board.says(r#"{"status":"failed","why":"no space"}"#).await;
        }
    });
    let trouble = slot.switch(&plan).await.unwrap_err();
    refuses.await.unwrap();
    assert!(trouble.code == "device_failed" && trouble.message.contains("no space"), "{trouble:?}");
    assert_eq!(slot.undo(&plan).await, Ok(Switched::Done), "it said that it does not");
    let mut other = plan.clone();
    other.custom.device_kind = Some("nrf52".to_owned());
    assert_eq!(slot.install(&other).await.unwrap_err().code, "wrong_device");
    // It says that it runs that version already.
    let same = node.plan("1.0.0");
    assert_eq!(slot.runs(&same).await.unwrap().digest, same.order.digest);
    assert_eq!(slot.switch(&same).await, Ok(Switched::Done));
    // Without the way back: that is said, and not claimed.
    assert_eq!(slot.undo(&same).await.unwrap_err().code, code::UNDO);
    assert!(board.told.lock().await.try_recv().is_err());
    let nobody = Device { line: None, ..node.slot(PATIENCE) };
    assert_eq!(nobody.admit(&plan).unwrap_err().code, "no_listener");
    node.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_is_told_one_thing_at_a_time() {
    let node = Node::start("devices-ota-3").await;
    let board = node.board().await;
    let line = node.agent.line.clone().unwrap();
    let order = |action: &str| {
        let params = json!({"device": "shed", "action": action});
        devices::Order::read(&ciborium::Value::serialized(&params).unwrap()).unwrap()
    };
    let (first, second) = (order("first"), order("second"));
    let (_one, mut goes_on) = oneshot::channel();
    let (_other, mut goes_on_too) = oneshot::channel();
    let mut one = Box::pin(line.tell(&first, PATIENCE, &mut goes_on));
    let mut other = Box::pin(line.tell(&second, PATIENCE, &mut goes_on_too));
    let told = select! {
        told = board.told() => told,
        end = &mut one => panic!("{end:?}"),
    };
    assert_eq!(told["action"], "first");
    // The second waits already when the first is answered.
    select! {
        biased;
        end = &mut other => panic!("{end:?}"),
        () = std::future::ready(()) => {}
    }
    board.says(r#"{"status":"first_done"}"#).await;
    let answer = |end| match end {
        End::Done { result } => result.deserialized::<Value>().unwrap()["answer"]["status"].clone(),
        end => panic!("{end:?}"),
    };
    assert_eq!(answer(one.await), "first_done");
    let ends = async {
        assert_eq!(board.told().await["action"], "second");
        board.says(r#"{"status":"second_done"}"#).await;
    };
    let (end, ()) = tokio::join!(other, ends);
    assert_eq!(answer(end), "second_done");
    node.agent.stop().await;
}
