"""Third-party MQTT clients, each with the messages it got: `messages()` gives (topic, payload) in order.

Each reads at QoS 1 with the tool credential of the data folder.
"""

import subprocess
import threading

import paho.mqtt.client as mqtt

from demo import Failure, until


class Mosquitto:
    """mosquitto_sub, MQTT 3.1.1. Its output goes through a file, one message a line, payloads in hexadecimal."""

    name = "mosquitto_sub"

    def __init__(self, demo, filters, out):
        host, port = demo.mqtt
        username, password = demo.credential()
        self.path = out / "mosquitto_sub.txt"
        self.errors = out / "mosquitto_sub.log"
        topics = [argument for name in filters for argument in ("-t", name)]
        with open(self.path, "wb") as lines, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                ["mosquitto_sub", "-h", host, "-p", str(port), "-u", username, "-P", password]
                + ["-i", "interop-mosquitto", "-V", "mqttv311", "-q", "1", "-F", "%t %x", *topics],
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=errors,
            )

    def messages(self):
        if self.process.poll() not in (None, 0):
            raise Failure(f"mosquitto_sub ended: {self.errors.read_text('utf-8', 'replace')[-500:]}")
        # A last line without its end is still being written.
        lines = self.path.read_text("ascii").split("\n")[:-1]
        return [(topic, bytes.fromhex(payload)) for topic, payload in (line.split(" ") for line in lines)]

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=5)


class Paho:
    """paho-mqtt, MQTT 5, in this process."""

    name = "paho"

    def __init__(self, demo, filters, _out):
        host, port = demo.mqtt
        self.lock = threading.Lock()
        self.got = []
        self.granted = None
        self.trouble = None
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "interop-paho", protocol=mqtt.MQTTv5)
        self.client.username_pw_set(*demo.credential())
        self.client.on_connect = lambda client, *rest: self.connected(client, rest[2], filters)
        self.client.on_subscribe = self.subscribed
        self.client.on_message = self.received
        self.client.connect(host, port, keepalive=30)
        self.client.loop_start()
        until("paho is subscribed", 10, lambda: self.granted or self.trouble)

    def connected(self, client, reason, filters):
        if reason.is_failure:
            self.trouble = f"CONNECT: {reason}"
        else:
            client.subscribe([(name, 1) for name in filters])

    def subscribed(self, _client, _userdata, _mid, reasons, _properties):
        if any(reason.is_failure for reason in reasons):
            self.trouble = f"SUBSCRIBE: {', '.join(map(str, reasons))}"
        self.granted = reasons

    def received(self, _client, _userdata, message):
        with self.lock:
            self.got.append((message.topic, message.payload))

    def messages(self):
        if self.trouble:
            raise Failure(f"paho was refused: {self.trouble}")
        with self.lock:
            return list(self.got)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()
