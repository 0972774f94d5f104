"""Programs on a node, in Python: the documented gRPC script, reflection, health, and the same mistakes told the same;
then the devices, and all of it over TLS.

Starts `fleet-agent run` without a hub in an empty folder. What is handed in is counted over REST.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "schemas"))  # where edge.proto is
DOCUMENT = ROOT / "schemas/edge.md"
SERVICES = {f"fleet.edge.v1.{name}" for name in "Telemetry Events Commands Local Config Devices Outbox Ledger Status".split()}


class Failure(Exception):
    pass


def check(found, expected, what):
    if found != expected:
        raise Failure(f"{what}: found {found!r}, expected {expected!r}")


class Agent:
    """A running agent; ended when the case is."""

    def __init__(self, program, data, log, **settings):
        env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
        env |= {"FLEET_SYSTEM_INTERVAL_S": "0"} | settings
        command = [program, "run", "--data", data, "--api", "127.0.0.1:0", "--node", "interop"]
        self.log = open(log, "wb")
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=self.log)
        deadline = time.monotonic() + 30
        while not (found := re.search(rb"api=(\S+)", pathlib.Path(log).read_bytes())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"the agent does not run; see {log}")
            time.sleep(0.05)
        self.address = found[1].decode()

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
            return json.load(answer)

    def samples(self):
        """Samples held: events are also raised by the agent itself, as for a device that it hears of."""
        outbox = self.get("/api/v1/outbox")
        return outbox["held_records"] - outbox["lanes"]["event"]["held_records"]

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            check(self.process.wait(timeout=10), 0, "the agent's exit code")
        self.log.close()


def documented(agent):
    """The script of the documentation, word for word but for the address."""
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.S | re.M)
    check(len(blocks), 1, "python blocks in edge.md")
    check(blocks[0].count("127.0.0.1:9099"), 1, "addresses in the script")
    script = blocks[0].replace("127.0.0.1:9099", agent.address)
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if said.returncode:
        raise Failure(f"the documented script: {said.stderr.strip()[-600:]}")
    check(said.stdout.splitlines()[-1], "10 batches are on disk, 10 records", "the documented script")
    check(agent.samples(), 10, "samples after the documented script")


def reflected(agent):
    """Everything a tool needs comes from the agent itself."""
    channel = grpc.insecure_channel(agent.address)
    database = ProtoReflectionDescriptorDatabase(channel)
    missing = (SERVICES | {"grpc.health.v1.Health"}) - set(database.get_services())
    check(missing, set(), "services that reflection does not tell")
    pool = descriptor_pool.DescriptorPool(database)

    def call(service, method, /, **fields):
        described = pool.FindServiceByName(service).FindMethodByName(method)
        request, reply = map(message_factory.GetMessageClass, (described.input_type, described.output_type))
        stub = channel.unary_unary(f"/{service}/{method}", request.SerializeToString, reply.FromString)
        return stub(request(**fields), timeout=10)

    sample = {"metric": "t", "value": 1.5}
    for repeated in (0, 1):
        told = call("fleet.edge.v1.Telemetry", "Submit", device="d", sample=sample, id="reflected")
        check((told.accepted, told.repeated), (1, repeated), "a sample")
    event = {"kind": "door", "severity": "SEVERITY_WARNING", "message": "open", "data_json": '{"n":[1,null]}', "id": "7"}
    check(call("fleet.edge.v1.Events", "Submit", events=[event]).accepted, 1, "an event")
    check(call("grpc.health.v1.Health", "Check", service="fleet.edge.v1.Telemetry").status, 1, "health")
    check(call("fleet.edge.v1.Status", "Get").node_id, "interop", "the node")
    check(call("fleet.edge.v1.Ledger", "Get").balanced, True, "the ledger")
    try:
        call("fleet.edge.v1.Telemetry", "SubmitBatch", samples=[sample, {"metric": "t"}])
        raise Failure("a sample without a value was taken")
    except grpc.RpcError as refused:
        check(refused.code(), grpc.StatusCode.INVALID_ARGUMENT, "the code of a mistake")
        check(refused.details().startswith("/samples/1/value: "), True, f"a pointer in {refused.details()!r}")
    check(agent.samples(), 11, "samples at the end")


def devices(agent):
    """A device declared, asleep and forgotten over gRPC is so over REST."""
    protos, services = grpc.protos_and_services("edge.proto")
    stub = services.DevicesStub(grpc.insecure_channel(agent.address))
    made = stub.Register(protos.RegisterDeviceRequest(id="shed", kind="bme280", heartbeat_s=60), timeout=10)
    check((made.kind, made.registered), ("bme280", "explicit"), "a device")
    check(stub.Sleep(protos.SleepDeviceRequest(id="shed", for_s=600), timeout=10).state, "sleeping", "its state")
    check(agent.get("/api/v1/devices/shed")["state"], "sleeping", "its state over REST")
    stub.Remove(protos.RemoveDeviceRequest(id="shed"), timeout=10)
    try:
        stub.Get(protos.GetDeviceRequest(id="shed"), timeout=10)
        raise Failure("a device that is forgotten is found")
    except grpc.RpcError as refused:
        check(refused.code(), grpc.StatusCode.NOT_FOUND, "the code for a device that is forgotten")


def secured(agent, data):
    """With the agent's own certificate as the only one that is trusted, and with the system's, which do not know it."""
    protos, services = grpc.protos_and_services("edge.proto")
    certificate = (data / "api-certificate.pem").read_bytes()
    name = [("grpc.ssl_target_name_override", "fleet-agent")]
    channel = grpc.secure_channel(agent.address, grpc.ssl_channel_credentials(certificate), name)
    status = services.StatusStub(channel).Get(protos.GetStatusRequest(), timeout=10)
    check(status.node_id, "interop", "the node over TLS")
    batch = protos.TelemetryBatch(samples=[protos.Sample(metric="t", value=1)], id="secured")
    told = list(services.TelemetryStub(channel).SubmitStream(iter([batch, batch]), timeout=10))
    check((told[-1].batches, told[-1].repeated), (2, 1), "a stream over TLS")
    context = ssl.create_default_context(cadata=certificate.decode())
    with urllib.request.urlopen(f"https://{agent.address}/api/v1/status", timeout=10, context=context) as answer:
        check(json.load(answer)["node_id"], "interop", "the node over HTTPS")
    stranger = grpc.secure_channel(agent.address, grpc.ssl_channel_credentials(), name)
    try:
        services.StatusStub(stranger).Get(protos.GetStatusRequest(), timeout=10)
        raise Failure("a certificate that nobody trusts is taken")
    except grpc.RpcError as refused:
        check(refused.code(), grpc.StatusCode.UNAVAILABLE, "the code without trust")
    check(agent.get("/api/v1/status")["node_id"], "interop", "the node in plain text from its own machine")


def schemathesis(agent, out):
    """Requests made from the document: no server error, and nothing that the document does not say."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [pathlib.Path(sys.executable).with_name("schemathesis"), "run", f"http://{agent.address}/openapi.json"]
    command += ["--url", f"http://{agent.address}", "--checks", checks, "--phases", "examples,fuzzing"]
    command += ["--max-examples", "15", "--seed", "1", "--workers", "1", "--request-timeout", "10", "--no-color"]
    # Waits for a command, as it says.
    command += ["--exclude-path", "/api/v1/local/take"]
    said = subprocess.run(list(map(str, command)), cwd=out, capture_output=True, text=True, timeout=280)
    if said.returncode:
        raise Failure(f"schemathesis:\n{(said.stdout + said.stderr)[-6000:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agent", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--schemathesis", action="store_true", help="run schemathesis instead")
    options = parser.parse_args()
    name = "schemathesis" if options.schemathesis else "edge"
    with tempfile.TemporaryDirectory() as folder:
        agent = Agent(pathlib.Path(options.agent).resolve(), pathlib.Path(folder) / "data", options.out / f"{name}-agent.log")
        try:
            if options.schemathesis:
                schemathesis(agent, folder)
            else:
                documented(agent)
                reflected(agent)
                devices(agent)
            agent.stop()
            if not options.schemathesis:
                data = pathlib.Path(folder) / "tls"
                log = options.out / f"{name}-tls-agent.log"
                agent = Agent(pathlib.Path(options.agent).resolve(), data, log, FLEET_API_TLS="true")
                secured(agent, data)
                agent.stop()
        except Failure as failure:
            print(failure)
            return 1
        finally:
            if agent.process.poll() is None:
                agent.process.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
