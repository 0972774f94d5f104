//! What is pasted, as it is printed.

use super::*;
use crate::core::identity::filter_error;

fn given(preset: Preset) -> Given {
    Given {
        host: "10.0.0.7".to_owned(),
        port: 8883,
        named: false,
        user: "tool".to_owned(),
        login: Login::Password("pass'word".to_owned()),
        read: preset.read(),
        ca: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned(),
    }
}

#[test]
fn every_preset_asks_for_what_may_be_granted() {
    for preset in Preset::value_variants() {
        assert!(!preset.read().is_empty());
        for (write, filters) in [(false, preset.read()), (true, preset.write())] {
            for filter in filters {
                assert_eq!(filter_error(&filter, write), None, "{preset:?} {filter}");
            }
        }
    }
}

#[test]
fn node_red_imports_one_flow() {
    let text = Preset::NodeRed.text(&given(Preset::NodeRed));
    let flow: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let ids: std::collections::BTreeSet<_> = flow.iter().map(|node| node["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), flow.len(), "ids are unique");
    insta::assert_snapshot!(text, @r##"
    [
      {
        "id": "260bf32be8a0a0fb",
        "label": "Fleet",
        "type": "tab"
      },
      {
        "ca": "",
        "caname": "fleet-ca.pem",
        "cert": "",
        "certname": "",
        "credentials": {
          "cadata": "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
        },
        "id": "0193adb782970ff6",
        "key": "",
        "keyname": "",
        "name": "Fleet CA",
        "servername": "hub.fleet.internal",
        "type": "tls-config",
        "verifyservercert": true
      },
      {
        "autoConnect": true,
        "autoUnsubscribe": true,
        "broker": "10.0.0.7",
        "cleansession": true,
        "clientid": "",
        "credentials": {
          "password": "pass'word",
          "user": "tool"
        },
        "id": "b6b8ec0ffb6bf133",
        "keepalive": "60",
        "name": "Fleet",
        "port": "8883",
        "protocolVersion": "5",
        "tls": "0193adb782970ff6",
        "type": "mqtt-broker",
        "usetls": true
      },
      {
        "broker": "b6b8ec0ffb6bf133",
        "datatype": "auto-detect",
        "id": "2b8fabc419e4d7f5",
        "inputs": 0,
        "name": "",
        "nl": false,
        "qos": "0",
        "rap": true,
        "rh": 0,
        "topic": "fleet/v1/hub/#",
        "type": "mqtt in",
        "wires": [
          [
            "7ce2a2fa5174c270"
          ]
        ],
        "x": 200,
        "y": 80,
        "z": "260bf32be8a0a0fb"
      },
      {
        "active": true,
        "complete": "payload",
        "id": "7ce2a2fa5174c270",
        "name": "",
        "targetType": "msg",
        "tosidebar": true,
        "type": "debug",
        "wires": [],
        "x": 480,
        "y": 80,
        "z": "260bf32be8a0a0fb"
      }
    ]
    "##);
}

#[test]
fn telegraf_takes_samples_with_their_times() {
    let text = Preset::Telegraf.text(&given(Preset::Telegraf));
    let conf = text.split("<<'END'\n").last().unwrap().trim_end().strip_suffix("END").unwrap();
    let read: toml::Table = toml::from_str(conf).unwrap();
    let input = &read["inputs"]["mqtt_consumer"][0];
    assert_eq!(input["topics"][0].as_str(), Some("fleet/v1/hub/samples/+"));
    assert_eq!(input["password"].as_str(), Some("pass'word"));
    insta::assert_snapshot!(text, @r##"
    cat > /etc/telegraf/fleet-ca.pem <<'END'
    -----BEGIN CERTIFICATE-----
    AA==
    -----END CERTIFICATE-----
    END

    cat > /etc/telegraf/telegraf.d/fleet.conf <<'END'
    [[inputs.mqtt_consumer]]
      servers = ["ssl://10.0.0.7:8883"]
      topics = ["fleet/v1/hub/samples/+"]
      client_id = "telegraf-tool"
      username = "tool"
      password = "pass'word"
      tls_ca = "/etc/telegraf/fleet-ca.pem"
      tls_server_name = "hub.fleet.internal"
      topic_tag = ""
      data_format = "json_v2"

      [[inputs.mqtt_consumer.topic_parsing]]
        topic = "fleet/v1/hub/samples/+"
        tags = "_/_/_/_/node"

      [[inputs.mqtt_consumer.json_v2]]
        measurement_name = "fleet"

        [[inputs.mqtt_consumer.json_v2.object]]
          path = "@this"
          timestamp_key = "time_ms"
          timestamp_format = "unix_ms"
          tags = ["device", "metric", "unit"]
          excluded_keys = ["late"]
    END
    "##);
}

#[test]
fn home_assistant_is_told_step_by_step() {
    insta::assert_snapshot!(Preset::HomeAssistant.text(&given(Preset::HomeAssistant)), @r##"
    # 1. Save the CA where your browser can upload it:
    cat > fleet-ca.pem <<'END'
    -----BEGIN CERTIFICATE-----
    AA==
    -----END CERTIFICATE-----
    END

    # 2. In Home Assistant: Settings, Devices & services, Add integration, MQTT:
       Broker       10.0.0.7
       Port         8883
       Username     tool
       Password     pass'word
       Advanced options: Broker certificate validation: Custom, upload fleet-ca.pem
    # The hub's certificate has no name "10.0.0.7": put names = ["10.0.0.7"] under [listen] in the hub's fleet.toml and
    # restart it, or the tool will refuse it.

    # 3. Its birth message stays homeassistant/status, its discovery prefix homeassistant.
    # 4. Let the hub announce its nodes: enabled = true under [home_assistant] in fleet.toml, or
    #    fleet hub --home-assistant
    "##);
}

#[test]
fn mosquitto_is_a_command_and_a_bridge() {
    insta::assert_snapshot!(Preset::Mosquitto.text(&given(Preset::Mosquitto)), @r##"
    cat > fleet-ca.pem <<'END'
    -----BEGIN CERTIFICATE-----
    AA==
    -----END CERTIFICATE-----
    END
    # The hub's certificate has no name "10.0.0.7": put names = ["10.0.0.7"] under [listen] in the hub's fleet.toml and
    # restart it, or the tool will refuse it.

    mosquitto_sub -h 10.0.0.7 -p 8883 --cafile fleet-ca.pem -u 'tool' -P 'pass'\''word' -t 'fleet/v1/hub/#' -v

    # The same into a mosquitto of your own, in its mosquitto.conf:
    # connection fleet
    # address 10.0.0.7:8883
    # bridge_cafile /etc/mosquitto/fleet-ca.pem
    # remote_username tool
    # remote_password pass'word
    # remote_clientid tool-bridge
    # cleansession true
    # try_private false
    # notifications false
    # topic fleet/v1/hub/# in 0
    "##);
}

#[test]
fn a_certificate_takes_the_place_of_a_password() {
    for preset in Preset::value_variants() {
        let login = Login::Certificate { file: "/k/tool.crt".into(), key: "/k/tool.key".into() };
        let text = preset.text(&Given { login, named: true, ..given(*preset) });
        assert!(text.contains("/k/tool.crt") && text.contains("/k/tool.key"), "{preset:?}");
        assert!(!text.contains("pass"), "{preset:?}");
        assert!(!text.contains("fleet.toml") || *preset == Preset::HomeAssistant, "{preset:?}");
    }
}
