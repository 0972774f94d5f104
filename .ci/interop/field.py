"""Agents in the field against a running hub: a script that says exactly what PicClaw says, and curl as NanoClaw.

The PicClaw here behaves as the Go one does: it registers once, at its start, takes any status of 300 or more for an
error, waits ten seconds at most, and never asks again. The hub is killed and started again under it. Only the standard
library, `fleet` and, for NanoClaw, curl.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from datetime import datetime, timezone

from demo import Failure, until

NODE = "dc-rack-a1"


class Hub:
    def __init__(self, fleet, data, out):
        self.fleet, self.data, self.out = fleet, data, out
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
        self.node_https = self.legacy = "127.0.0.1:0"
        self.process = None
        self.start()

    def start(self):
        """On the addresses it had before: agents know only those."""
        log = open(self.out / "field-hub.log", "ab")
        free = ["--http=127.0.0.1:0", "--mqtt=127.0.0.1:0", "--mqtts=127.0.0.1:0"]
        ports = [f"--node-https={self.node_https}", f"--legacy-http={self.legacy}"]
        (self.data / "addresses.json").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [self.fleet, "hub", "--data", self.data, *free, *ports],
            env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )
        addresses = until("the hub listens", 60, self.addresses)
        self.node_https, self.legacy = addresses["node_https"], addresses["legacy_http"]

    def addresses(self):
        if self.process.poll() is not None:
            raise Failure(f"the hub ended with exit code {self.process.returncode}")
        return json.loads((self.data / "addresses.json").read_text("utf-8"))

    def cli(self, *arguments):
        done = subprocess.run(
            [self.fleet, *arguments, "--data", self.data],
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )
        if done.returncode != 0:
            raise Failure(f"fleet {' '.join(arguments)}: {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
        return done.stdout

    def token(self):
        return json.loads(self.cli("field-token", "create", "-o", "json"))["token"]

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=30)


class PicClaw:
    def __init__(self, endpoint, token, ca):
        self.endpoint, self.token = endpoint, token
        self.context = ssl.create_default_context(cafile=ca)
        # Its operators copy the CA; the name in the certificate is the hub's, not its address.
        self.context.check_hostname = False

    def post(self, path, body):
        request = urllib.request.Request(
            self.endpoint + path, json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}", "User-Agent": "Go-http-client/1.1"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.context) as answer:
                status, said = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            raise Failure(f"{path}: {error.code}: {error.read()[:300]}") from error
        if status >= 300:
            raise Failure(f"{path}: {status}: {said[:300]}")
        return json.loads(said)

    def register(self):
        self.post("/fleet/register", {
            "node_id": NODE, "node_name": "picclaw-edge", "type": "picclaw",
            "capabilities": ["sensor", "exec", "cron", "alert"], "version": "0.1.0",
        })

    def heartbeat(self):
        return self.post("/fleet/heartbeat", {
            "node_id": NODE, "status": "online", "timestamp": now(), "gene_stats": {"total": 1, "shared": 0},
        })

    def event(self, n):
        self.post("/fleet/events", {"node_id": NODE, "type": "alert", "data": {"n": n}, "timestamp": now()})

    def gene(self):
        self.post("/fleet/genes/publish", {
            "node_id": NODE, "gene": {"type": "Gene", "id": "gene_cooling", "strategy": ["fan"]}, "timestamp": now(),
        })


def now():
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--fleet", required=True, type=pathlib.Path)
    arguments.add_argument("--out", required=True, type=pathlib.Path)
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="fleet-field-") as folder:
        data = pathlib.Path(folder) / "hub"
        data.mkdir()
        hub = Hub(given.fleet.resolve(), data, given.out)
        try:
            picclaw(hub, pathlib.Path(folder) / "ca.pem")
            nanoclaw(hub)
            if "balanced" not in hub.cli("ledger", "--verify", "-o", "json"):
                raise Failure("the ledger does not balance")
        except (Failure, OSError, KeyError, ValueError) as failure:
            print(f"FAIL: {failure!r}")
            print(*(given.out / "field-hub.log").read_text("utf-8", "replace").splitlines()[-30:], sep="\n")
            return 1
        finally:
            hub.process.send_signal(signal.SIGINT)
            try:
                hub.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                hub.process.kill()
    return 0


def picclaw(hub, ca):
    ca.write_text(hub.cli("pki", "ca"), "utf-8")
    agent = PicClaw(f"https://{hub.node_https}", hub.token(), ca)
    agent.register()
    agent.heartbeat()
    for n in range(3):
        agent.event(n)
    hub.kill()
    hub.start()
    # It knows nothing of that, and does not register.
    agent.heartbeat()
    for n in range(3, 6):
        agent.event(n)
    # Now it is restarted itself.
    agent.register()
    agent.heartbeat()
    agent.gene()
    node = json.loads(hub.cli("node", "get", NODE, "-o", "json"))
    if (node["state"], node["kind"], node["name"]) != ("online", "picclaw", "picclaw-edge"):
        raise Failure(f"the node is not as it said: {node}")
    if len(json.loads(hub.cli("gene", "ls", "-o", "json"))["items"]) != 1:
        raise Failure("the gene is not listed")
    print("PicClaw registered, lived through a kill of the hub, and registered again")


def nanoclaw(hub):
    if shutil.which("curl") is None:
        if os.environ.get("CI") == "true":
            raise Failure("curl is missing")
        print("skip  NanoClaw: curl is missing")
        return
    token = hub.token()
    for path, body in [
        ("report", {"node_id": "nano-1", "sensor_type": "temperature", "value": 23.5, "unit": "C"}),
        ("batch", {"gateway_id": "nano-1", "batch_timestamp": now(),
                   "readings": [{"node_id": "board-7", "sensor_type": "humidity", "value": 41, "unit": "%"}]}),
    ]:
        done = subprocess.run(
            ["curl", "-s", "-S", "-m", "20", "-w", "\n%{http_code}", "-H", "Content-Type: application/json",
             "-H", f"Authorization: Bearer {token}", "-d", json.dumps(body), f"http://{hub.legacy}/{path}"],
            capture_output=True, text=True, timeout=60,
        )
        said, _, status = done.stdout.rpartition("\n")
        if status != "201" or json.loads(said)["status"] != "accepted":
            raise Failure(f"curl {path}: {done.stdout} {done.stderr}")
    for arguments, value in [(["--metric", "temperature"], 23.5), (["--device", "board-7"], 41)]:
        told = json.loads(hub.cli("telemetry", "nano-1", *arguments, "--since", "1h", "-o", "json"))
        if told["series"][0]["points"][-1][1] != value:
            raise Failure(f"nano-1 {arguments}: {told}")
    print("curl reported as NanoClaw, and both readings are stored")


if __name__ == "__main__":
    sys.exit(main())
