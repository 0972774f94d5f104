"""Signed releases against python-tuf, an implementation of TUF that shares no code with ours, in both directions.

As a client it takes what `fleet release init|sign|rotate` and a hub publish, as it is served. As a maker it writes good
repositories, which the agent's verifier takes (`fleet release verify` runs it over a folder), and hostile ones, which it
refuses, each with a reason that fits: flipped bits, cuts, old and foreign files, files of another moment, stolen and
missing signatures, what has expired, and data without end.

Usage: releases.py --fleet PROGRAM --out FOLDER   (exit code 1 and a line for every difference)
"""

import argparse
import datetime
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import CanonicalJSONSerializer, JSONSerializer
from tuf.ngclient import FetcherInterface, Updater

TARGET = "skill/greeter/1.2.0/any"
CONTENT = b"what a node runs"
NOW = datetime.datetime(2026, 12, 1, tzinfo=datetime.timezone.utc)
NOW_MS = int(NOW.timestamp() * 1000)
SEED = 7
FLIPS, CUTS = 200, 60
# What a changed byte can be: nothing that can be read, or something that nobody signed.
CHANGED = {"malformed", "bad_signature", "mix_and_match", "too_large", "wrong_root"}


class Maker:
    """A repository and its keys."""

    def __init__(self, make=CryptoSigner.generate_ed25519, threshold=2):
        self.make, self.threshold = make, threshold
        self.root_keys = [make() for _ in range(3)]
        self.keys = {role: make() for role in ("timestamp", "snapshot", "targets")}
        self.files = {}
        self.put_root(1)
        self.publish(1)

    def root(self, version):
        root = Root(version=version, expires=NOW + datetime.timedelta(days=300), consistent_snapshot=True)
        for signer in self.root_keys:
            root.add_key(signer.public_key, "root")
        for role, signer in self.keys.items():
            root.add_key(signer.public_key, role)
        root.roles["root"].threshold = self.threshold
        return root

    def put_root(self, version, root=None, signers=None):
        self.files[f"{version}.root.json"] = signed(root or self.root(version), signers or self.root_keys[: self.threshold])

    def listed(self, name, version):
        data = self.files[name]
        return MetaFile(version=version, length=len(data), hashes={"sha256": hashlib.sha256(data).hexdigest()})

    def publish(self, version, days=30, custom=None):
        self.put_targets(version, days, custom)
        self.put_snapshot(version, version, days)
        self.put_timestamp(version, version, days)

    def put_targets(self, version, days=30, custom=None, signer=None):
        target = TargetFile.from_data(TARGET, CONTENT, ["sha256"])
        target.unrecognized_fields["custom"] = custom or {"epoch": 1, "signed_ms": NOW_MS}
        targets = Targets(version=version, expires=NOW + datetime.timedelta(days=days), targets={TARGET: target})
        self.files[f"{version}.targets.json"] = signed(targets, [signer or self.keys["targets"]])

    def put_snapshot(self, version, targets, days=30, signer=None):
        meta = {"targets.json": self.listed(f"{targets}.targets.json", targets)}
        snapshot = Snapshot(version=version, expires=NOW + datetime.timedelta(days=days), meta=meta)
        self.files[f"{version}.snapshot.json"] = signed(snapshot, [signer or self.keys["snapshot"]])

    def put_timestamp(self, version, snapshot, days=30, signer=None):
        timestamp = Timestamp(version=version, expires=NOW + datetime.timedelta(days=days))
        timestamp.snapshot_meta = self.listed(f"{snapshot}.snapshot.json", snapshot)
        self.files["timestamp.json"] = signed(timestamp, [signer or self.keys["timestamp"]])

    def resign(self, name, change, signers):
        """A file with something changed in it, rightly signed: as bytes, for python-tuf would not write it."""
        file = json.loads(self.files[name])
        change(file["signed"])
        self.files[name] = by_hand(file["signed"], signers)


def signed(role, signers):
    metadata = Metadata(role)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=random.random() < 0.5))


def by_hand(body, signers):
    from securesystemslib.formats import encode_canonical

    message = encode_canonical(body).encode()
    signatures = [signer.sign(message).to_dict() for signer in signers]
    return json.dumps({"signed": body, "signatures": signatures}).encode()


