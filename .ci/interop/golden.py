"""The documented reader on the golden files: every sample, and nothing else, with exactly the same number.

Usage: golden.py   (no arguments; exit code 1 and a line for every difference)
"""

import json
import struct
import sys

import cbor2

from reader import ROOT, samples

GOLDEN = ROOT / "schemas/golden"


def bits(value):
    """Tells 0.0 from -0.0 and is exact."""
    return struct.pack("<d", value).hex()


def exact(rows):
    return [(time, device, metric, unit, bits(value)) for time, device, metric, unit, value in rows]


def main():
    failures = 0
    for name in ["telemetry", "telemetry-foreign"]:
        found = exact(samples((GOLDEN / f"{name}.bin").read_bytes()))
        # As floats also where JSON shows a whole number.
        expected = exact(tuple(row[:4]) + (float(row[4]),) for row in json.loads((GOLDEN / f"{name}.json").read_text("utf-8")))
        wrong = [(a, b) for a, b in zip(found, expected) if a != b]
        for a, b in wrong[:5]:
            print(f"{name}: read {a}, expected {b}")
        if wrong or len(found) != len(expected) or not expected:
            print(f"{name}: {len(wrong)} differ; {len(found)} read, {len(expected)} expected")
            failures += 1
        else:
            print(f"{name}: {len(found)} samples agree to the bit")
    if list(samples((GOLDEN / "tombstone.bin").read_bytes())):
        print("tombstone: has samples")
        failures += 1
    for path in sorted(GOLDEN.glob("*.bin")):
        if path.name == "telemetry.bin":  # a zstd frame, read above
            continue
        payload = cbor2.loads(path.read_bytes())
        # What travels inside of an event or a command has no version of its own.
        key = {"device.bin": "device", "update.bin": "target", "update-order.bin": "target"}.get(path.name)
        known = bool(payload.get(key)) if key else payload.get("v") == 1
        if not known:
            print(f"{path.name}: not what version 1 has there")
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
