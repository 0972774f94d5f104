"""Fifty nodes download 20 MB at once over mutual TLS, from the hub and from nginx, by curl on one machine.

The hub may not grow by more than 100 MB for that, and is to be at least 70 % as quick as nginx in the same run. Also, over
real sockets: what curl goes on with after it broke off is the same file.

Usage: downloads.py --fleet PROGRAM --out FOLDER [--nodes N] [--rounds N]   (exit code 1 when a figure is missed)
"""

import argparse
import datetime
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from demo import Failure, until

BYTES = 20_000_000
GROWTH = 100_000_000
SHARE = 0.7
TARGET = "skill/load/1.0.0/any"

NGINX = """
worker_processes auto; pid {folder}/nginx.pid; error_log {folder}/nginx.log; daemon off;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_protocols TLSv1.3;
    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;
    ssl_client_certificate {folder}/ca.pem; ssl_verify_client on;
    location / {{ root {folder}/www; }}
  }}
}}
"""


def pem_of(key):
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def server_certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    made = made.not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    (folder / "server.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(pem_of(key))


class Site:
    """A hub with a signed release, and nodes that are to have it."""

    def __init__(self, fleet, folder, nodes):
        self.fleet, self.folder, self.data = fleet, folder, folder / "hub"
        ports = [word for name in ("http", "mqtt", "mqtts", "node-https") for word in (f"--{name}", "127.0.0.1:0")]
        log = open(folder / "hub.log", "wb")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
        command = [fleet, "hub", "--data", self.data, *ports]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        self.environment |= {"FLEET_PASSPHRASE": "", "FLEET_RELEASE_KEYS": str(folder / "keys")}
        addresses = until("the hub listens", 60, lambda: json.loads((self.data / "addresses.json").read_text()))
        self.http, self.https = addresses["http"], addresses["node_https"]
        self.token = until("the admin's token", 30, lambda: (self.data / "access/admin").read_text().split()[1])
        (folder / "www").mkdir()
        content = os.urandom(BYTES)
        self.digest = hashlib.sha256(content).hexdigest()
        (folder / "www" / self.digest).write_bytes(content)
        self.run("artifact", "push", str(folder / "www" / self.digest), "--name", "load", "--version", "1.0.0")
        self.run("release", "init")
        self.run("release", "sign", "load@1.0.0")
        self.join(nodes)
        order = {"target": TARGET, "digest": self.digest}
        body = {"nodes": self.nodes, "kind": "update", "params": order, "ttl_s": 3600, "queue": "update", "idempotent": True}
        self.ask("/api/v1/commands", body)

    def run(self, *verb):
        done = subprocess.run([self.fleet, "--data", self.data, *verb], env=self.environment, capture_output=True, timeout=120)
        if done.returncode:
            raise Failure(f"{verb}: {done.stderr.decode()}")
        return done.stdout

    def ask(self, path, body):
        request = urllib.request.Request(f"http://{self.http}{path}", json.dumps(body).encode())
        request.add_header("authorization", f"Bearer {self.token}")
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def join(self, count):
        """As any machine does: a key, a signing request, a token."""
        made = json.loads(self.run("join-token", "create", "--uses", str(count), "-o", "json"))
        _, _, token, secret = made["token"].split(".")
        self.nodes = [f"load-{n}" for n in range(count)]
        for node in self.nodes:
            key = ec.generate_private_key(ec.SECP256R1())
            csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
            wish = {
                "id": token, "secret": secret, "node": node, "csr": csr.public_bytes(serialization.Encoding.PEM).decode(),
            }
            answer = self.curl("/v1/enrol", "--data-binary", json.dumps(wish), "-H", "content-type: application/json")
            issued = json.loads(answer.stdout)
            (self.folder / f"{node}.pem").write_text(issued["certificate"])
            (self.folder / f"{node}.key").write_bytes(pem_of(key))
            (self.folder / "ca.pem").write_text("".join(issued["ca"]))

    def curl(self, path, *more):
        command = ["curl", "-sSkf", f"https://{self.https}{path}", *more]
        return subprocess.run(command, capture_output=True, timeout=60, check=True)

    def rss(self):
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def at_once(site, url):
    """Everybody downloads; bytes a second of all together."""
    began = time.monotonic()
    curls = []
    for node in site.nodes:
        shows = ["--cert", site.folder / f"{node}.pem", "--key", site.folder / f"{node}.key"]
        command = ["curl", "-skf", "--tlsv1.3", "-o", "/dev/null", "-w", "%{size_download}", *shows, url]
        curls.append(subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE))
    sizes = [int(curl.communicate(timeout=600)[0] or 0) for curl in curls]
    took = time.monotonic() - began
    if sizes != [BYTES] * len(sizes):
        raise Failure(f"{url}: not everybody got all of it: {sorted(set(sizes))}")
    return sum(sizes) / took


