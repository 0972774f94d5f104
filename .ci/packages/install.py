"""Installs, runs, upgrades, removes and purges the packages on a fresh Debian that systemd boots in a container.

    install.py FOLDER HUB.deb AGENT.deb

FOLDER gets the system (root/), the container's console (console.log) and what was asked of it (asked.log). The units run
as they are shipped, with their sandbox; only the watchdog's time is shortened where a hang is waited for. The container
has no network but its own loopback, and everything is bounded in time.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

# Nothing but what the packages depend on, and systemd.
INCLUDE = "adduser,dbus,systemd,systemd-sysv"
HUB, AGENT = "clawland-fleet", "clawland-fleet-agent"
UNITS = ["fleet-hub", "fleet-agent"]
USERS = ["_clawland-fleet", "_clawland-fleet-agent"]
DATA = ["/var/lib/clawland-fleet", "/var/lib/clawland-fleet-agent"]
ETC = [
    "/etc/clawland-fleet/fleet.toml",
    "/etc/clawland-fleet-agent/agent.toml",
    "/etc/clawland-fleet-agent/commands.toml",
]


class Failed(Exception):
    """Something is not as Debian's policy, the unit or the documentation says."""


def check(fact, why):
    if not fact:
        raise Failed(why)


def until(what, look, seconds=30):
    """Looks again and again until there is an answer; gives it."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.2)


class Machine:
    """The booted container."""

    def __init__(self, folder, leader):
        self.root = folder / "root"
        self.leader = leader
        self.log = (folder / "asked.log").open("w")

    def ask(self, *command, stdin=None, seconds=60):
        """Exit code and what it said."""
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root", "USER=root",
                 "DEBIAN_FRONTEND=noninteractive"]
        done = subprocess.run([*enter, *clean, *command], input=stdin, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=seconds)
        print("$", *command, f"# {done.returncode}", file=self.log)
        print(done.stdout, file=self.log, flush=True)
        return done.returncode, done.stdout

    def do(self, *command, **options):
        """What it said; it must go well."""
        code, said = self.ask(*command, **options)
        check(code == 0, f"{' '.join(command)}: exit code {code}: {said.strip()[-2000:]}")
        return said

    def shows(self, unit, *names):
        said = self.do("systemctl", "show", unit, *(f"--property={name}" for name in names))
        found = dict(line.split("=", 1) for line in said.splitlines())
        return [found[name] for name in names]

    def path(self, path):
        return self.root / path.lstrip("/")

    def owner(self, path):
        return self.do("stat", "-c", "%U:%G %a", path).strip()


@contextmanager
def booted(folder):
    console = (folder / "console.log").open("wb")
    # Neither is there a systemd around it, nor is one wanted.
    nspawn = subprocess.Popen(
        ["systemd-nspawn", "--quiet", f"--directory={folder / 'root'}", "--register=no", "--keep-unit",
         "--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--machine=fleet-packages",
         "--boot"],
        stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)
    machine = None
    try:
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")

        def leader():
            check(nspawn.poll() is None, f"the container did not boot; see {folder / 'console.log'}")
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
            return None

        machine = Machine(folder, until("the container's systemd", leader))
        until("the container's boot", lambda: machine.ask("systemctl", "is-system-running")[1].strip()
              in ("running", "degraded"), 90)
        yield machine
        machine.do("systemctl", "poweroff", "--no-block")
        nspawn.wait(60)
    finally:
        if nspawn.poll() is None:
            nspawn.terminate()
            try:
                nspawn.wait(20)
            except subprocess.TimeoutExpired:
                nspawn.kill()
                nspawn.wait()
        console.close()
        if machine:
            machine.log.close()


def system(folder):
    """A fresh Debian."""
    root = folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    log = (folder / "mmdebstrap.log").open("w")
    release = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())[1]
    made = subprocess.run(["mmdebstrap", "--variant=essential", f"--include={INCLUDE}", release, root],
                          stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=600)
    check(made.returncode == 0, f"no fresh Debian: see {folder / 'mmdebstrap.log'}")


def next_version(deb, folder):
    """The same package as a later version."""
    tree = folder / f"{deb.stem}-next"
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True, timeout=60)
    control = tree / "DEBIAN/control"
    text = control.read_text()
    version = re.search(r"^Version: (.*)$", text, re.M)[1]
    control.write_text(text.replace(f"Version: {version}", f"Version: {version}+next1"))
    made = folder / f"{deb.stem}+next.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made], check=True, timeout=60,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return made


def install(machine, *debs):
    for deb in debs:
        shutil.copy(deb, machine.path("/root"))
    # Not apt: what is not there already would be a dependency that the packages do not name.
    machine.do("dpkg", "--install", *(f"/root/{deb.name}" for deb in debs), seconds=180)


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
    nodes = json.loads(machine.do("fleet", "node", "ls", "-o", "json"))
    nodes = nodes["items"] if isinstance(nodes, dict) else nodes
    return next((node for node in nodes if node["id"] == "edge-1"), None)


def online(machine):
    found = node(machine)
    return found and found["state"] == "online"


def stored(machine):
    """Samples of the node's device that the hub has."""
    said = machine.do("fleet", "telemetry", "edge-1", "--device", "shed", "--since", "1h", "-o", "csv")
    return len([line for line in said.splitlines() if "temperature" in line])


def hand_in(machine, value):
    body = json.dumps({"device": "shed", "samples": [{"metric": "temperature", "value": value, "unit": "Cel"}]})
    request = (f"POST /api/v1/telemetry HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
               f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}")
    # Bash speaks TCP, so that no client has to be installed.
    said = machine.do("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9099; cat >&3; cat <&3", stdin=request)
    check(said.startswith("HTTP/1.1 202"), f"not taken: {said}")


def join(machine):
    """As the README says, by root."""
    token = json.loads(machine.do("fleet", "join-token", "create", "-o", "json"))["token"]
    machine.do("fleet-agent", "join", "127.0.0.1", "--token", "-", "--node", "edge-1", stdin=token)
    machine.do("systemctl", "restart", "fleet-agent")
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
    run = lambda name: machine.ask("fleet", "command", "run", "edge-1", "--", *commands[name])
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
    install(machine, *debs)
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
    install(machine, *debs)
    runs(machine)
    until("the node is online again", lambda: online(machine), 60)
    check(stored(machine) == 2, "removing lost a sample")


def purge(machine, before):
    machine.do("dpkg", "--purge", AGENT, HUB, seconds=120)
    for user in USERS:
        machine.do("getent", "passwd", user)
    left = sorted(files(machine) - before)
    # What the system itself writes: its logs, its list of users (and the copy of before), and what dpkg keeps of itself.
    own = re.compile(r"^/(var/(log|lib/dpkg|cache|tmp|lib/systemd)|root|tmp|run|dev|proc|sys)(/|$)"
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
    folder.mkdir(parents=True, exist_ok=True)
    later = [next_version(deb, folder) for deb in debs]

    def step(name, act, *args):
        begun = time.monotonic()
        act(*args)
        print(f"  {name:<10} {time.monotonic() - begun:5.1f} s", flush=True)

    try:
        step("system", system, folder)
        with booted(folder) as machine:
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
    shutil.rmtree(folder / "root", ignore_errors=True)
    print("installed, joined, confined, watched, stopped, upgraded, removed and purged")


main(*sys.argv[1:])
