"""Installs, runs, upgrades, removes and purges the packages on a fresh Debian that systemd boots in a container.

    install.py FOLDER HUB.deb AGENT.deb

FOLDER gets the console of the machine (alone.console.log) and what was asked of it (alone.asked.log). What README says to
install and to join is done word for word. The units run as they are shipped, with their sandbox; only the watchdog's time is
shortened where a hang is waited for.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
from guides import blocks  # noqa: E402
from machine import ROOTS, Failed, booted, check, copied, fresh, named, next_version, until  # noqa: E402

HUB, AGENT = "clawland-fleet", "clawland-fleet-agent"
UNITS = ["fleet-hub", "fleet-agent"]
USERS = ["_clawland-fleet", "_clawland-fleet-agent"]
DATA = ["/var/lib/clawland-fleet", "/var/lib/clawland-fleet-agent"]
ETC = [
    "/etc/clawland-fleet/fleet.toml",
    "/etc/clawland-fleet-agent/agent.toml",
    "/etc/clawland-fleet-agent/commands.toml",
]


def documented():
    """README's commands: install at the hub, install at a node, join."""
    found = [body for _, language, body, _ in blocks(Path("README.md")) if language == "sh" and "apt install" in body]
    check(len(found) == 1, f"README has {len(found)} blocks that install")
    lines = found[0].splitlines()
    check(len(lines) == 3 and "--token TOKEN" in lines[2], f"README does not say how to install and join: {lines}")
    return lines


def bring(machine, debs):
    for deb in debs:
        shutil.copy(deb, machine.path("/root"))


def install(machine, *debs):
    bring(machine, debs)
    for command in documented()[:2]:
        machine.do("bash", "-c", f"cd /root\n{command}", seconds=180)


def install_over(machine, debs):
    bring(machine, debs)
    machine.do("apt", "install", "--yes", *(f"/root/{deb.name}" for deb in debs), seconds=180)


def runs(machine):
    """Both services are ready, and say so themselves."""
    for unit, user in zip(UNITS, USERS):
        active, sub, kind, pid, status = machine.shows(unit, "ActiveState", "SubState", "Type", "MainPID", "StatusText")
        log = machine.ask("journalctl", "--no-pager", "--lines=30", f"--unit={unit}")[1]
        check((active, sub, kind) == ("active", "running", "notify"), f"{unit} is {active} ({sub}), {kind}: {log}")
        check(status, f"{unit} says nothing of itself")
        check(machine.do("stat", "-c", "%U", f"/proc/{pid}").strip() == user, f"{unit} is not {user}'s")
    check(machine.do("systemctl", "is-enabled", *UNITS).split() == ["enabled"] * 2, "they do not start with the machine")


def places(machine):
    """Files and users as Debian's policy and the README say."""
    for user, data in zip(USERS, DATA):
        name, _, uid, _, _, home, shell = machine.do("getent", "passwd", user).strip().split(":")
        check(100 <= int(uid) < 1000 and home == data and shell == "/usr/sbin/nologin", f"{name} is no system user")
        check(machine.owner(data) == f"{user}:{user} 700", f"{data} is {machine.owner(data)}")
        others = machine.do("find", data, "!", "-user", user, "-o", "-perm", "/007", "!", "-type", "l").strip()
        check(not others, f"not {user}'s alone: {others}")
    for file in ETC:
        check(machine.owner(file) == "root:root 644", f"{file} is {machine.owner(file)}")
    for page in ["fleet.1", "fleet-node-ls.1", "fleet-agent.1", "fleet-agent-join.1"]:
        check(machine.path(f"/usr/share/man/man1/{page}.gz").exists(), f"no manual page {page}")
    bash = "set -e; for f in fleet fleet-agent; do . /usr/share/bash-completion/completions/$f; done; complete -p fleet"
    machine.do("bash", "-c", bash)


def node(machine):
    """The only one."""
    nodes = json.loads(machine.do("fleet", "node", "ls", "-o", "json"))["items"]
    check(len(nodes) < 2, f"there is more than one node: {nodes}")
    return nodes[0] if nodes else None


def online(machine):
    found = node(machine)
    return found and found["state"] == "online"


def stored(machine):
    """Samples of the node's device that the hub has."""
    said = machine.do("fleet", "telemetry", node(machine)["id"], "--device", "shed", "--since", "1h", "-o", "csv")
    return len([line for line in said.splitlines() if "temperature" in line])


