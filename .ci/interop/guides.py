"""A guide, word for word: every `sh` block of a Markdown file, in order, in one shell and one empty folder.

A block in another language whose first line is a comment with a file's name (`# follow.py`, `// reader.mjs`) is written
to that file first. `<!-- shows: REGEX -->` below a block must match what the block printed. `<!-- by hand: WORDS -->` is
what somebody does between two blocks; nobody does here, so a guide that has it is run elsewhere. Whatever a block left
running is ended with the shell. Usage: guides.py --fleet PROGRAM [--agent PROGRAM] [--path FOLDER]… GUIDE…
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$(?:\s*<!-- shows: (.*?) -->)?|^<!-- (by hand): (.*?) -->$", re.S | re.M)
BY_HAND = "by hand"
NAMED = re.compile(r"(?:#|//) ([\w.-]+\.\w+)\n")
# Ends a block's output; no guide prints it.
MARK = "\x1e"


def blocks(guide):
    """(line, language, text, what it must show) of every block; `by hand` is the language of what somebody does."""
    text = guide.read_text("utf-8")
    for found in BLOCK.finditer(text):
        language, body, shows, by_hand, words = found.groups()
        yield text[: found.start()].count("\n") + 1, language or by_hand, words if by_hand else body, shows


def script(guide, folder):
    """One shell script of the whole guide, and what each of its blocks must show."""
    lines, expected = ["set -eu"], []
    for line, language, body, shows in blocks(guide):
        if language == BY_HAND:
            raise SystemExit(f"{guide}:{line}: nobody is here to {body}")
        if language == "sh":
            lines += [f"printf '%s' '{MARK}'", body]
            expected.append((line, body, shows))
        elif named := NAMED.match(body):
            # In its place: a later block may overwrite an earlier one.
            hidden = folder / f".{len(lines)}-{named[1]}"
            hidden.write_text(body, "utf-8")
            lines.append(f"cp '{hidden}' '{named[1]}'")
        elif shows:
            raise SystemExit(f"{guide}:{line}: nothing runs this block, so it cannot show anything")
    return "\n".join(lines) + "\n", expected


def follow(guide, given):
    with tempfile.TemporaryDirectory(prefix="fleet-guide-") as folder:
        folder = pathlib.Path(folder)
        home, work, hidden = folder / "home", folder / "work", folder / "files"
        for each in (home, work, hidden):
            each.mkdir()
        text, expected = script(guide, hidden)
        # What the guides say the reader has in the folder: the sources' descriptions.
        (work / "schemas").symlink_to(pathlib.Path("schemas").resolve())
        path = [given.fleet.resolve().parent, *(each.resolve() for each in given.path), os.environ["PATH"]]
        env = {"PATH": ":".join(map(str, path)), "HOME": str(home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        if given.node_modules:
            (work / "node_modules").symlink_to(given.node_modules.resolve())
        log = open(folder / "log", "w+b")
        shell = subprocess.Popen(
            ["bash", "-c", text], cwd=work, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=given.seconds)
        except subprocess.TimeoutExpired:
            code = "none: out of time"
        finally:
            end(shell.pid)
        log.seek(0)
        printed = log.read().decode("utf-8", "replace").split(MARK)[1:]
    return judge(guide, code, printed, expected)


def end(group):
    """What the shell started goes with it, hubs and agents with time to close their files."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, kind)
        except ProcessLookupError:
            return
        for _ in range(50):
            if not members(group):
                return
            time.sleep(0.1)


def members(group):
    found = subprocess.run(["pgrep", "-g", str(group)], capture_output=True, text=True)
    return found.stdout.split()


def judge(guide, code, printed, expected):
    wrong = []
    for (line, _, shows), output in zip(expected, printed):
        if shows and not re.search(shows, output, re.S):
            wrong.append(f"{guide}:{line}: does not show {shows!r}")
    if code != 0 or len(printed) != len(expected) or wrong:
        last = len(printed) - 1
        for (line, body, _), output in list(zip(expected, printed))[max(0, last - 2) :]:
            print(f"--- {guide}:{line}\n{body}--- printed\n{output[-3000:]}")
        print(f"FAIL: {guide}: exit code {code} in block {len(printed)} of {len(expected)}", *wrong, sep="\n")
        return False
    shown = sum(1 for _, _, shows in expected if shows)
    print(f"{guide}: {len(expected)} blocks ran, {shown} showed what they had to")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleet", type=pathlib.Path, required=True)
    parser.add_argument("--path", type=pathlib.Path, action="append", default=[], help="folders of further programs")
    parser.add_argument("--node-modules", type=pathlib.Path)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("guides", type=pathlib.Path, nargs="+")
    given = parser.parse_args()
    if not shutil.which("bash"):
        raise SystemExit("bash is missing")
    done = [follow(guide, given) for guide in given.guides]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
