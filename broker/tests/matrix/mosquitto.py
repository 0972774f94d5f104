#!/usr/bin/env python3
"""Runs the matrix against a real mosquitto and compares: who may do what, and how a refusal sounds.

Usage: mosquitto.py [--print]      needs `mosquitto` and `mosquitto_passwd` in PATH, and nothing else
Exits 1 when an answer is not the one of the table; --print writes the table with what mosquitto answered.
The broker is set up as an operator would for this fleet: passwords, pattern ACLs for nodes, topic ACLs for tools.
"""
import os, shutil, socket, struct, subprocess, sys, tempfile, time

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "matrix.csv")
ACL = """
pattern write fleet/v1/%u/up/#
pattern read fleet/v1/%u/down/#
user reader
topic read fleet/v1/+/up/telemetry
topic read fleet/v1/hub/#
user apps
topic read apps/#
topic read homeassistant/+/set
topic write apps/+/state
topic write homeassistant/#
user all
topic readwrite #
user watcher
topic readwrite #
topic readwrite $SYS/#
topic readwrite $share/#
topic readwrite $fleet/#
topic readwrite $anything
"""
USERS = ["edge-1", "nobody", "reader", "apps", "all", "watcher"]


def expand(topic):
    """A topic of the table as bytes."""
    topic = topic.replace("{empty}", "").replace("{tab}", "\t").replace("{nul}", "\0")
    if topic.startswith("{deep:"):
        return "/".join(["a"] * int(topic[6:-1])).encode()
    if "{long:" in topic:
        head, tail = topic.split("{long:")
        return (head + "l" * (int(tail.rstrip("}")) - len(head))).encode()
    return topic.encode().replace(b"{bad}", b"\xff")


def text(raw):
    return struct.pack(">H", len(raw)) + raw


def packet(first, body):
    out, n = bytes([first]), len(body)
    while True:
        n, byte = n >> 7, n & 0x7F
        out += bytes([byte | (0x80 if n else 0)])
        if not n:
            return out + body


class Client:
    def __init__(self, port, version):
        self.version, self.socket = version, socket.create_connection(("127.0.0.1", port), 5)

    def connect(self, user, client_id, password="tool", will=None, clean=True):
        v5 = self.version == 5
        flags = 0xC0 | (2 if clean else 0)
        if will:
            flags |= 4 | will[1] << 3 | (0x20 if will[2] else 0)
        body = b"\0\4MQTT" + bytes([self.version, flags]) + b"\0\x3c"
        if v5:
            body += b"\0" if clean else b"\5\x11\0\0\x0e\x10"
        body += text(client_id)
        if will:
            body += (b"\0" if v5 else b"") + text(will[0]) + text(b"will")
        self.send(packet(0x10, body + text(user.encode()) + text(password.encode())))
        return self.read()

    def send(self, raw):
        try:
            self.socket.sendall(raw)
        except OSError:
            pass

    def read(self):
        """The next packet, or None at the end of the connection."""
        try:
            first = self.socket.recv(1)
            if not first:
                return None
            n = shift = 0
            while True:
                byte = self.socket.recv(1)[0]
                n, shift = n | (byte & 0x7F) << shift, shift + 7
                if byte < 0x80:
                    break
            body = b""
            while len(body) < n:
                body += self.socket.recv(n - len(body))
            return first[0], body
        except (OSError, IndexError):
            return None


class Watcher:
    """Hears all that is published, and tells whether something came through."""

    def __init__(self, port):
        self.port, self.count = port, 0
        self.client = Client(port, 4)
        assert self.client.connect("watcher", b"watcher")[1] == b"\0\0"
        for filter in [b"#", b"$fleet/#", b"$anything"]:
            self.client.send(packet(0x82, b"\0\1" + text(filter) + b"\0"))
            assert self.client.read()[0] == 0x90

    def reached(self, topic):
        """Whether `topic` was heard before a marker that is said now."""
        self.count += 1
        marker = b"marker/%d" % self.count
        speaker = Client(self.port, 4)
        speaker.connect("watcher", b"speaker")
        speaker.send(packet(0x32, text(marker) + b"\0\1" + b"m"))
        speaker.read()
        speaker.send(b"\xe0\0")
        found = False
        while True:
            first, body = self.client.read()
            heard = body[2:2 + struct.unpack(">H", body[:2])[0]]
            if heard == marker:
                return found
            found |= heard == topic and not first & 1


