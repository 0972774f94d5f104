"""Writes what is linked into a program as a CycloneDX document, and checks it against its schema.

    sbom.py PACKAGE OUT.cdx.json

Crates as Cargo resolves them for Linux on this architecture, without what only tests and build scripts use; digests
from Cargo.lock. The same commit gives the same bytes.
"""

import json
import platform
import subprocess
import sys
import tomllib
import uuid
from datetime import datetime, timezone
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

VERSION = SchemaVersion.V1_6


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def crates(package):
    """The crates that are linked into a package's programs: by id, with those they use."""
    target = f"{platform.machine()}-unknown-linux-gnu"
    metadata = json.loads(run("cargo", "metadata", "--locked", "--format-version=1", "--filter-platform", target))
    packages = {found["id"]: found for found in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = next(id for id in metadata["workspace_members"] if packages[id]["name"] == package)
    linked, waiting = {}, [root]
    while waiting:
        id = waiting.pop()
        if id in linked:
            continue
        normal = lambda use: any(kind["kind"] is None for kind in use["dep_kinds"])
        linked[id] = [use["pkg"] for use in nodes[id]["deps"] if normal(use)]
        waiting += linked[id]
    return root, packages, linked


def expression(licence):
    # Cargo took a slash for `or` before SPDX had a word for it.
    return LicenseExpression(licence.replace("/", " OR "))


def main(package, out):
    root, packages, linked = crates(package)
    lock = tomllib.loads(Path("Cargo.lock").read_text())
    digests = {(found["name"], found["version"]): found.get("checksum") for found in lock["package"]}
    components = {}
    for id in linked:
        found = packages[id]
        name, version = found["name"], found["version"]
        digest = digests.get((name, version))
        own = found["source"] is None
        components[id] = Component(
            type=ComponentType.APPLICATION if id == root else ComponentType.LIBRARY,
            bom_ref=f"{name}@{version}",
            name=name,
            version=version,
            purl=None if own else PackageURL("cargo", None, name, version),
            licenses=[expression("BUSL-1.1" if own else found["license"])],
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else None,
        )
    head = run("git", "log", "-1", "--format=%H %ct").split()
    bom = Bom(
        components=[component for id, component in components.items() if id != root],
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"https://github.com/Clawland-AI/fleet/{package}/{head[0]}"),
    )
    bom.metadata.timestamp = datetime.fromtimestamp(int(head[1]), timezone.utc)
    bom.metadata.component = components[root]
    for id, uses in linked.items():
        bom.register_dependency(components[id], [components[use] for use in uses])
    text = make_outputter(bom, OutputFormat.JSON, VERSION).output_as_string(indent=1)
    wrong = JsonStrictValidator(VERSION).validate_str(text)
    if wrong:
        sys.exit(f"{package}: not CycloneDX {VERSION.to_version()}: {wrong}")
    Path(out).write_text(text)
    print(f"{package}: {len(linked)} components")


main(*sys.argv[1:])