class Judge:
    """Has the agent's verifier read repositories, and counts what it says."""

    def __init__(self, fleet, folder):
        self.fleet, self.folder = fleet, folder
        self.wrong, self.cases, self.refused = [], 0, {}

    def ask(self, files, pinned=None, trusted=None, at_ms=NOW_MS, target=TARGET):
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        for name, data in files.items():
            if isinstance(data, int):
                with open(folder / name, "wb") as file:
                    file.truncate(data)
            else:
                (folder / name).write_bytes(data)
        command = [self.fleet, "release", "verify", folder, "--at", str(at_ms), "--target", target, "-o", "json"]
        if pinned is not None:
            (folder / "pinned.json").write_bytes(pinned)
            command += ["--root", folder / "pinned.json"]
        if trusted is not None:
            command += ["--trusted", trusted]
        answer = subprocess.run(command, capture_output=True, timeout=60)
        shutil.rmtree(folder)
        try:
            verdict = json.loads(answer.stdout)
        except ValueError:
            return {"ok": None, "code": "crashed", "why": answer.stderr.decode(errors="replace")[:300]}
        if verdict["ok"] != (answer.returncode == 0):
            self.wrong.append(f"exit code {answer.returncode} for {verdict}")
        return verdict

    def takes(self, what, files, **more):
        self.cases += 1
        verdict = self.ask(files, **more)
        if not verdict["ok"]:
            self.wrong.append(f"{what}: refused: {verdict['code']}: {verdict['why']}")
        elif verdict["digest"] != hashlib.sha256(CONTENT).hexdigest() or verdict["length"] != len(CONTENT):
            self.wrong.append(f"{what}: another target: {verdict}")

    def refuses(self, what, files, codes, **more):
        self.cases += 1
        verdict = self.ask(files, **more)
        codes = {codes} if isinstance(codes, str) else codes
        if verdict["ok"] is not False:
            self.wrong.append(f"{what}: TAKEN: {verdict}")
        elif verdict["code"] not in codes:
            self.wrong.append(f"{what}: {verdict['code']} ({verdict['why']}), not {sorted(codes)}")
        else:
            self.refused[verdict["code"]] = self.refused.get(verdict["code"], 0) + 1


def good(judge):
    for name, make in [("ed25519", CryptoSigner.generate_ed25519), ("ecdsa", CryptoSigner.generate_ecdsa)]:
        maker = Maker(make)
        state = judge.folder / f"trusted-{name}"
        judge.takes(name, maker.files, trusted=state)
        judge.takes(f"{name}, nothing new", maker.files, trusted=state)
        maker.publish(2)
        judge.takes(f"{name}, a new version", maker.files, trusted=state)
        old, maker.root_keys = maker.root_keys, [make() for _ in range(3)]
        maker.put_root(2, signers=maker.root_keys[:2] + old[:2])
        judge.takes(f"{name}, new root keys", maker.files, trusted=state)
        judge.takes(f"{name}, pinned long ago", maker.files, pinned=maker.files["1.root.json"])
        # Thieves drove the versions up; the keys are changed, and versions begin anew.
        maker.publish(1000)
        judge.takes(f"{name}, far ahead", maker.files, trusted=state)
        maker.keys = {role: make() for role in maker.keys}
        maker.put_root(3)
        maker.publish(1)
        judge.takes(f"{name}, recovered from a fast-forward", maker.files, trusted=state)
    maker = Maker()
    maker.publish(2, custom={"epoch": 2, "unknown": {"deep": [1, "\u00fc\n\"\\"]}})
    judge.takes("unknown and odd texts in custom", maker.files)
    maker.resign("timestamp.json", lambda body: body["meta"]["snapshot.json"].pop("hashes"), [maker.keys["timestamp"]])
    judge.takes("no digest in the timestamp", maker.files)


