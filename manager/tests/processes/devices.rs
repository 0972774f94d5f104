//! A MicroClaw behind a node: what it says arrives at the hub under its node and device, before and after the link was
//! cut and the agent killed; and the hub tells it.

use std::{net::SocketAddr, time::Duration};

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::given::{Agent, Hub, until};

const NODE: &str = "gw-1";

/// A board whose session is opened again whenever it ends.
struct Board {
    client: AsyncClient,
    told: mpsc::UnboundedReceiver<String>,
    acked: mpsc::UnboundedReceiver<()>,
}

impl Board {
    fn start(listener: SocketAddr) -> Self {
        let mut options = MqttOptions::new("esp32-a1", listener.ip().to_string(), listener.port());
        options.set_keep_alive(Duration::from_secs(60));
        let (client, mut events) = AsyncClient::new(options, 64);
        let ((says, told), (acks, acked)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let hears = client.clone();
        tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        hears.try_subscribe("clawland/shed/cmd", QoS::AtMostOnce).unwrap();
                    }
                    Ok(Event::Incoming(Packet::Publish(said))) => {
                        let _ = says.send(String::from_utf8(said.payload.to_vec()).unwrap());
                    }
                    Ok(Event::Incoming(Packet::PubAck(_))) => drop(acks.send(())),
                    Ok(_) => {}
                    Err(_) if says.is_closed() => return,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        Self { client, told, acked }
    }

    /// Says a reading until the agent says that it has it.
    async fn reads(&mut self, value: f64) {
        let payload = json!({"value": value, "unit": "C"}).to_string();
        self.client
            .publish("clawland/shed/sensors/temperature", QoS::AtLeastOnce, false, payload)
            .await
            .unwrap();
        self.acked.recv().await.unwrap();
    }
}

/// The values that the hub has of the device's temperature, as often as it has them.
async fn stored(hub: &Hub) -> Vec<f64> {
    let path = format!("/api/v1/nodes/{NODE}/telemetry?device=shed&metric=temperature&from_ms=0");
    let all = hub.get(&path).await;
    let Some(series) = all["series"].as_array().and_then(|series| series.first()) else { return vec![] };
    assert_eq!((&series["device"], &series["unit"]), (&json!("shed"), &json!("Cel")));
    let points = series["points"].as_array().unwrap();
    points.iter().map(|point| point[1].as_f64().unwrap()).collect()
}

async fn post(hub: &Hub, path: &str, body: &Value) -> Value {
    let request = reqwest::Client::new().post(format!("http://{}{path}", hub.http)).bearer_auth(hub.token());
    let request = request.header("content-type", "application/json").body(body.to_string());
    request.send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_board_s_readings_arrive_before_and_after_the_link_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    // Free a moment ago, and the same for every start of the agent.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listens = listener.to_string();
    let settings = [("DEVICES_LISTEN", listens.as_str()), ("DEVICES_OPEN", "true")];
    let mut agent = Agent::new(folder.path(), NODE, hub.mqtt, &settings).started().await;
    let nodes = async || hub.get("/api/v1/nodes").await["items"].as_array().map_or(0, Vec::len);
    until("the node is known", nodes, |nodes| *nodes == 1).await;
    let mut board = Board::start(listener);
    board.reads(20.0).await;
    until("the first reading is stored", async || stored(&hub).await, |values| values == &[20.0]).await;
    hub.kill();
    board.reads(21.0).await;
    agent.kill();
    agent.up().await;
    board.reads(22.0).await;
    hub.up().await;
    board.reads(23.0).await;
    let all = [20.0, 21.0, 22.0, 23.0];
    until("all readings are stored once", async || stored(&hub).await, |values| values == &all).await;
    let devices = hub.get(&format!("/api/v1/nodes/{NODE}/devices")).await;
    let shed = &devices["items"][0];
    let facts = [&shed["id"], &shed["kind"], &shed["unsequenced"]];
    assert_eq!(json!(facts), json!(["shed", "microclaw", true]), "{devices}");

    let command =
        json!({"nodes": [NODE], "kind": "device", "params": {"device": "shed", "action": "restart"}});
    let made = post(&hub, "/api/v1/commands", &command).await;
    assert_eq!(board.told.recv().await.unwrap(), r#"{"action":"restart"}"#);
    board
        .client
        .publish("clawland/shed/status", QoS::AtMostOnce, false, r#"{"status":"restarted"}"#)
        .await
        .unwrap();
    let path = format!("/api/v1/commands/{}", made["id"].as_str().unwrap());
    let state = async || hub.get(&path).await["executions"][0]["state"].clone();
    until("the board has confirmed it", state, |state| state == "succeeded").await;
    agent.drained().await;
    agent.end().await;
    hub.end().await;
}