def ended(answer, version):
    """How a session ended, in the words of the table."""
    if answer is None:
        return "close"
    first, body = answer
    if first == 0xE0:
        return "disconnect:%02x" % (body[0] if body else 0)
    return None


def publish(client, watcher, action, topic):
    v5, qos = client.version == 5, int(action[-1])
    first = 0x30 | qos << 1 | (1 if action.startswith("retain") else 0)
    body = text(topic) + (b"\0\7" if qos else b"") + (b"\0" if v5 else b"") + b"x"
    client.send(packet(first, body))
    if qos == 0:
        client.send(b"\xc0\0")
    answer = client.read()
    if ended(answer, client.version):
        return ended(answer, client.version)
    kind, body = answer
    code = body[2] if len(body) > 2 else 0
    if kind == 0x50 and code < 0x80:
        client.send(packet(0x62, b"\0\7"))
        client.read()
    if kind in (0x40, 0x50) and code >= 0x80:
        return "puback:%02x" % code
    if watcher.reached(topic):
        return "ok"
    return "drop" if qos == 0 else "lost"


def subscribe(client, action, topic):
    v5 = client.version == 5
    client.send(packet(0x82, b"\0\7" + (b"\0" if v5 else b"") + text(topic) + bytes([int(action[-1])])))
    while True:
        answer = client.read()
        if ended(answer, client.version):
            return ended(answer, client.version)
        if answer[0] == 0x90:
            code = answer[1][-1]
            return ("granted:%d" if code < 0x80 else "refused:%02x") % code


def answer_of(port, watcher, who, action, topic, version):
    client, topic = Client(port, version), expand(topic)
    user, password = ("edge-1", "wrong") if who == "stranger" else (who, "tool")
    will = None
    if action.startswith("will"):
        will = (topic, int(action[-1]), action.startswith("willretain"))
    client_id = topic if action in ("connect", "remembered") else who.encode()
    connack = client.connect(user, client_id, password, will, action != "remembered")
    if connack is None:
        return "close"
    code = connack[1][1]
    if code:
        return "connack:%02x" % code
    if action in ("connect", "remembered"):
        return "ok"
    if will:
        client.socket.close()
        for _ in range(20):
            if watcher.reached(topic):
                return "ok"
            time.sleep(0.02)
        return "lost"
    if action.startswith("subscribe"):
        return subscribe(client, action, topic)
    return publish(client, watcher, action, topic)


def main():
    folder = tempfile.mkdtemp()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write = lambda name, what: open(os.path.join(folder, name), "w").write(what)
    write("acl", ACL)
    write("passwords", "")
    os.chmod(folder, 0o755)
    for user in USERS:
        subprocess.run(["mosquitto_passwd", "-b", os.path.join(folder, "passwords"), user, "tool"], check=True)
    for name in ("acl", "passwords"):
        os.chmod(os.path.join(folder, name), 0o644)
    write("conf", f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {folder}/passwords\n"
                  f"acl_file {folder}/acl\nallow_zero_length_clientid true\n")
    broker = subprocess.Popen(["mosquitto", "-c", os.path.join(folder, "conf")],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                watcher = Watcher(port)
                break
            except OSError:
                time.sleep(0.05)
        wrong = cases = 0
        for line in open(TABLE, encoding="utf-8"):
            line = line.rstrip("\n")
            if line.startswith("# ") or not line:
                print(line) if "--print" in sys.argv else None
                continue
            who, action, topic, v4, v5, mosquitto4, mosquitto5, why = line.split(",", 7)
            found = [answer_of(port, watcher, who, action, topic, version) for version in (4, 5)]
            cases += 2
            if "--print" in sys.argv:
                told = ["" if f == ours else f for f, ours in zip(found, (v4, v5))]
                print(",".join([who, action, topic, v4, v5, *told, why if any(told) else ""]))
                continue
            for version, expected, found in zip((4, 5), (mosquitto4 or v4, mosquitto5 or v5), found):
                if expected != found:
                    wrong += 1
                    print(f"{who} {action} {topic} in {version}: {found}, the table says {expected}")
        if "--print" not in sys.argv:
            print(f"{cases} cases, {wrong} not as the table says")
        return 1 if wrong else 0
    finally:
        broker.terminate()
        broker.wait()
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