def changed_bytes(judge):
    maker = Maker()
    maker.put_root(2)
    names = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    draw = random.Random(SEED)
    for at in range(FLIPS):
        name = names[at % 4]
        data = bytearray(maker.files[name])
        place, bit = draw.randrange(len(data)), draw.randrange(8)
        data[place] ^= 1 << bit
        files = {**maker.files, name: bytes(data)}
        judge.refuses(f"bit {bit} of byte {place} of {name} flipped", files, CHANGED)
    for at in range(CUTS):
        name = names[at % 4]
        data = maker.files[name]
        length = draw.randrange(len(data))
        judge.refuses(f"{name} cut at {length}", {**maker.files, name: data[:length]}, CHANGED)


def swapped(judge):
    maker = Maker()
    old = dict(maker.files)
    maker.publish(2, custom={"epoch": 2, "padding": "x" * 50})
    state = judge.folder / "trusted-swapped"
    judge.takes("the second version", maker.files, trusted=state)
    judge.refuses("the timestamp of before", {**maker.files, "timestamp.json": old["timestamp.json"]}, "rollback", trusted=state)
    judge.refuses("all of before", old, "rollback", trusted=state)
    foreign = Maker()
    foreign.publish(2)
    for name in ["2.snapshot.json", "2.targets.json"]:
        before = old[name.replace("2.", "1.")]
        judge.refuses(f"{name} of before", {**maker.files, name: before}, {"mix_and_match", "too_large"})
        judge.refuses(f"{name} of another fleet", {**maker.files, name: foreign.files[name]}, {"mix_and_match", "too_large"})
        judge.refuses(f"no {name}", {key: data for key, data in maker.files.items() if key != name}, "missing_metadata")
        judge.refuses(f"{name} without end", {**maker.files, name: 1 << 33}, "too_large")
    judge.refuses("the timestamp of another fleet", {**maker.files, "timestamp.json": foreign.files["timestamp.json"]}, "bad_signature")
    judge.refuses("no timestamp", {key: data for key, data in maker.files.items() if key != "timestamp.json"}, "missing_metadata")
    judge.refuses("another fleet", foreign.files, "bad_signature", pinned=maker.files["1.root.json"])
    for name in ["timestamp.json", "2.root.json"]:
        judge.refuses(f"{name} without end", {**maker.files, name: 1 << 33}, "too_large")
    maker.put_timestamp(3, 2)
    judge.takes("the third timestamp", maker.files, trusted=state)
    maker.put_snapshot(3, 2)
    maker.files["1.snapshot.json"] = old["1.snapshot.json"]
    maker.put_timestamp(4, 1)
    judge.refuses("a new timestamp of an old snapshot", maker.files, "rollback", trusted=state)
    maker.files["1.targets.json"] = old["1.targets.json"]
    maker.put_snapshot(5, 1)
    maker.put_timestamp(5, 5)
    judge.refuses("a new snapshot of old targets", maker.files, "rollback", trusted=state)
    judge.refuses("a target that nobody signed", old, "unknown_target", target="skill/greeter/1.2.1/any")


def expired(judge):
    for role in ["timestamp", "snapshot", "targets", "root"]:
        maker = Maker()
        if role == "root":
            root = maker.root(2)
            root.expires = NOW - datetime.timedelta(seconds=1)
            maker.put_root(2, root)
        if role == "targets":
            maker.put_targets(1, days=-1)
        if role in ("targets", "snapshot"):
            maker.put_snapshot(1, 1, days=-1 if role == "snapshot" else 30)
        if role != "root":
            maker.put_timestamp(1, 1, days=-1 if role == "timestamp" else 30)
        judge.refuses(f"the {role} expired", maker.files, "expired")
    maker = Maker()
    state = judge.folder / "trusted-frozen"
    judge.takes("fresh", maker.files, trusted=state)
    judge.refuses("held back for two months", maker.files, "expired", trusted=state, at_ms=NOW_MS + 60 * 86_400_000)


