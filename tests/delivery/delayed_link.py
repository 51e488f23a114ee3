"""A network that is slow in one direction: what a server sends arrives later, what it gets does not.

When the server ends, what was on its way is lost, as with its machine.
"""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator

from infra.servers import HOST


@contextlib.contextmanager
def delayed_link(port: int, delay_s: float) -> Iterator[int]:
    """The port from which connections go on to `port`, whose answers take `delay_s` longer."""
    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=_accept, args=(listener, port, delay_s), daemon=True).start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket, port: int, delay_s: float) -> None:
    with contextlib.suppress(OSError):  # the listener was closed
        while True:
            client, _ = listener.accept()
            try:
                server = socket.create_connection((HOST, port))
            except OSError:  # as the client would have found it
                client.close()
                continue
            threading.Thread(target=_forward, args=(client, server), daemon=True).start()
            threading.Thread(target=_return, args=(server, client, delay_s), daemon=True).start()


def _forward(client: socket.socket, server: socket.socket) -> None:
    with client, server, contextlib.suppress(OSError):
        while data := client.recv(2**16):
            server.sendall(data)


def _return(server: socket.socket, client: socket.socket, delay_s: float) -> None:
    on_its_way: queue.Queue[tuple[float, bytes]] = queue.Queue()
    ended = threading.Event()
    threading.Thread(target=_receive, args=(server, on_its_way, ended, delay_s), daemon=True).start()
    with client, contextlib.suppress(OSError):
        while True:
            due_s, data = on_its_way.get()
            if ended.wait(max(0.0, due_s - time.monotonic())):
                return
            client.sendall(data)


def _receive(
    server: socket.socket,
    on_its_way: "queue.Queue[tuple[float, bytes]]",
    ended: threading.Event,
    delay_s: float,
) -> None:
    with contextlib.suppress(OSError):  # it was killed
        while data := server.recv(2**16):
            on_its_way.put((time.monotonic() + delay_s, data))
    ended.set()
    on_its_way.put((0.0, b""))
