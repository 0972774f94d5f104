"""From two empty folders to a node over MQTTS, and a stranger's tool that reads just what it was granted.

Runs the commands of the README with the programs as they are installed: `fleet hub`, `fleet join-token create`,
`fleet-agent join`, `fleet-agent run`, `fleet access create`. mosquitto_sub and mosquitto_pub, over TLS with the hub's
CA, read raw telemetry and plain JSON and are refused everything else. Then the node is revoked, and is gone.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from demo import Failure, until
from reader import samples

NODE = "edge-1"


class Programs:
    """What was started, with its log; all of it is ended in the end."""

    def __init__(self, out):
        self.out = out
        self.running = []
        # Whatever FLEET_* variables steer the checks must not steer what is checked.
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}

    def start(self, name, *command):
        log = open(self.out / f"gate-{name}.log", "wb")
        process = subprocess.Popen(
            list(map(str, command)), env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        self.running.append((name, process))
        return process

    def run(self, *command, code=0):
        """Runs to the end; its output. Another exit code than `code` is a failure."""
        done = subprocess.run(
            list(map(str, command)), env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        if done.returncode != code:
            said = (done.stdout + done.stderr).strip()[-600:]
            raise Failure(f"{' '.join(map(str, command))}: exit code {done.returncode}, not {code}: {said}")
        return done.stdout

    def stop(self):
        for _, process in reversed(self.running):
            process.send_signal(signal.SIGINT)
        for name, process in self.running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                print(f"{name} did not stop within 10 s of SIGINT")
                process.kill()

    def print_logs(self):
        for name, _ in self.running:
            path = self.out / f"gate-{name}.log"
            print(f"--- {path}:", *path.read_text("utf-8", "replace").splitlines()[-30:], sep="\n")


class Tool:
    """mosquitto_sub over TLS; one message a line, payloads in hexadecimal."""

    def __init__(self, programs, hub, name, *arguments, version="mqttv311"):
        self.path = programs.out / f"gate-{name}.txt"
        self.errors = programs.out / f"gate-{name}.err"
        with open(self.path, "wb") as lines, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                ["mosquitto_sub", *hub.tls, "-V", version, "-q", "1", "-F", "%t %x", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=errors,
            )

    def messages(self):
        lines = self.path.read_text("ascii").split("\n")[:-1]
        return [(topic, bytes.fromhex(payload)) for topic, payload in (line.split(" ") for line in lines)]

    def topics(self):
        return {topic for topic, _ in self.messages()}

    def said(self):
        return self.errors.read_text("utf-8", "replace")

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=10)


class Hub:
    def __init__(self, programs, fleet, folder):
        self.programs = programs
        self.fleet = fleet
        self.data = folder / "hub"
        free = [f"{flag}=127.0.0.1:0" for flag in ["--http", "--mqtt", "--mqtts", "--node-https"]]
        programs.start("hub", fleet, "hub", "--data", self.data, *free)
        addresses = until("the hub listens", 30, self.addresses)
        self.node_https = addresses["node_https"]
        self.mqtts = addresses["mqtts"].rsplit(":", 1)
        self.ca = folder / "ca.pem"
        self.ca.write_text(self.cli("pki", "ca"), "utf-8")
        self.tls = ["-h", self.mqtts[0], "-p", self.mqtts[1], "--cafile", str(self.ca)]

    def addresses(self):
        return json.loads((self.data / "addresses.json").read_text("utf-8"))

    def cli(self, *arguments, code=0):
        return self.programs.run(self.fleet, *arguments, "--data", self.data, code=code)

    def ask(self, *arguments):
        return json.loads(self.cli(*arguments, "-o", "json"))

    def state(self):
        return self.ask("node", "get", NODE)["state"]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--fleet", required=True, type=pathlib.Path)
    arguments.add_argument("--agent", required=True, type=pathlib.Path)
    arguments.add_argument("--out", required=True, type=pathlib.Path)
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="fleet-interop-") as folder:
        programs = Programs(given.out)
        try:
            check(programs, given, pathlib.Path(folder))
        except (Failure, OSError, subprocess.TimeoutExpired) as failure:
            print(f"FAIL: {failure}")
            programs.print_logs()
            return 1
        finally:
            programs.stop()
    return 0


def check(programs, given, folder):
    hub = Hub(programs, given.fleet, folder)
    agent = folder / "agent"
    token = hub.ask("join-token", "create")["token"]
    programs.run(given.agent, "join", hub.node_https, "--token", token, "--node", NODE, "--data", agent)
    programs.start("agent", given.agent, "run", "--data", agent, "--api", "127.0.0.1:0")
    until("the node is online over MQTTS", 30, lambda: hub.state() == "online")
    print("from two empty folders to a node that is online over MQTTS: four commands")
    # A token is good for one use; the same key asking again is not a second one.
    programs.run(given.agent, "join", hub.node_https, "--token", token, "--node", NODE, "--data", agent)
    programs.run(
        given.agent, "join", hub.node_https, "--token", token, "--node", "edge-2", "--data", folder / "thief", code=4
    )
    print("the token is used up for everybody else")
    reads(programs, hub)
    refused(programs, hub)
    hub.cli("node", "revoke", NODE, "--yes")
    began = time.monotonic()
    until("the revoked node is gone", 20, lambda: hub.state() not in ("online", "new"))
    print(f"revoked: {hub.state()} after {time.monotonic() - began:.1f} s")


def reads(programs, hub):
    """The granted filters give raw telemetry and plain JSON."""
    grants = ["fleet/v1/+/up/telemetry", "fleet/v1/+/up/backfill", "fleet/v1/hub/#"]
    access = hub.ask("access", "create", "grafana", *[word for filter in grants for word in ("--read", filter)])
    hub.user = ["-u", access["username"], "-P", access["password"]]
    topics = [word for filter in grants for word in ("-t", filter)]
    tool = Tool(programs, hub, "grafana", *hub.user, *topics)
    try:
        lanes = [f"fleet/v1/{NODE}/up/{lane}" for lane in ("telemetry", "backfill")]
        raw = lambda: [payload for topic, payload in tool.messages() if topic in lanes]
        # The agent uploads its own figures every 90 s.
        until("mosquitto_sub has raw telemetry", 150, lambda: any(any(samples(payload)) for payload in raw()))
        json_of = lambda kind: [
            json.loads(payload) for topic, payload in tool.messages() if topic == f"fleet/v1/hub/{kind}/{NODE}"
        ]
        until("mosquitto_sub has plain JSON", 30, lambda: json_of("node") and json_of("latest") and json_of("samples"))
    finally:
        tool.close()
    latest = json_of("latest")[-1]
    if "cpu_percent" not in latest["values"] or json_of("node")[-1]["id"] != NODE:
        raise Failure(f"unexpected JSON: {latest}")
    print(f"mosquitto_sub over TLS: {len(raw())} raw batches, {len(latest['values'])} latest values as JSON")
    # Retained: a tool that comes later sees what is, at once.
    late = Tool(programs, hub, "late", *hub.user, "-t", f"fleet/v1/hub/node/{NODE}", version="mqttv5")
    try:
        until("a late tool is told what is", 10, lambda: late.topics())
    finally:
        late.close()


def refused(programs, hub):
    """The same credential is refused everything else, and nobody else gets in."""
    denied, not_let_in = "all subscription requests were denied", "connection error"
    for name, arguments, words in [
        ("events", [*hub.user, "-t", f"fleet/v1/{NODE}/up/event"], denied),
        ("all", [*hub.user, "-t", "#"], denied),
        ("shared", [*hub.user, "-t", "$share/g/fleet/v1/hub/#"], denied),
        ("wrong", ["-u", "grafana", "-P", "hunter2", "-t", "fleet/v1/hub/#"], not_let_in),
        ("nobody", ["-t", "fleet/v1/hub/#"], not_let_in),
    ]:
        tool = Tool(programs, hub, f"refused-{name}", *arguments, version="mqttv5")
        try:
            # mosquitto_sub ends when all its subscriptions are refused, or its CONNECT is.
            tool.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            raise Failure(f"{arguments} was not refused: {tool.said()!r}") from None
        finally:
            tool.close()
        said = tool.said()
        if words not in said.lower() or tool.messages():
            raise Failure(f"{name}: {said!r}, {len(tool.messages())} messages")
    publish = ["mosquitto_pub", *hub.tls, *hub.user, "-V", "mqttv5", "-q", "1", "-m", "x"]
    for topic in [f"fleet/v1/{NODE}/up/event", f"fleet/v1/{NODE}/down/command", "fleet/v1/hub/node/x", "other"]:
        done = subprocess.run([*publish, "-t", topic], capture_output=True, text=True, timeout=20)
        said = done.stdout + done.stderr
        if "not authori" not in said.lower():
            raise Failure(f"a publish to {topic} was not refused: {done.returncode} {said!r}")
    print("the same credential is refused everything else")


if __name__ == "__main__":
    sys.exit(main())