def signatures(judge):
    for role, name in [("timestamp", "timestamp.json"), ("snapshot", "1.snapshot.json"), ("targets", "1.targets.json")]:
        for other in [CryptoSigner.generate_ed25519()] + [key for of, key in Maker().keys.items() if of == role]:
            maker = Maker()
            put = {"timestamp": maker.put_timestamp, "snapshot": maker.put_snapshot, "targets": maker.put_targets}[role]
            put(1, **({} if role == "targets" else {"snapshot" if role == "timestamp" else "targets": 1}), signer=other)
            if role == "targets":
                maker.put_snapshot(1, 1)
            if role != "timestamp":
                maker.put_timestamp(1, 1)
            judge.refuses(f"{name} signed by a stranger", maker.files, "bad_signature")
    for role, thief in [("timestamp", "snapshot"), ("timestamp", "targets")]:
        maker = Maker()
        maker.put_timestamp(1, 1, signer=maker.keys[thief])
        judge.refuses(f"the {role} signed by the key of {thief}", maker.files, "bad_signature")
    maker = Maker()
    maker.put_root(2, signers=maker.root_keys[:1])
    judge.refuses("a root with one signature of two", maker.files, "wrong_root")
    file = json.loads(maker.files["2.root.json"])
    file["signatures"] *= 2
    judge.refuses("the same signature twice", {**maker.files, "2.root.json": json.dumps(file).encode()}, "malformed")
    strangers = [CryptoSigner.generate_ed25519() for _ in range(3)]
    maker.put_root(2, signers=strangers)
    judge.refuses("a root of strangers", maker.files, "wrong_root")
    maker.put_root(2, root=maker.root(3))
    judge.refuses("a root that skips a version", maker.files, "wrong_root")
    maker.put_root(2, root=maker.root(1))
    judge.refuses("the first root again", maker.files, "wrong_root")
    old, maker.root_keys = maker.root_keys, strangers
    maker.put_root(2, signers=old[:2])
    judge.refuses("a root that its own keys did not sign", maker.files, "bad_signature")
    maker = Maker()
    revoked, maker.keys["targets"] = maker.keys["targets"], CryptoSigner.generate_ed25519()
    maker.put_root(2)
    judge.refuses("targets by a key that was revoked", maker.files, "bad_signature")
    del revoked


def shapes(judge):
    wrongs = {
        "of version 0": lambda body: body.update(version=0),
        "of a negative version": lambda body: body.update(version=-1),
        "of version 1.0": lambda body: body.update(version="1"),
        "of the largest version": lambda body: body.update(version=2**64 - 1),
        "of specification 2": lambda body: body.update(spec_version="2.0.0"),
        "of no specification": lambda body: body.pop("spec_version"),
        "that never expires": lambda body: body.pop("expires"),
        "with a time in words": lambda body: body.update(expires="next year"),
        "with a time with an offset": lambda body: body.update(expires="2027-01-01T00:00:00+00:00"),
        "of another role": lambda body: body.update(_type="targets"),
        "without files": lambda body: body.pop("meta"),
        "with files in a list": lambda body: body.update(meta=[]),
    }
    for what, change in wrongs.items():
        maker = Maker()
        maker.resign("timestamp.json", change, [maker.keys["timestamp"]])
        judge.refuses(f"a timestamp {what}", maker.files, "malformed")
    wrongs = {
        "without a threshold": lambda body: body["roles"]["root"].pop("threshold"),
        "with a threshold of 0": lambda body: body["roles"]["targets"].update(threshold=0),
        "that asks for more keys than it has": lambda body: body["roles"]["targets"].update(threshold=2),
        "without a role": lambda body: body["roles"].pop("snapshot"),
        "with a key under another's id": lambda body: body["keys"].update({"ab" * 32: next(iter(body["keys"].values()))}),
        "that names a key twice": lambda body: body["roles"]["root"].update(keyids=body["roles"]["root"]["keyids"] * 2),
        "with a key that is missing": lambda body: body["roles"]["root"]["keyids"].append("cd" * 32),
    }
    for what, change in wrongs.items():
        maker = Maker()
        maker.put_root(2)
        maker.resign("2.root.json", change, maker.root_keys[:2])
        judge.refuses(f"a root {what}", maker.files, "malformed")
    maker = Maker()
    text = maker.files["timestamp.json"].decode()
    for what, data in {
        "nothing": "", "an empty object": "{}", "a list": "[]", "a number": "1", "no JSON": "<html>captive portal</html>",
        "two objects": text + text, "deep nesting": "[" * 5000, "a key twice": text.replace("{", '{"signatures": [], ', 1),
        "a float": text.replace('"version": 1', '"version": 1.0').replace('"version":1', '"version":1.0'),
    }.items():
        judge.refuses(f"a timestamp that is {what}", {**maker.files, "timestamp.json": data.encode()}, {"malformed", "bad_signature"})