def hand_in(machine, value):
    body = json.dumps({"device": "shed", "samples": [{"metric": "temperature", "value": value, "unit": "Cel"}]})
    request = (f"POST /api/v1/telemetry HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
               f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}")
    # Bash speaks TCP, so that no client has to be installed.
    said = machine.do("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9099; cat >&3; cat <&3", stdin=request)
    check(said.startswith("HTTP/1.1 202"), f"not taken: {said}")


def join(machine):
    token = json.loads(machine.do("sudo", "fleet", "join-token", "create", "-o", "json"))["token"]
    command = documented()[2].replace("HUB", "127.0.0.1").replace("TOKEN", token)
    machine.do("bash", "-c", command)
    until("the node is online", lambda: online(machine))
    hand_in(machine, 21.5)
    until("the sample is stored", lambda: stored(machine) == 1)


def sandbox(machine):
    """Commands run as the agent's user, see the machine, write where they may, and nowhere else."""
    data = DATA[1]
    commands = {
        "who": ["whoami"],
        # ProtectProc and ProcSubset would hide both.
        "look": ["cat", "/proc/1/comm", "/proc/loadavg"],
        "inside": ["touch", f"{data}/inside", "/tmp/inside"],
        "outside": ["touch", "/var/lib/outside"],
        "fork": ["perl", "-e", "fork or exit 0; wait; exit $?"],
    }
    entry = lambda name, argv: f"[command.{name}]\nprogram = \"{argv[0]}\"\nargs = {json.dumps(argv[1:])}\n"
    listed = "\n".join(entry(name, argv) for name, argv in commands.items())
    machine.path(ETC[2]).write_text(listed)
    node_id = node(machine)["id"]
    run = lambda name: machine.ask("fleet", "command", "run", node_id, "--", *commands[name])
    code, said = run("who")
    check(code == 0 and USERS[1] in said, f"whoami: {code} {said}")
    for name in ["look", "inside", "fork"]:
        code, said = run(name)
        check(code == 0, f"{name}: {code} {said}")
    check(not machine.path("/tmp/inside").exists(), "its /tmp is everybody's")
    code, said = run("outside")
    check(code != 0 and "Read-only file system" in said, f"outside: {code} {said}")


def watchdog(machine):
    """Pings arrive while they work; who hangs is killed and started again."""
    for unit in UNITS:
        folder = machine.path(f"/run/systemd/system/{unit}.service.d")
        machine.do("mkdir", "--parents", f"/run/systemd/system/{unit}.service.d")
        machine.do("tee", f"/run/systemd/system/{unit}.service.d/fast.conf", stdin="[Service]\nWatchdogSec=4\n")
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "restart", *UNITS)
    pids = {unit: machine.shows(unit, "MainPID")[0] for unit in UNITS}
    # Two of its times and a bit: without a ping it would be killed after one.
    time.sleep(9)
    for unit in UNITS:
        pid, restarts = machine.shows(unit, "MainPID", "NRestarts")
        check((pid, restarts) == (pids[unit], "0"), f"{unit} was killed although it works")
    hub = pids["fleet-hub"]
    # The agent that the launcher runs, not the launcher.
    launcher = pids["fleet-agent"]
    agent = machine.do("cat", f"/proc/{launcher}/task/{launcher}/children").split()[0]
    machine.do("bash", "-c", f"kill -STOP {hub} {agent}")
    for unit in UNITS:
        until(f"{unit} is started again", lambda: int(machine.shows(unit, "NRestarts")[0]) >= 1, 30)
        log = machine.do("journalctl", "--no-pager", f"--unit={unit}")
        check("Watchdog timeout" in log, f"{unit} ended by something else: {log[-2000:]}")
    for unit in UNITS:
        machine.do("rm", f"/run/systemd/system/{unit}.service.d/fast.conf")
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "restart", *UNITS)
    until("the node is online again", lambda: online(machine), 60)
    check(stored(machine) == 1, "a sample is gone")


def stops(machine):
    """SIGTERM ends both in time, and cleanly."""
    for unit in reversed(UNITS):
        begun = time.monotonic()
        machine.do("systemctl", "stop", unit)
        took = time.monotonic() - begun
        result, code, state = machine.shows(unit, "Result", "ExecMainStatus", "ActiveState")
        check((result, code, state) == ("success", "0", "inactive"), f"{unit}: {result}, {code}, {state}")
        check(took < 15, f"{unit} took {took:.0f} s to stop")
    machine.do("systemctl", "start", *UNITS)
    until("the node is online again", lambda: online(machine), 60)


