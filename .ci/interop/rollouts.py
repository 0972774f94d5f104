"""README's section on updates, word for word, on a demo of five nodes: a skill is rolled out in waves, and its broken
next version stops itself at the first one and is taken back. Then what the hub and the nodes' disks say.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from demo import Demo, Failure, until

SECTION = "### Update what nodes run"
NODES = 5


def blocks():
    """The section's shell blocks."""
    text = pathlib.Path("README.md").read_text("utf-8")
    section = text.split(SECTION, 1)[1].split("\n### ", 1)[0]
    found = re.findall(r"```sh\n(.*?)```", section, re.S)
    if len(found) != 2:
        raise Failure(f"README has {len(found)} blocks in {SECTION!r}, not the two that are run here")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleet", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    given = parser.parse_args()
    fleet, out = given.fleet.resolve(), given.out.resolve()
    good, bad = blocks()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # As a newcomer has it: in the folder where they are.
        os.chdir(folder)
        data = pathlib.Path("fleet-data")
        demo = Demo(fleet, data, out / "rollouts-demo.log", NODES)
        try:
            look = lambda *words: json.loads(
                subprocess.run([fleet, *words, "-o", "json", "--data", data], capture_output=True, timeout=60, check=True).stdout
            )
            until("the nodes are online", 90, lambda: [n["state"] for n in look("node", "ls")["items"]] == ["online"] * NODES)

            def read(block):
                env = {"PATH": f"{fleet.parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)}
                done = subprocess.run(["sh", "-c", block], cwd=folder, env=env, capture_output=True, text=True, timeout=240)
                print(done.stdout, done.stderr, sep="")
                return done

            links = lambda: [
                (data / "nodes" / f"demo-{n}" / "releases" / "skill" / "greeter" / "current").readlink().name.split("-")[0]
                for n in range(1, NODES + 1)
            ]
            done = read(good)
            if done.returncode != 0 or "5 nodes confirmed" not in done.stdout:
                raise Failure("the good version is not on all nodes")
            if links() != ["1.0.0"] * NODES:
                raise Failure(f"the nodes run {links()}")
            done = read(bad)
            if "no sensor" not in done.stdout or "demo-" not in done.stdout:
                raise Failure("why does not tell what the health check said")
            rollout = look("rollout", "get", "greeter-1.1.0-1")
            if rollout["state"] != "rolled_back":
                raise Failure(f"the bad version's rollout is {rollout['state']}")
            if links() != ["1.0.0"] * NODES:
                raise Failure(f"after the bad version the nodes run {links()}")
            told = [node for node in range(1, NODES + 1) if "1.1.0" in str(list((data / "nodes" / f"demo-{node}" / "releases").rglob("*")))]
            print(f"ok: 1.0.0 runs on {NODES} nodes; 1.1.0 stopped at its first node (left on disk at {told})")
        except Failure as failure:
            demo.print_log()
            print(f"FAIL: {failure}")
            return 1
        finally:
            demo.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