def resumed(site, url):
    """What was cut is gone on with."""
    node, path = site.nodes[0], site.folder / "resumed"
    shows = ["--cert", site.folder / f"{node}.pem", "--key", site.folder / f"{node}.key"]
    command = ["curl", "-skf", *map(str, shows), "-o", str(path), url]
    subprocess.run([*command, "-r", "0-7000000"], timeout=60, check=True)
    subprocess.run([*command, "-C", "-"], timeout=60, check=True)
    if hashlib.sha256(path.read_bytes()).hexdigest() != site.digest:
        raise Failure("what curl went on with is not the file")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="downloads-") as folder:
        folder = Path(folder)
        # nginx gives up root, and must read what lies here.
        folder.chmod(0o755)
        processes = []
        try:
            site = Site(str(Path(options.fleet).resolve()), folder, options.nodes)
            processes.append(site.process)
            server_certificate(folder)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
            said = open(options.out / "downloads-nginx.log", "wb")
            nginx = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")], stderr=said)
            processes.append(nginx)
            until("nginx listens", 20, (folder / "nginx.pid").exists)
            hub_url, nginx_url = f"https://{site.https}/v1/artifacts/{site.digest}", f"https://127.0.0.1:{port}/{site.digest}"
            resumed(site, hub_url)
            before, peak, over = site.rss(), [site.rss()], threading.Event()

            def watch():
                while not over.wait(0.02):
                    peak[0] = max(peak[0], site.rss())

            watcher = threading.Thread(target=watch)
            watcher.start()
            ours, theirs, spent = [], [], site.cpu_s()
            for _ in range(options.rounds):
                theirs.append(at_once(site, nginx_url))
                ours.append(at_once(site, hub_url))
            over.set()
            watcher.join()
            spent = site.cpu_s() - spent
            sent = options.rounds * options.nodes * BYTES
            growth, hub, peer = peak[0] - before, statistics.median(ours), statistics.median(theirs)
            print(f"{options.nodes} nodes at once, {BYTES / 1e6:.0f} MB each, {options.rounds} rounds, mutual TLS 1.3 on loopback")
            print(f"hub    {hub / 1e6:.0f} MB/s ({', '.join(f'{one / 1e6:.0f}' for one in ours)})")
            print(f"nginx  {peer / 1e6:.0f} MB/s ({', '.join(f'{one / 1e6:.0f}' for one in theirs)})")
            print(f"share  {hub / peer:.2f} (at least {SHARE})")
            print(f"growth {growth / 1e6:.1f} MB of the hub's memory (at most {GROWTH / 1e6:.0f})")
            print(f"cpu    {spent / sent * 1e9:.2f} s of the hub a GB")
            return 0 if hub / peer >= SHARE and growth <= GROWTH else 1
        except (Failure, subprocess.CalledProcessError) as failure:
            print(failure)
            return 1
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)


if __name__ == "__main__":
    sys.exit(main())