def upgrade(machine, debs):
    """An upgrade restarts the services, keeps data, and leaves changed settings alone."""
    settings = machine.path(ETC[0])
    settings.write_text(settings.read_text() + "\n[keep]\ndays = 91\n")
    pids = [machine.shows(unit, "MainPID")[0] for unit in UNITS]
    install_over(machine, debs)
    runs(machine)
    for unit, before in zip(UNITS, pids):
        check(machine.shows(unit, "MainPID")[0] != before, f"{unit} was not restarted")
    check("days = 91" in settings.read_text(), "the upgrade took the administrator's settings away")
    until("the node is online again", lambda: online(machine), 60)
    check(stored(machine) == 1, "the upgrade lost a sample")
    hand_in(machine, 22.5)
    until("the next sample is stored", lambda: stored(machine) == 2)
    code, said = machine.ask("fleet", "ledger", "--verify")
    check(code == 0, f"the ledger: {said}")


def remove(machine, debs):
    """Removing keeps data and settings; what is installed again goes on where it ended."""
    machine.do("dpkg", "--remove", AGENT, HUB, seconds=120)
    for unit in UNITS:
        # A unit without a file: masked, as debhelper does, so that nothing starts it.
        code, said = machine.ask("systemctl", "is-active", unit)
        check(said.strip() == "inactive", f"{unit} is {said.strip()} without its package")
    for path in ["/usr/bin/fleet", "/usr/bin/fleet-agent", "/usr/share/doc/clawland-fleet"]:
        check(not machine.path(path).exists(), f"{path} stayed")
    for path in [*DATA, *ETC]:
        check(machine.path(path).exists(), f"removing took {path}")
    install_over(machine, debs)
    runs(machine)
    until("the node is online again", lambda: online(machine), 60)
    check(stored(machine) == 2, "removing lost a sample")


def purge(machine, before):
    machine.do("dpkg", "--purge", AGENT, HUB, seconds=120)
    for user in USERS:
        machine.do("getent", "passwd", user)
    left = sorted(files(machine) - before)
    # What the system itself writes: its logs, its list of users (and the copy of before), and what dpkg and apt keep of
    # themselves.
    own = re.compile(r"^/(var/(log|lib/(apt|dpkg|systemd)|cache|tmp)|root|tmp|run|dev|proc|sys)(/|$)"
                     r"|^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|^/etc/\.pwd\.lock$|^/etc/machine-id$")
    left = [path for path in left if not own.match(path)]
    check(not left, f"purging left {left}")
    for unit in UNITS:
        check(machine.shows(unit, "LoadState")[0] == "not-found", f"{unit} is still known")
    code, said = machine.ask("dpkg", "--list", HUB, AGENT)
    check(not re.search(r"^[a-z]c ", said, re.M), f"dpkg still has settings: {said}")


def files(machine):
    said = machine.do("find", "/", "-xdev", "-path", "/proc", "-prune", "-o", "-path", "/sys", "-prune", "-o", "-print")
    return set(said.splitlines())


def main(folder, *debs):
    folder, debs = Path(folder).resolve(), [Path(deb).resolve() for deb in debs]
    (folder / ROOTS).mkdir(parents=True, exist_ok=True)
    later = [next_version(deb, folder) for deb in debs]

    def step(name, act, *args):
        begun = time.monotonic()
        done = act(*args)
        print(f"  {name:<10} {time.monotonic() - begun:5.1f} s", flush=True)
        return done

    try:
        root = named(copied(step("system", fresh, folder), folder / ROOTS / "alone"), "alone")
        with booted(root) as machine:
            before = files(machine)
            step("install", install, machine, *debs)
            step("runs", runs, machine)
            step("join", join, machine)
            step("places", places, machine)
            step("sandbox", sandbox, machine)
            step("watchdog", watchdog, machine)
            step("stops", stops, machine)
            step("upgrade", upgrade, machine, later)
            step("remove", remove, machine, later)
            step("purge", purge, machine, before)
    except (Failed, subprocess.SubprocessError, OSError) as wrong:
        print(f"FAILED: {wrong}", file=sys.stderr)
        sys.exit(1)
    print("installed, joined, confined, watched, stopped, upgraded, removed and purged")


main(*sys.argv[1:])
