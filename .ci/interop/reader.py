"""The documented Python reader of telemetry payloads, taken from the documentation itself.

`schemas/src/telemetry/reader.md` holds the lines that third parties copy; this module executes exactly those, so
the documentation cannot be wrong unnoticed.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "schemas/src/telemetry/reader.md"


def load():
    """The function `samples(payload)` of the documentation."""
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.S | re.M)
    if len(blocks) != 1:
        raise SystemExit(f"{DOCUMENT}: {len(blocks)} python blocks, expected one")
    names = {}
    exec(compile(blocks[0], str(DOCUMENT), "exec"), names)
    return names["samples"]


samples = load()
