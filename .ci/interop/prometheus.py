"""A real Prometheus with the shipped configuration beside a running demo fleet.

promtool accepts the metrics, the configuration and the rules, and runs the rules' tests. Prometheus scrapes the hub and
reads the history through remote read. A node whose line was cut for an hour delivers its backlog, and the hour stands in
`query_range` without a hole. Every query of every dashboard is executed, with its variables resolved as Grafana does
it, and gives numbers with the labels that its legend names. Figures: a node's day, and /metrics, with 10,000 nodes.
"""

import argparse
import json
import math
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from demo import Demo, Failure, Refused, until
from line import Line, free_port

GRAFANA = pathlib.Path(__file__).resolve().parents[2] / "grafana"
NODE, DEVICE = "edge-1", "probe"
SERIES = f'fleet_sample{{node="{NODE}",device="{DEVICE}",metric="temperature"}}'
STEP = 15  # seconds between the samples of the device
HOUR, DAY = 3600, 86400
FLEET = 10_000  # nodes in the registry when the figures are taken
LOOKBACK = 300  # how long a sample stands for a series in Prometheus


def value_at(second):
    """What the device measures: a line, so that a value tells its instant."""
    return float(second % DAY)


class Hub:
    """The demo, asked as its admin."""

    def __init__(self, fleet, demo):
        self.fleet = fleet
        self.demo = demo
        self.token = (demo.data / "access" / "admin").read_text("utf-8").split("\n")[1]
        self.address = "%s:%d" % demo.http

    def cli(self, *arguments):
        return run(self.fleet, *arguments, "--data", self.demo.data)

    def send(self, method, path, body, kind="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {self.token}", "content-type": kind}
        return ask(f"http://{self.address}{path}", method=method, body=body, headers=headers)


class Agent:
    """A node that reaches the hub over a line that can be cut, and its device."""

    def __init__(self, given, hub, folder):
        addresses = json.loads((hub.demo.data / "addresses.json").read_text("utf-8"))
        host, port = addresses["mqtts"].rsplit(":", 1)
        self.line = Line((host, int(port)))
        self.port = free_port()
        data = folder / "agent"
        token = json.loads(hub.cli("join-token", "create", "-o", "json"))["token"]
        run(given.agent, "join", addresses["node_https"], "--token", token, "--node", NODE, "--data", data)
        config = f'[hub]\nurl = "mqtts://127.0.0.1:{self.line.port}"\n[outbox]\nupload_s = 1.0\n'
        (data / "agent.toml").write_text(config, "utf-8")
        self.log = open(given.out / "prometheus-agent.log", "wb")
        self.process = subprocess.Popen(
            [given.agent, "run", "--data", data, "--api", f"127.0.0.1:{self.port}"],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def measures(self, seconds):
        """Samples of these instants; on the node's disk when this returns."""
        for start in range(0, len(seconds), 500):
            samples = [
                {"metric": "temperature", "value": value_at(second), "unit": "Cel", "time_ms": second * 1000}
                for second in seconds[start : start + 500]
            ]
            body = json.dumps({"device": DEVICE, "samples": samples}).encode()
            url = f"http://127.0.0.1:{self.port}/api/v1/telemetry"
            ask(url, method="POST", body=body, headers={"content-type": "application/json"})

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=20)
        self.log.close()


