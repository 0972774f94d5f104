"""The operator's guide, word for word, with the packages: a hub and boards that boot under systemd, on a network of theirs.

    guide.py FOLDER HUB.deb AGENT.deb

Every `sh` block of manager/operator.md runs in one root shell at the hub's machine, in a folder with the packages, later ones
in its `new`, and the system of the boards' image at /mnt/image. What the guide leaves to hands is done here: flashing copies
the image file by file and switches the copy on, unplugging cuts a board's power, waiting is for seconds. FOLDER gets the
machines' consoles and guide.log.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
from guides import BY_HAND, MARK, blocks, judge  # noqa: E402
from machine import ROOTS, Failed, Network, booted, check, copied, fresh, named, next_version, until  # noqa: E402

GUIDE = Path("manager/operator.md")
# Longest that a block may take: boards deliver their figures every 90 s.
BLOCK_S = 180
NODE_DATA = "/var/lib/clawland-fleet-agent"
# The hub's machine gives the boards their addresses.
ADDRESS = """\
[Match]
Name=host0

[Network]
Address=10.77.0.2/24
Gateway=10.77.0.1
DHCPServer=yes
IPv6AcceptRA=no

[DHCPServer]
PoolOffset=100
PoolSize=50
"""


class Shell:
    """One shell of the hub's root, which is given one block after the other."""

    def __init__(self, machine, log):
        self.machine = machine
        self.log = log
        self.blocks = 0
        self.bash = subprocess.Popen([*machine.enter(), "bash"], stdin=subprocess.PIPE, stdout=log.open("wb"),
                                     stderr=subprocess.STDOUT)
        self.say("set -eu; cd /root")

    def say(self, text):
        self.bash.stdin.write(f"{text}\n".encode())
        self.bash.stdin.flush()

    def run(self, body):
        """Runs a block to its end; whether it went well."""
        self.blocks += 1
        name = f"/root/.block-{self.blocks}"
        self.machine.path(name).write_text(body, "utf-8")
        # Between marks: what it prints. Nothing in it reads what comes after it.
        self.say(f"printf '{MARK}'; . {name} < /dev/null; printf '{MARK}'")
        until(f"block {self.blocks} ends", lambda: len(self.parts()) > 2 * self.blocks or self.bash.poll() is not None,
              BLOCK_S)
        return self.bash.poll() is None

    def parts(self):
        return self.log.read_text("utf-8", "replace").split(MARK)

    def printed(self):
        """What each block printed."""
        return self.parts()[1::2]

    def value(self, words):
        """What words of the guide, such as $FIRST, stand for."""
        answer = self.machine.path("/root/.answer")
        answer.unlink(missing_ok=True)
        self.say(f"printf %s {words} > /root/.answer.new; mv /root/.answer.new /root/.answer")
        until(f"the shell knows {words}", answer.exists)
        return answer.read_text("utf-8")

    def end(self):
        self.bash.stdin.close()
        try:
            return self.bash.wait(10)
        except subprocess.TimeoutExpired:
            self.bash.kill()
            return "none: it hangs"


class Boards:
    """The image, and what hands do with it."""

    def __init__(self, image, network, stack):
        self.image = image
        self.network = network
        self.stack = stack
        self.made = 0
        self.on = []
        self.off = []

    def flash(self, count):
        for _ in range(int(count)):
            self.made += 1
            root = copied(self.image, self.image.with_name(f"board-{self.made}"))
            self.on.append(self.stack.enter_context(booted(root, self.network)))

    def unplug(self, node):
        board = next((board for board in self.on if self.node(board) == node), None)
        check(board, f"no board is {node}")
        self.on.remove(board)
        self.off.append(board.root)
        board.cut()

    @staticmethod
    def node(board):
        return json.loads(board.do("fleet-agent", "status", "-o", "json"))["node_id"]

    def are_sound(self):
        """What the guide says of boards, and what nobody sees at the hub."""
        image = self.image
        check(not (image / NODE_DATA.lstrip("/") / "identity").exists(), "the image has an identity")
        for board in self.on:
            check(not board.path(f"{NODE_DATA}/join-token").exists(), f"{board.root.name} kept its join token")
            others = board.do("find", NODE_DATA, "!", "-user", "_clawland-fleet-agent").strip()
            check(not others, f"not the agent's: {others}")
            failed = board.do("systemctl", "--failed", "--plain", "--no-legend").strip()
            check(not failed, f"{board.root.name}: {failed}")
        for what in (["cat", "/etc/machine-id"], ["sha256sum", f"{NODE_DATA}/identity/joined.json"]):
            said = {board.do(*what) for board in self.on}
            check(len(said) == len(self.on), f"boards have the same by `{' '.join(what)}`: {said}")


    def stay_out(self):
        """Boards that were replaced or retired are switched on again: the hub refuses them, and they say so."""
        check(len(self.off) == 2, f"{len(self.off)} boards were unplugged, not one that was replaced and one that was retired")
        for root in self.off:
            board = self.stack.enter_context(booted(root, self.network))
            until(f"{root.name} is refused", lambda: "the hub refused this node's certificate"
                  in board.do("journalctl", "--unit=fleet-agent", "--output=cat"))


