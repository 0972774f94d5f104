"""The hub's HTTP API against its own document: requests made from /openapi.json by schemathesis."""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from demo import Demo, Failure

# Answers without end, bodies of protobuf and of bytes that it cannot make, and what makes keys.
EXCLUDED = ["/api/v1/stream", "/api/v1/feed", "/api/v1/prom/read", "/api/v1/artifacts/{digest}/upload", "/api/v1/pki/rotate"]


def schemathesis(url, token, folder):
    """No server error, and nothing that the document does not say."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [pathlib.Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json", "--url", url]
    command += ["--header", f"Authorization: Bearer {token}", "--checks", checks, "--phases", "examples,fuzzing"]
    command += ["--max-examples", "10", "--seed", "1", "--workers", "1", "--request-timeout", "10", "--no-color"]
    for path in EXCLUDED:
        command += ["--exclude-path", path]
    said = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=280)
    if said.returncode:
        raise Failure(f"schemathesis:\n{(said.stdout + said.stderr)[-6000:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "hub"
        demo = Demo(options.fleet, data, options.out / "hub-api-demo.log", nodes=1)
        try:
            token = (data / "access/admin").read_text().split()[1]
            schemathesis("http://%s:%d" % demo.http, token, folder)
            demo.stop()
        except Failure as failure:
            print(failure)
            return 1
        finally:
            demo.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
