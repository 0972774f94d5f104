"""A `fleet demo` on free ports of the loopback: started, asked over HTTP, stopped.

Also how everything here waits: `until` a condition holds, or a `Failure` that says what did not come true.
"""

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request


class Failure(Exception):
    """What did not come true, for people."""


class Refused(OSError):
    """An HTTP answer other than 200."""


def until(what, seconds, condition):
    """The first true value of `condition()`, asked again and again for at most `seconds`."""
    deadline = time.monotonic() + seconds
    last = None
    while True:
        try:
            value = condition()
            if value:
                return value
        except (OSError, KeyError, ValueError) as error:
            last = error
        if time.monotonic() > deadline:
            raise Failure(f"not within {seconds} s: {what}" + (f" ({last!r})" if last else ""))
        time.sleep(0.1)


class Demo:
    """The process. Its output goes to `log`."""

    def __init__(self, fleet, data, log, nodes):
        self.log = log
        self.data = data
        self.output = open(log, "wb")
        # In this process group: whoever ends the group ends the demo and the drivers it runs.
        self.process = subprocess.Popen(
            [fleet, "demo", "--nodes", str(nodes), "--data", data, "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0",
             "--mqtts", "127.0.0.1:0", "--node-https", "127.0.0.1:0"],
            # Whatever FLEET_* variables steer the checks must not steer the hub.
            env={name: value for name, value in os.environ.items() if not name.startswith("FLEET_")},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        try:
            addresses = until("the demo says where it listens", 30, self.addresses)
            self.http = addresses["http"]
            self.mqtt = addresses["mqtt"]
        except Failure:
            self.print_log()
            self.kill()
            raise SystemExit(1)
        print(f"demo: http {self.http}, mqtt {self.mqtt}")

    def addresses(self):
        """`addresses.json` in the data folder: (host, port) by name."""
        if self.process.poll() is not None:
            raise Failure(f"the demo ended with exit code {self.process.returncode}")
        text = json.loads((self.data / "addresses.json").read_text("utf-8"))
        found = {}
        for name in ["http", "mqtt"]:
            address = re.fullmatch(r"(?:\w+://)?(.+):(\d+)/?", text[name])
            if not address:
                raise Failure(f"addresses.json has {text[name]!r} as {name}")
            found[name] = (address[1].strip("[]"), int(address[2]))
        return found

    def credential(self):
        """User name and password of a tool that may read every topic: two lines of a file only its owner reads."""
        path = self.data / "access" / "local"
        mode = path.stat().st_mode & 0o777
        if mode != 0o600:
            raise Failure(f"{path} has mode {mode:o}, not 600")
        lines = path.read_text("utf-8").split("\n")
        if len(lines) < 2 or not all(lines[:2]):
            raise Failure(f"{path} is not a line with a user name and a line with a password")
        return lines[0], lines[1]

    def get(self, path, as_json=True):
        """An answer of the HTTP API; any status but 200 is `Refused`."""
        host, port = self.http
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(f"GET {path}: {error.code} {error.read()[:300]!r}") from None
        return json.loads(body) if as_json else body

    def stop(self):
        """SIGINT; seconds until it ended, at most 5, with exit code 0."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            raise Failure("the demo did not stop within 5 s of SIGINT") from None
        if code != 0:
            raise Failure(f"the demo stopped on SIGINT with exit code {code}")
        return time.monotonic() - started

    def kill(self):
        """Ends whatever is left of it."""
        self.process.kill()
        self.process.wait(timeout=10)
        self.output.close()

    def print_log(self):
        self.output.flush()
        lines = self.log.read_text("utf-8", "replace").splitlines()
        print(f"--- {self.log}:", *lines[-60:], sep="\n")
