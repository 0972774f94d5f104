"""A fresh Debian, and machines that boot it under a real systemd, each in a container of its own.

A machine has no network but its loopback, or is on a network of this process that leads nowhere else. It has control groups
of its own, so that each systemd finds its services and no other's. Everything is bounded in time.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

# Nothing but what the packages depend on, systemd, and what the documented commands begin with. No lists of packages: what
# is not here already is a dependency that the packages do not name, and apt cannot fetch it.
INCLUDE = "adduser,apt,dbus,sudo,systemd,systemd-sysv"
# Where machines' files lie, in the folder of a script; `run` puts memory there, which is given back with the script.
ROOTS = "roots"
CGROUPS = Path("/sys/fs/cgroup")
# A container's boot has an id of its own, laid over the kernel's. Services with a /proc of their own, as those with a sandbox
# are, see the kernel's, and `journalctl --follow` in them shows no line of this boot: on a real machine both are one.
INIT = "while umount /proc/sys/kernel/random/boot_id 2> /dev/null; do :; done; exec /sbin/init"


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


def fresh(folder):
    """A fresh Debian, made once in the folder and only to be copied."""
    root, done = folder / "fresh", folder / "fresh.done"
    release = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())[1]
    wanted = f"{release} {INCLUDE}"
    if done.exists() and done.read_text() == wanted:
        return root
    done.unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)
    with (folder / "mmdebstrap.log").open("w") as log:
        made = subprocess.run(["mmdebstrap", "--variant=essential", f"--include={INCLUDE}", release, root],
                              stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=600)
    check(made.returncode == 0, f"no fresh Debian: see {folder / 'mmdebstrap.log'}")
    done.write_text(wanted)
    return root


def copied(root, to):
    """The same files, owners and modes in another place, as a flashed card has them."""
    shutil.rmtree(to, ignore_errors=True)
    subprocess.run(["cp", "--archive", "--reflink=auto", root, to], check=True, timeout=120)
    return to


def named(root, name):
    """As Debian's installer names a machine."""
    (root / "etc/hostname").write_text(f"{name}\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    return root


def next_version(deb, to):
    """The same package as a later version, in the folder."""
    tree = to / f"{deb.stem}.tree"
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True, timeout=60)
    control = tree / "DEBIAN/control"
    text = control.read_text()
    version = re.search(r"^Version: (.*)$", text, re.M)[1]
    control.write_text(text.replace(f"Version: {version}", f"Version: {version}+next1"))
    made = to / deb.name.replace(version, f"{version}+next1")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made], check=True, timeout=60,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return made


class Network:
    """A network for machines, with nobody else on it; it goes when this process ends."""

    def __init__(self):
        made = "ip link set lo up; ip link add lan type bridge; ip link set lan up; echo made; exec cat"
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-ec", made], text=True, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE)
        check(self.holder.stdout.readline() == "made\n", "no network for the machines can be made")

    def enter(self):
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]

    def end(self):
        self.holder.stdin.close()
        self.holder.wait(10)


class Machine:
    """A booted container."""

    def __init__(self, root, leader, log):
        self.root = root
        self.leader = leader
        self.log = log

    def enter(self):
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root", "USER=root",
                 "DEBIAN_FRONTEND=noninteractive"]
        return ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root",
                "--wd", *clean]

    def ask(self, *command, stdin=None, seconds=60):
        """Exit code and what it said."""
        done = subprocess.run([*self.enter(), *command], input=stdin, text=True, stdout=subprocess.PIPE,
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


    def cut(self):
        """Takes its power away."""
        os.kill(self.leader, signal.SIGKILL)


@contextmanager
def booted(root, network=None, binds=()):
    """Boots what is in a folder of [`ROOTS`]; its console is in NAME.console.log beside those, what it was asked in
    NAME.asked.log. At the end it is switched off, unless somebody cut its power."""
    name = f"fleet-{root.name}"
    logs = root.parent.parent
    console = (logs / f"{root.name}.console.log").open("wb")
    groups = [folder / name for folder in cgroups()]
    for group in groups:
        group.mkdir(exist_ok=True)
    # The shell enters the groups, and what it becomes stays there.
    into = 'for group; do [ "$group" = -- ] && break; echo $$ > "$group/cgroup.procs"; shift; done; shift; exec "$@"'
    net = ["--network-bridge=lan"] if network else ["--private-network"]
    # Neither is there a systemd around it, nor is one wanted.
    nspawn = subprocess.Popen(
        [*(network.enter() if network else []), "sh", "-ec", into, "sh", *groups, "--",
         "systemd-nspawn", "--quiet", f"--directory={root}", "--register=no", "--keep-unit", *net,
         "--resolv-conf=off", "--timezone=off", "--link-journal=no", f"--machine={name}",
         *(f"--bind={outside}:{inside}" for outside, inside in binds), "--kill-signal=SIGRTMIN+3",
         "sh", "-c", INIT],
        stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)
    machine = None
    try:
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")

        def leader():
            check(nspawn.poll() is None, f"the container did not boot; see {console.name}")
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
            return None

        machine = Machine(root, until("the container's systemd", leader), (logs / f"{root.name}.asked.log").open("w"))
        until("the container's boot", lambda: machine.ask("systemctl", "is-system-running")[1].strip()
              in ("running", "degraded"), 90)
        yield machine
        if Path(f"/proc/{machine.leader}").exists():
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
        for group in groups:
            until(f"nobody is left in {group}", lambda: gone(group))


def cgroups():
    """Where a process of ours is, in each hierarchy that systemd may use."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        # An empty one, as it is made, takes nobody.
        if controllers == "cpuset":
            continue
        named = controllers.removeprefix("name=")
        places = [CGROUPS / named] if controllers else [CGROUPS / "unified", CGROUPS]
        place = next((place for place in places if (place / "cgroup.procs").exists()), None)
        if place:
            # The path is as another may see it who made a view of its own for us.
            below = place / path.lstrip("/")
            found.append(below if below.is_dir() else place)
    check(found, "no control groups are mounted")
    return found


def gone(group):
    """Removes a control group and those in it, once nobody is there."""
    for folder in sorted(group.rglob("*/"), key=lambda path: -len(path.parts)):
        try:
            folder.rmdir()
        except OSError:
            return False
    try:
        group.rmdir()
    except OSError:
        return not group.exists()
    return True