class Served(FetcherInterface):
    """What the hub serves: metadata over HTTP, artifacts from its folder, as the port for nodes does by digest."""

    def __init__(self, url, token, data):
        self.url, self.token, self.data = url, token, data

    def _fetch(self, url):
        kind, rest = url.split("//", 1)
        if kind == "artifact:":
            yield (self.data / "artifacts" / Path(rest).name.split(".")[0]).read_bytes()
            return
        request = urllib.request.Request(f"{self.url}/api/v1/releases/metadata/{rest}")
        request.add_header("authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                yield answer.read()
        except urllib.error.HTTPError as error:
            raise DownloadHTTPError(str(error), error.code) from error


def ours(fleet, folder, wrong):
    """python-tuf reads what our own tools make, through two changes of keys."""
    data, keys = folder / "hub", folder / "keys"
    log = open(folder / "hub.log", "wb")
    ports = [argument for name in ("http", "mqtt", "mqtts", "node-https") for argument in (f"--{name}", "127.0.0.1:0")]
    hub = subprocess.Popen([fleet, "hub", "--data", data, *ports], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (data / "addresses.json").exists():
            if time.monotonic() > deadline or hub.poll() is not None:
                raise RuntimeError("the hub does not start")
            time.sleep(0.1)
        url = "http://" + json.loads((data / "addresses.json").read_text())["http"]
        token = (data / "access/admin").read_text().split()[-1]
        environment = {**os.environ, "FLEET_PASSPHRASE": "a passphrase", "FLEET_RELEASE_KEYS": str(keys)}

        def run(*verb):
            done = subprocess.run([fleet, "--data", data, *verb], env=environment, capture_output=True, timeout=120)
            if done.returncode:
                raise RuntimeError(f"{verb}: {done.stderr.decode()}")

        def read(what, version, content):
            updater = Updater(
                str(cache), "metadata://", str(folder), "artifact://", fetcher=Served(url, token, data), bootstrap=pinned
            )
            updater.refresh()
            info = updater.get_targetinfo(f"skill/greeter/{version}/any")
            if info is None or Path(updater.download_target(info, str(folder / "got"))).read_bytes() != content:
                wrong.append(f"python-tuf reads our repository otherwise: {what}")

        cache = folder / "cache"
        cache.mkdir()
        for at, change in enumerate([("--root", "--targets"), ("--renew",), ("--root",)]):
            content = bytes([at]) * 100_000
            (folder / "file").write_bytes(content)
            run("artifact", "push", str(folder / "file"), "--name", "greeter", "--version", f"1.{at}.0")
            if at == 0:
                run("release", "init")
                pinned = (data / "releases/1.root.json").read_bytes()
            run("release", "sign", f"greeter@1.{at}.0", "--epoch", str(at))
            read(f"release {at}", f"1.{at}.0", content)
            run("release", "rotate", *change)
            read(f"after a change of keys {at}", f"1.{at}.0", content)
    finally:
        hub.terminate()
        hub.wait(30)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    fleet = str(Path(arguments.fleet).resolve())
    random.seed(SEED)
    with tempfile.TemporaryDirectory(prefix="releases-") as folder:
        folder = Path(folder)
        judge = Judge(fleet, folder)
        for part in (good, changed_bytes, swapped, expired, signatures, shapes):
            part(judge)
        ours(fleet, folder, judge.wrong)
    for line in judge.wrong:
        print(line)
    refused = sum(judge.refused.values())
    told = ", ".join(f"{code} {count}" for code, count in sorted(judge.refused.items()))
    print(f"{judge.cases} repositories by python-tuf: {judge.cases - refused - len(judge.wrong)} taken, {refused} refused ({told})")
    print("python-tuf reads ours" if not judge.wrong else f"{len(judge.wrong)} are wrong")
    return 1 if judge.wrong or refused < 260 else 0


if __name__ == "__main__":
    sys.exit(main())