def journal_is_structured(hub):
    """Lines have a priority of their own and the module they come from, and no colours."""
    hub.do("fleet", "log-level", "debug")
    hub.do("fleet", "node", "ls")

    def priorities():
        said = hub.do("journalctl", "--unit=fleet-hub", "_COMM=fleet", "--output=json", "--lines=300")
        lines = [json.loads(line) for line in said.splitlines()]
        for line in lines:
            text = line["MESSAGE"]
            check(isinstance(text, str) and text.split(": ")[0].replace("::", "_").replace("_", "").isalnum(),
                  f"no module is in front of {text!r}")
        return {line["PRIORITY"] for line in lines}

    until("the journal has lines for information and for debugging", lambda: {"6", "7"} <= priorities())
    hub.do("fleet", "log-level", "info")


def hub_is_sound(hub):
    journal_is_structured(hub)
    secret = hub.do("tail", "-n", "1", "/var/lib/clawland-fleet/access/admin").strip()
    check(secret not in hub.do("journalctl", "--output=cat"), "the first admin's token is in the journal")
    others = hub.do("find", "/var/lib/clawland-fleet", "!", "-user", "_clawland-fleet").strip()
    check(not others, f"not the hub's: {others}")
    check(hub.path("/srv/fleet/revocations.jsonl").stat().st_size > 0, "revocations are not where the guide puts them")
    failed = hub.do("systemctl", "--failed", "--plain", "--no-legend").strip()
    check(not failed, f"the hub's machine: {failed}")


def follow(folder, debs):
    base = fresh(folder)
    hub_root, image = (named(copied(base, folder / ROOTS / name), name) for name in ("hub", "image"))
    for root in (hub_root, image):
        subprocess.run(["systemctl", f"--root={root}", "--quiet", "enable", "systemd-networkd.service"], check=True,
                       timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (hub_root / "etc/systemd/network/10-host0.network").write_text(ADDRESS)
    (hub_root / "mnt/image").mkdir()
    (hub_root / "root/new").mkdir()
    for deb in debs:
        shutil.copy(deb, hub_root / "root")
        next_version(deb, hub_root / "root/new")

    network = Network()
    with ExitStack() as stack:
        stack.callback(network.end)
        hub = stack.enter_context(booted(hub_root, network, [(image, "/mnt/image")]))
        until("the hub's machine is on the network", lambda: hub.ask("networkctl", "status", "host0")[1].count("routable"))
        boards = Boards(image, network, stack)
        shell = Shell(hub, folder / "guide.log")
        expected, well = [], True
        hands = {"flash": boards.flash, "unplug": boards.unplug, "wait": lambda seconds: time.sleep(float(seconds))}
        try:
            for line, language, body, shows in blocks(GUIDE):
                begun, goes_on = time.monotonic(), True
                if language == BY_HAND:
                    verb, words = body.split(" ", 1)
                    hands[verb](shell.value(words))
                elif language == "sh":
                    expected.append((line, body, shows))
                    goes_on = shell.run(body)
                print(f"  {GUIDE.name}:{line:<4} {time.monotonic() - begun:5.1f} s", flush=True)
                if not goes_on:
                    break
        except Failed as failed:
            print(failed)
            well = False
        code = shell.end()
        well = judge(GUIDE, code, shell.printed(), expected) and well
        check(well, f"the guide does not hold; see {folder / 'guide.log'}")
        boards.are_sound()
        boards.stay_out()
        hub_is_sound(hub)
    return boards


def main(folder, *debs):
    # So that no machine is left behind when time is up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder, debs = Path(folder).resolve(), [Path(deb).resolve() for deb in debs]
    (folder / ROOTS).mkdir(parents=True, exist_ok=True)
    try:
        boards = follow(folder, debs)
    except (Failed, subprocess.SubprocessError, OSError) as wrong:
        print(f"FAILED: {wrong}", file=sys.stderr)
        sys.exit(1)
    print(f"{GUIDE}: followed with the packages, a hub and {boards.made} boards of one image")


main(*sys.argv[1:])
