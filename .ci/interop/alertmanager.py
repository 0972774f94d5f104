"""A real Alertmanager is told of a demo fleet's alerts: it receives them, and they resolve.

Rules are applied by the command line and judged over what the demo's node really measures. The Alertmanager is then
stopped while an alert fires, and hears of it when it is back. `fleet rule test` says the same of the recorded samples.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from demo import Demo, Failure, until
from line import free_port

BINARIES = ["prometheus-alertmanager", "alertmanager"]
RULES = """rules:
  - id: busy
    sensor: node
    field: cpu_percent
    condition: "value {condition}"
    severity: critical
    labels: {{team: lab}}
    message: "{{{{ node }}}} works"
"""


class Alertmanager:
    """Debian's, alone, and with nobody to tell."""

    def __init__(self, folder, out):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.out = out
        self.process = None
        (folder / "alertmanager.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n", "utf-8")

    def start(self):
        binary = next(filter(None, map(shutil.which, BINARIES)))
        log = open(self.out / "alertmanager.log", "ab")
        self.process = subprocess.Popen(
            [binary, f"--config.file={self.folder / 'alertmanager.yml'}", f"--storage.path={self.folder / 'am'}",
             f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address="],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        until("the Alertmanager is ready", 60, lambda: self.get("/-/ready", as_json=False))

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=20)
            self.process = None

    def get(self, path, as_json=True):
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            body = answer.read()
        return json.loads(body) if as_json else body

    def alerts(self, name):
        """Its active alerts of this name, by their labels."""
        found = self.get("/api/v2/alerts?active=true")
        return [alert for alert in found if alert["labels"]["alertname"] == name]


def cli(given, data, *arguments, code=0):
    done = subprocess.run([given.fleet, *arguments, "--data", data], capture_output=True, text=True, timeout=60)
    if done.returncode != code:
        raise Failure(f"fleet {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleet", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-alertmanager-") as name:
        folder = pathlib.Path(name)
        manager = Alertmanager(folder, given.out)
        data = folder / "data"
        data.mkdir(mode=0o700)
        receiver = f'[[alerts.receivers]]\nname = "am"\nkind = "alertmanager"\nurl = "{manager.url}"\nseverity = "info"\n'
        (data / "fleet.toml").write_text(receiver, "utf-8")
        demo = None
        try:
            manager.start()
            demo = Demo(given.fleet, data, given.out / "alertmanager-demo.log", 1)
            check(given, data, manager)
            demo.stop()
            demo = None
        finally:
            if demo:
                demo.kill()
                demo.print_log()
            manager.stop()
    print("ok: an Alertmanager receives what fires, also what fired while it was away, and it resolves")


def check(given, data, manager):
    cli(given, data, "alert", "test", "am")
    until("the test arrives", 30, lambda: manager.alerts("receiver-test"))
    rules = data.parent / "rules.yaml"

    def apply(condition):
        rules.write_text(RULES.format(condition=condition), "utf-8")
        cli(given, data, "rule", "check", rules)
        cli(given, data, "rule", "apply", rules)

    apply(">= 0")
    [alert] = until("the alert arrives", 60, lambda: manager.alerts("busy"))
    labels = {"alertname": "busy", "node": "demo-1", "severity": "critical", "team": "lab"}
    if alert["labels"] != labels or alert["annotations"]["summary"] != "demo-1 works":
        raise Failure(f"the alert arrives as {alert}")
    told = cli(given, data, "rule", "test", rules, "--since", "5m")
    if "firing" not in told:
        raise Failure(f"over the recorded samples the rule says {told}")
    [shown] = json.loads(cli(given, data, "alert", "ls", "--rule", "busy", "-o", "json"))["items"]
    cli(given, data, "alert", "ack", shown["id"], "--comment", "looking")

    apply("< 0")
    until("the alert resolves", 60, lambda: not manager.alerts("busy"))
    over = json.loads(cli(given, data, "alert", "get", shown["id"], "-o", "json"))
    if over["state"] != "resolved" or over["acknowledged_by"] != "operator admin":
        raise Failure(f"the alert ends as {over}")

    manager.stop()
    apply(">= 0")
    waits = lambda: json.loads(cli(given, data, "alert", "receivers", "-o", "json"))["items"][0]
    until("the notification waits", 60, lambda: waits()["pending_count"] and waits().get("failure"))
    manager.start()
    until("what fired meanwhile arrives", 60, lambda: manager.alerts("busy"))

    wrong = data.parent / "wrong.yaml"
    wrong.write_text("rules:\n  - {id: a, condition: 'valeu > 1'}\n", "utf-8")
    for verb in ["check", "apply"]:
        said = cli(given, data, "rule", verb, wrong, code=1 if verb == "check" else 2)
        if "valeu" not in said or "2" not in said:
            raise Failure(f"a wrong file is refused by {said}")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"FAIL: {failure}")