class Prometheus:
    """Debian's, with the shipped configuration: other addresses and shorter intervals, nothing else."""

    def __init__(self, hub, folder, out):
        self.folder = folder / "prometheus"
        shutil.copytree(GRAFANA / "prometheus", self.folder)
        token = json.loads(hub.cli("operator", "create", "prometheus", "--role", "viewer", "-o", "json"))["token"]
        (self.folder / "token").write_text(token, "utf-8")
        path = self.folder / "prometheus.yml"
        shipped = path.read_text("utf-8")
        changed = shipped.replace("127.0.0.1:8080", hub.address).replace("_interval: 15s", "_interval: 1s")
        if changed.count(hub.address) != 2 or changed.count("_interval: 1s") != 2:
            raise Failure("the shipped configuration is not what this check expects")
        # Prometheus puts these on what it reads and asks for; the series of the hub do not have them.
        path.write_text(changed.replace("global:\n", "global:\n  external_labels: {replica: a}\n"), "utf-8")
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = open(out / "prometheus.log", "wb")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address={self.url.removeprefix('http://')}"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        until("Prometheus is ready", 60, lambda: ask(f"{self.url}/-/ready"))

    def api(self, path, **form):
        answer = json.loads(ask(f"{self.url}/api/v1/{path}", method="POST", body=urllib.parse.urlencode(form).encode()))
        if answer["status"] != "success" or answer.get("warnings"):
            raise Failure(f"{path} {form}: {answer.get('error')} {answer.get('warnings')}")
        return answer["data"]

    def query(self, expression):
        return self.api("query", query=expression)["result"]

    def range(self, expression, start, end, step):
        return self.api("query_range", query=expression, start=start, end=end, step=step)["result"]

    def label_values(self, selector, label):
        query = urllib.parse.urlencode({"match[]": selector})
        return json.loads(ask(f"{self.url}/api/v1/label/{label}/values?{query}"))["data"]

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=20)
        self.log.close()


