"""Holds the crates that are linked in against deny.toml: licences, bans, sources.

Reads the file as `cargo deny check bans licenses sources` does (of deny.toml only what ours says), so that one policy
serves both; where cargo-deny is installed, CI asks it too. Compiling it takes longer than this whole check may.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from license_expression import get_spdx_licensing

REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"
# What is read of each section; anything else would be a rule that nobody holds.
KNOWN = {
    "graph": {"targets"},
    "licenses": {"allow", "private", "exceptions", "unused-allowed-license"},
    "bans": {"multiple-versions", "wildcards", "allow-wildcard-paths", "deny"},
    "sources": {"unknown-registry", "unknown-git", "allow-git"},
}


def crates(targets):
    """All packages that any target resolves, whether they are linked in or used to build and test."""
    found, members = {}, set()
    for target in targets:
        command = ["cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={target}"]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
        metadata = json.loads(text)
        used = {node["id"] for node in metadata["resolve"]["nodes"]}
        found |= {package["id"]: package for package in metadata["packages"] if package["id"] in used}
        members |= set(metadata["workspace_members"])
    return found, members


def allowed(expression, allow, spdx):
    """Whether an SPDX expression can be met by the licences that are allowed."""
    parsed = spdx.parse(expression.replace("/", " OR "), validate=True)

    def met(part):
        name = type(part).__name__
        if name == "AND":
            return all(met(arg) for arg in part.args)
        if name == "OR":
            return any(met(arg) for arg in part.args)
        return part.render() in allow

    return met(parsed)


def main():
    policy = tomllib.loads(Path("deny.toml").read_text())
    for section, rules in policy.items():
        unknown = set(rules) - KNOWN.get(section, set())
        if section not in KNOWN or unknown:
            sys.exit(f"deny.toml: [{section}] {', '.join(unknown)}: not read here")
    targets = policy["graph"]["targets"]
    packages, members = crates(targets)
    spdx = get_spdx_licensing()
    allow = set(policy["licenses"]["allow"])
    banned = {ban["crate"]: ban.get("reason", "") for ban in policy["bans"]["deny"]}
    wrong, used = [], set()
    for id, package in packages.items():
        name = f"{package['name']} {package['version']}"
        if package["name"] in banned:
            wrong.append(f"{name} is banned: {banned[package['name']]}")
        if id in members:
            wild = [use["name"] for use in package["dependencies"] if use["req"] == "*" and not use.get("path")]
            wrong += [f"{name} takes any version of {use}" for use in wild]
            continue
        if package["source"] != REGISTRY:
            wrong.append(f"{name} comes from {package['source']}")
        licence = package["license"]
        try:
            if not licence or not allowed(licence, allow, spdx):
                wrong.append(f"{name} is under {licence}")
        except Exception as unreadable:
            wrong.append(f"{name}: {licence}: {unreadable}")
        used |= {word for word in allow if licence and word in licence}
    wrong += [f"deny.toml allows {word}, which nothing is under" for word in sorted(allow - used)]
    print(f"{len(packages) - len(members)} crates for {len(targets)} targets, {len(wrong)} findings")
    sys.exit("\n".join(wrong) if wrong else 0)


main()
