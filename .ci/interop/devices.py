"""Boards behind a node, at a running demo: the README's three ways to hand in a reading, before and after the link was
cut, and paho as a MicroClaw that hears a command and confirms it. Then mosquitto_pub as a MicroClaw with a password, at an
agent of its own."""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

import paho.mqtt.client as mqtt

import edge
from demo import Demo, Failure, until

ROOT = pathlib.Path(__file__).resolve().parents[2]
NODE = "demo-1"
READINGS = {"by-curl": 21.5, "by-grpc": 22.5, "by-mqtt": 23.5}


def check(found, expected, what):
    if found != expected:
        raise Failure(f"{what}: found {found!r}, expected {expected!r}")


def documented():
    """The README's commands, but for the line that says where the node is."""
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.split("### Devices behind a node\n")[1].split("\n### ")[0]
    block = re.findall(r"^```sh\n(.*?)^```$", section, re.S | re.M)[0]
    first, commands = block.split("\n", 1)
    check(first, "API=127.0.0.1:PORT MQTT_PORT=PORT", "the first line of the README's commands")
    return commands


def say_all(api, port):
    env = dict(os.environ, API=api, MQTT_PORT=port, PATH=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    said = subprocess.run(["bash", "-ec", documented()], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    if said.returncode:
        raise Failure(f"the README's commands: {said.stderr.strip()[-800:]}")
    if "1 record is on disk" not in said.stdout:
        raise Failure(f"the README's script said {said.stdout!r}")


def stored(demo, device):
    """The values that the hub has, and their unit."""
    path = f"/api/v1/nodes/{NODE}/telemetry?device={device}&metric=temperature&from_ms=0"
    series = demo.get(path)["series"]
    return [(series[0]["unit"], value) for _, value in series[0]["points"]] if series else []


def all_stored(demo, times):
    return all(stored(demo, device) == [("Cel", value)] * times for device, value in READINGS.items())


class Board:
    """paho as a MicroClaw."""

    def __init__(self, port):
        self.told = []
        self.heard = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="esp32-paho", protocol=mqtt.MQTTv311)
        self.client.on_connect = self.connected
        self.client.on_message = self.message
        self.client.connect("127.0.0.1", int(port), keepalive=60)
        self.client.loop_start()

    def connected(self, client, _data, _flags, reason, _properties):
        if reason == 0:
            client.publish("clawland/paho/status", '{"status":"online","version":"0.2.0"}', retain=True)
            client.subscribe("clawland/paho/cmd")

    def message(self, client, _data, message):
        self.told.append((message.topic, json.loads(message.payload)))
        client.publish("clawland/paho/status", '{"status":"restarted"}')
        self.heard.set()

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()


def known(demo, device):
    items = demo.get(f"/api/v1/nodes/{NODE}/devices")["items"]
    return next((item for item in items if item["id"] == device), None)


def microclaw(demo, fleet, data, port):
    board = Board(port)
    try:
        board.client.publish("clawland/paho/batch", '[{"sensor":"t","value":1,"unit":"C"},{"sensor":"h","value":40}]')
        shown = until("the hub shows the board", 30, lambda: known(demo, "paho"))
        check([shown["kind"], shown["firmware"], shown["unsequenced"]], ["microclaw", "0.2.0", True], "the board")
        command = [fleet, "--data", data, "command", "run", NODE, "--kind", "device", "-o", "json"]
        command += ["--param", "device=paho", "--param", "action=restart", "--ttl", "1m"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=90)
        check(done.returncode, 0, f"the command's exit code; it said {done.stdout[-600:]} {done.stderr[-600:]}")
        check(board.told, [("clawland/paho/cmd", {"action": "restart"})], "what the board was told")
    finally:
        board.stop()


def passwords(program, data, log):
    """Made by the agent's own command, shown once, and needed from then on."""
    data.mkdir()
    (data / "agent.toml").write_text('[devices]\nlisten = "127.0.0.1:0"\n', "utf-8")
    agent = edge.Agent(program, data, log)
    try:
        served = until("the agent serves devices", 30, lambda: re.search(rb"address=127\.0\.0\.1:(\d+)", log.read_bytes()))
        port = served[1].decode()

        def device(*words):
            said = subprocess.run([program, "device", *words, "--data", data, "--api", agent.address],
                                  capture_output=True, text=True, timeout=30)
            check(said.returncode, 0, f"fleet-agent device {' '.join(words)}: {said.stderr.strip()}")
            return said.stdout

        def publish(*words):
            command = ["mosquitto_pub", "-p", port, "-i", "esp32-9", "-t", "clawland/shed/sensors/temperature"]
            command += ["-m", '{"value":23.50,"unit":"C"}', *words]
            return subprocess.run(command, capture_output=True, timeout=30).returncode

        password = json.loads(device("add", "shed", "--heartbeat", "60", "-o", "json"))["password"]
        check(publish("-u", "shed", "-P", password), 0, "the exit code with the password")
        until("the reading is held", 30, lambda: agent.samples() == 1)
        check([publish() != 0, publish("-u", "shed", "-P", "guess") != 0], [True, True], "refused without it")
        # Held to its device, and at QoS 1 acknowledged when it is on disk.
        publish("-u", "shed", "-P", password, "-t", "clawland/barn/sensors/temperature")
        check(publish("-u", "shed", "-P", password, "-q", "1"), 0, "the exit code at QoS 1")
        check(agent.samples(), 2, "samples, as soon as the second was acknowledged")
        check("shed" in device("ls"), True, "the device is listed")
        device("rm", "shed")
        check(publish("-u", "shed", "-P", password) != 0, True, "refused once it is removed")
        agent.stop()
    finally:
        if agent.process.poll() is None:
            agent.process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fleet", required=True, type=pathlib.Path)
    parser.add_argument("--agent", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    options = parser.parse_args()
    fleet = options.fleet.resolve()
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "data"
        log = options.out / "devices-demo.log"
        demo = Demo(fleet, data, log, 2)
        try:
            said = rb"demo-1 +edge API http://(\S+), devices mqtt://127\.0\.0\.1:(\d+)"
            found = until("the demo says where devices come in", 30, lambda: re.search(said, log.read_bytes()))
            api, port = found[1].decode(), found[2].decode()
            say_all(api, port)
            until("all three readings are at the hub", 30, lambda: all_stored(demo, 1))
            offline = data / "nodes" / NODE / "offline"
            offline.touch()
            away = lambda: demo.get(f"/api/v1/nodes/{NODE}")["state"] in ("suspect", "offline")
            until("the hub misses the node", 60, away)
            say_all(api, port)
            check(all_stored(demo, 1), True, "what the hub has while the link is cut")
            offline.unlink()
            until("all six readings are at the hub", 90, lambda: all_stored(demo, 2))
            microclaw(demo, fleet, data, port)
            ledger = until("the ledger adds up", 30, lambda: demo.get("/api/v1/ledger"))
            check(ledger["balanced"], True, "the ledger")
            demo.stop()
            passwords(options.agent.resolve(), pathlib.Path(folder) / "agent", options.out / "devices-agent.log")
        except (Failure, edge.Failure) as failure:
            print(failure)
            demo.print_log()
            return 1
        finally:
            demo.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