def ask(url, method="GET", body=None, headers=None):
    """The body of an answer; any status but 2xx is `Refused`."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise Refused(f"{method} {url}: {error.code} {error.read()[:500]!r}") from None


def run(*command, text=None):
    """Runs to the end; its output. An exit code other than 0 is a failure."""
    done = subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, command))}: exit code {done.returncode}: {(done.stdout + done.stderr)[-800:]}")
    return done.stdout


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--fleet", required=True, type=pathlib.Path)
    arguments.add_argument("--agent", required=True, type=pathlib.Path)
    arguments.add_argument("--out", required=True, type=pathlib.Path)
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="fleet-interop-") as name:
        folder = pathlib.Path(name)
        demo = Demo(given.fleet, folder / "data", given.out / "prometheus-demo.log", 3)
        ends = [demo.kill]
        try:
            check(given, folder, demo, ends)
        except (Failure, OSError, subprocess.TimeoutExpired) as failure:
            print(f"FAIL: {failure}")
            demo.print_log()
            for log in ["prometheus.log", "prometheus-agent.log"]:
                path = given.out / log
                lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
                print(f"--- {path}:", *lines[-30:], sep="\n")
            return 1
        finally:
            for end in reversed(ends):
                end()
    return 0


def check(given, folder, demo, ends):
    hub = Hub(given.fleet, demo)
    prometheus = Prometheus(hub, folder, given.out)
    ends.append(prometheus.end)
    agent = Agent(given, hub, folder)
    ends.append(agent.end)
    promtool(prometheus, demo)
    nodes = until("every node is online", 60, lambda: online(demo, 4))
    for node, site in zip(nodes, ["north", "south"] * 2):  # edge-1 comes last
        hub.send("PATCH", f"/api/v1/nodes/{node}", {"site": site}, "application/merge-patch+json")
    until("Prometheus scrapes every node", 60, lambda: len(prometheus.query("fleet_node_up == 1")) == 4)
    backfill(prometheus, demo, agent)
    commands = {"nodes": nodes, "kind": "ping", "params": {}, "ttl_s": 60, "timeout_s": 10}
    hub.send("POST", "/api/v1/commands", commands)
    until("Prometheus evaluates every rule", 60, lambda: rules(prometheus))
    dashboards(prometheus)
    figures(prometheus, hub)


def promtool(prometheus, demo):
    """Names, help, configuration, rules and their tests, as promtool has them."""
    run("promtool", "check", "metrics", text=demo.get("/metrics", as_json=False).decode())
    run("promtool", "check", "config", prometheus.folder / "prometheus.yml")
    run("promtool", "test", "rules", GRAFANA / "prometheus" / "tests" / "fleet.yml")
    print("promtool accepts metrics, configuration and rules, and the rules' tests hold")


def rules(prometheus):
    """Whether every rule has been evaluated, none with an error."""
    groups = json.loads(ask(f"{prometheus.url}/api/v1/rules"))["data"]["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    wrong = [f"{rule['name']}: {rule['lastError']}" for rule in found if rule["health"] == "err"]
    if wrong:
        raise Failure(f"rules that do not evaluate: {wrong}")
    return found and all(rule["health"] == "ok" for rule in found)


def online(demo, count):
    listed = demo.get("/api/v1/nodes")["items"]
    found = sorted(node["id"] for node in listed if node["state"] == "online")
    return found if len(found) == count else None


def backfill(prometheus, demo, agent):
    """The line is cut for an hour of samples; when it is whole again, the hour is there."""
    now = int(time.time()) // STEP * STEP
    cut = now - HOUR
    until("the edge API takes samples", 30, lambda: agent.measures([cut - DAY]) is None)
    agent.measures(list(range(cut - DAY + STEP, cut + 1, STEP)))
    until("the day before the cut is read through Prometheus", 60, lambda: not missing(prometheus, cut - HOUR, cut))
    agent.line.cut()
    until("the hub has seen that the node is gone", 90, lambda: node_state(demo) != "online")
    agent.measures(list(range(cut + STEP, now + 1, STEP)))
    hole = missing(prometheus, cut - HOUR, now)
    # A sample stands for five minutes; after that, and only then, there is nothing.
    if len(hole) != (HOUR - LOOKBACK) // STEP and len(hole) != (HOUR - LOOKBACK) // STEP + 1:
        raise Failure(f"while the line is cut, {len(hole)} of {2 * HOUR // STEP} steps are empty")
    print(f"while the line is cut {len(hole)} of {2 * HOUR // STEP} steps are empty")
    began = time.monotonic()
    agent.line.mend()
    until("the hour is there without a hole", 120, lambda: not missing(prometheus, cut - HOUR, now))
    print(f"the line is whole: no step of the hour is empty after {time.monotonic() - began:.1f} s")
    ledger = lambda: [item for item in demo.get(f"/api/v1/ledger?node={NODE}")["accounts"] if item["state"] == "broken"]
    if ledger():
        raise Failure(f"the ledger is broken: {ledger()}")


def node_state(demo):
    return demo.get(f"/api/v1/nodes/{NODE}")["state"]


def missing(prometheus, start, end):
    """Steps at which Prometheus has no value; a wrong one is a failure."""
    found = prometheus.range(SERIES, start, end, STEP)
    if len(found) > 1:
        raise Failure(f"{SERIES} is {len(found)} series: {[series['metric'] for series in found]}")
    values = {int(second): float(value) for second, value in found[0]["values"]} if found else {}
    if found:
        expected = {"__name__": "fleet_sample", "node": NODE, "device": DEVICE, "metric": "temperature", "unit": "Cel"}
        labels = {name: value for name, value in found[0]["metric"].items() if name != "site"}
        if labels != expected:
            raise Failure(f"labels are {labels}")
    for second, value in values.items():
        # The hub corrects times by milliseconds, so that the sample of a step may be that of the one before.
        behind = (value_at(second) - value) % DAY
        if behind > LOOKBACK:
            raise Failure(f"at {second} Prometheus has {value}, {behind} s behind")
    return [second for second in range(start, end + 1, STEP) if second not in values]


# One value of each variable that goes with the others; besides these, all values are chosen.
CHOSEN = {"site": "south", "node": NODE, "device": DEVICE, "metric": "temperature"}


class Variables:
    """Of one dashboard, resolved as Grafana resolves them: all of what there is to choose, or one value of it."""

    def __init__(self, prometheus, board, all_values):
        self.values = {}
        for variable in board["templating"]["list"]:
            name, query = variable["name"], self.fill(variable["query"]["query"])
            listed = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
            if listed:
                found = prometheus.label_values(listed[1], listed[2])
            else:
                inner = re.fullmatch(r"query_result\((.+)\)", query)
                texts = [text(result) for result in prometheus.query(inner[1])]
                pattern = re.compile(variable["regex"].strip("/"))
                found = [match[1] for match in map(pattern.search, texts) if match]
            if not found:
                raise Failure(f"{board['title']}: the variable {name} finds nothing: {query}")
            if CHOSEN[name] not in found:
                raise Failure(f"{board['title']}: the variable {name} does not find {CHOSEN[name]}: {found}")
            self.values[name] = variable["allValue"] if all_values and variable["includeAll"] else CHOSEN[name]

    def fill(self, expression, interval="15s"):
        """Grafana's own variables, and the dashboard's."""
        seconds = {"15s": 15, "5m": 300}[interval]
        own = {"__rate_interval": "10s", "__interval_ms": str(seconds * 1000), "__interval": interval, "__range": "600s"}
        for name, value in {**own, **self.values}.items():
            expression = re.sub(rf"\${name}\b", lambda _: value, expression)
        if "$" in expression:
            raise Failure(f"a variable is left: {expression}")
        return expression


def text(result):
    """A result as Grafana's query_result shows it to the variable's expression."""
    labels = ",".join(f'{name}="{value}"' for name, value in result["metric"].items())
    return f"{{{labels}}} {result['value'][1]} {result['value'][0]}"


def dashboards(prometheus):
    ended = "sum(fleet_command_executions_finished_total)"
    until("the commands ended", 60, lambda: float(prometheus.query(ended)[0]["value"][1]) >= 4)
    queries = 0
    for path in sorted((GRAFANA / "dashboards").glob("*.json")):
        board = json.loads(path.read_text("utf-8"))
        for all_values in [True, False]:
            variables = Variables(prometheus, board, all_values)
            queries += panels(prometheus, path, board, variables)
            print(f"{path.name}: every panel has data, with {variables.values}")
        for annotation in board["annotations"]["list"]:
            if "expr" in annotation:
                prometheus.query(annotation["expr"])
    print(f"{queries} queries of dashboards give numbers with the labels of their legends")


def panels(prometheus, path, board, variables):
    queries = 0
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            where = f"{path.name}, {panel['title']}"
            expression = variables.fill(target["expr"], panel.get("interval", "15s"))
            # Rates need two scrapes after whatever happened last.
            until(f"{where} has data: {expression}", 40, lambda: answers(prometheus, target, expression))
            queries += 1
    return queries


def answers(prometheus, target, expression):
    """Whether there is a number, and every label of the legend in some series."""
    if target.get("instant"):
        series = [(one["metric"], [one["value"]]) for one in prometheus.query(expression)]
    else:
        now = time.time()
        series = [(one["metric"], one["values"]) for one in prometheus.range(expression, now - 600, now, 15)]
    numbers = [labels for labels, values in series if any(math.isfinite(float(value)) for _, value in values)]
    wanted = re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))
    # Where nothing has happened the panel draws a nought without labels.
    free = expression.endswith("or on () vector(0)")
    return numbers and (free or all(any(labels.get(name) for labels in numbers) for name in wanted))


def figures(prometheus, hub):
    rows = "".join(f"bulk-{n},depot\n" for n in range(FLEET))
    hub.send("POST", "/api/v1/nodes/import", f"id,site\n{rows}".encode(), "text/csv")
    end = int(time.time())
    read = lambda: prometheus.range(SERIES, end - DAY, end, 60)
    if len(read()[0]["values"]) < DAY // 60 - LOOKBACK // 60:
        raise Failure(f"a node's day has {len(read()[0]['values'])} steps of {DAY // 60}")
    day = best(read)
    metrics = best(lambda: hub.demo.get("/metrics", as_json=False))
    size = len(hub.demo.get("/metrics", as_json=False))
    print(f"with {FLEET} nodes: a node's day in {day * 1000:.0f} ms, /metrics in {metrics * 1000:.0f} ms, {size} bytes")
    # 100 ms are promised for /metrics; the demo, Prometheus and this share two cores.
    if day > 1 or size > 10_000_000 or metrics > 0.25:
        raise Failure("a node's day takes more than 1 s, or /metrics more than 10 MB or 250 ms")


def best(ask):
    took = []
    for _ in range(5):
        began = time.monotonic()
        ask()
        took.append(time.monotonic() - began)
    return min(took)


if __name__ == "__main__":
    sys.exit(main())
