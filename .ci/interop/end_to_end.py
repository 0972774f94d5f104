"""A running demo, read by programs that are not ours.

Starts `fleet demo --nodes 2`, waits until the nodes are online, lets mosquitto_sub (MQTT 3.1.1) and paho (MQTT 5)
read `fleet/v1/+/up/…`, decodes what they got with the documented reader, and compares every sample with what the
HTTP API says is stored: the same numbers, none missing. Then the ledger, and a clean stop on SIGINT.
"""

import argparse
import pathlib
import signal
import sys
import tempfile

from clients import Mosquitto, Paho
from demo import Demo, Failure, until
from reader import samples

NODES = 2
BATCHES = 3  # of every node, seen by every client, before the numbers are compared
CLIENTS = {"mosquitto_sub": Mosquitto, "paho": Paho}
# Samples that a node seals while it has no credit yet take the backfill lane.
FILTERS = ["fleet/v1/+/up/telemetry", "fleet/v1/+/up/backfill"]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--fleet", required=True, type=pathlib.Path)
    arguments.add_argument("--out", required=True, type=pathlib.Path)
    arguments.add_argument("--clients", default=",".join(CLIENTS))
    given = arguments.parse_args()
    # So that the folder and the demo are cleaned up when time is over.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="fleet-interop-") as folder:
        demo = Demo(given.fleet, pathlib.Path(folder) / "data", given.out / "demo.log", NODES)
        try:
            check(demo, given)
        except (Failure, OSError) as failure:
            print(f"FAIL: {failure}")
            demo.print_log()
            return 1
        finally:
            demo.kill()
    return 0


def check(demo, given):
    nodes = until("every node is online", 60, lambda: online(demo))
    print(f"online: {', '.join(nodes)}")
    clients = [CLIENTS[name](demo, FILTERS, given.out) for name in given.clients.split(",")]
    try:
        for client in clients:
            until(f"{client.name} has {BATCHES} batches of every node", 90, lambda: enough(client, nodes))
    finally:
        for client in clients:
            client.close()
    for client in clients:
        compare(demo, client, nodes)
    until("the ledger balances", 30, lambda: demo.get("/api/v1/ledger").get("balanced") is True)
    print("the ledger balances")
    for path in ["/livez", "/readyz"]:
        demo.get(path, as_json=False)
    seconds = demo.stop()
    print(f"stopped on SIGINT with exit code 0 after {seconds:.1f} s")


def online(demo):
    listed = demo.get("/api/v1/nodes")["items"]
    found = sorted(node["id"] for node in listed if node["state"] == "online")
    return found if len(found) == NODES else None


def payloads(client, node):
    """What a client got of a node, in order. A resend is byte-identical, so that equal payloads are one."""
    return list(dict.fromkeys(payload for topic, payload in client.messages() if topic.split("/")[2] == node))


def enough(client, nodes):
    return all(sum(1 for payload in payloads(client, node) if any(samples(payload))) >= BATCHES for node in nodes)


def compare(demo, client, nodes):
    for node in nodes:
        batches = [rows for rows in (list(samples(payload)) for payload in payloads(client, node)) if rows]
        wire = sorted(key(*row) for rows in batches for row in rows)
        low, high = wire[0][0], wire[-1][0]
        until(
            f"what {client.name} saw of {node} is stored",
            30,
            lambda: agreed(wire, stored(demo, node, low, high)),
        )
        # Nothing is stored that was not on the wire, between two batches: their own instants may be shared with
        # batches before and after.
        low, high = (max(row[0] for row in rows) for rows in (batches[0], batches[-2]))
        seen = set(wire)
        beyond = [row for row in stored(demo, node, low + 1, high) if row not in seen]
        if beyond:
            raise Failure(f"{node} has stored samples that {client.name} did not see: {beyond[:3]}")
        print(f"{client.name}: {len(wire)} samples of {node} in {len(batches)} batches are what the HTTP API says")


def key(time_ms, device, metric, unit, value):
    return time_ms, device, metric, unit or "", float(value)


def stored(demo, node, low, high):
    answer = demo.get(f"/api/v1/nodes/{node}/telemetry?from_ms={low}&to_ms={high + 1}")
    return sorted(
        key(time_ms, series.get("device") or "", series["metric"], series.get("unit"), value)
        for series in answer["series"]
        for time_ms, value in series["points"]
    )


def agreed(wire, kept):
    """True once every sample of the wire is kept, as often as it was said."""
    rest = list(kept)
    position = 0
    for row in wire:
        while position < len(rest) and rest[position] < row:
            position += 1
        if position == len(rest) or rest[position] != row:
            return False
        position += 1
    return True


if __name__ == "__main__":
    sys.exit(main())
