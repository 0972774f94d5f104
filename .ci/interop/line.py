"""A line between a node and its hub that can be cut: a TCP relay on the loopback."""

import socket
import threading


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Line:
    def __init__(self, to):
        self.to = to
        self.lock = threading.Lock()
        self.open = set()
        self.whole = True
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = self.door.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.door.accept()
            try:
                far = socket.create_connection(self.to, timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self.lock:
                if not self.whole:
                    near.close()
                    far.close()
                    continue
                self.open |= {near, far}
            for source, sink in [(near, far), (far, near)]:
                threading.Thread(target=self.carry, args=(source, sink), daemon=True).start()

    def carry(self, source, sink):
        try:
            while piece := source.recv(65536):
                sink.sendall(piece)
        except OSError:
            pass
        for end in (source, sink):
            self.end(end)

    def end(self, end):
        with self.lock:
            self.open.discard(end)
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        end.close()

    def cut(self):
        """Nothing passes from now on, and what was open is closed."""
        with self.lock:
            self.whole = False
            ends = list(self.open)
        for end in ends:
            self.end(end)

    def mend(self):
        with self.lock:
            self.whole = True
