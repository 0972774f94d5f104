#!/usr/bin/env python3
"""What an agent takes of a small machine: its file, and its memory at rest beside a hub.

    .ci/interop/size.py --fleet BIN

The agent is the one beside it. `fleet bench agent` measures, and has the targets; how much of the program is resident
differs by up to a MiB with what the system has in its cache, which is allowed here.
"""

import argparse
import json
import pathlib
import subprocess
import sys

CACHE_MIB = 1.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleet", type=pathlib.Path, required=True)
    given = parser.parse_args()
    words = [given.fleet.resolve(), "bench", "agent", "--seconds", "2", "--intervals", "0", "-o", "json"]
    figures = {one["name"]: one for one in json.loads(subprocess.run(words, capture_output=True, check=True).stdout)["figures"]}
    missed = False
    for name, allowed in (("memory at rest", CACHE_MIB), ("the agent's file", 0)):
        value, most = figures[name]["value"], figures[name]["target"]["at_most"]
        word = "ok" if value <= most + allowed else "MISSED"
        missed |= word == "MISSED"
        print(f"{name:20} {value:6.2f} MiB, at most {most:g}  {word}")
    if missed:
        print("if no new work is the cause: is edge-agent/resident.txt of today's agent? .ci/resident writes it anew")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
