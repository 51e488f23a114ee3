"""A link to a server that is lost amid a request or after it, and whose client hears nothing."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

from infra.servers import HOST

READ_BYTES = 65_536


@dataclass
class LossyLink:
    """Listens on `port`. The first answer to a request that holds `marker` is lost, and the link with it.

    With `arriving` every such request is lost, but for that many bytes.
    """

    server_port: int
    marker: bytes
    arriving: int | None = None
    listener: socket.socket = field(default_factory=lambda: socket.create_server((HOST, 0)))
    lost: int = 0

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def accept(self) -> None:
        """Serve each client by a thread of its own until the listener is shut down."""
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server, losing = socket.create_connection((HOST, self.server_port)), threading.Event()
        with closing(client), closing(server), suppress(OSError):
            threading.Thread(target=self._answer, args=(server, client, losing), daemon=True).start()
            while request := client.recv(READ_BYTES):
                if self.marker in request and self.arriving is not None:
                    self.lost += 1
                    server.sendall(request[: self.arriving])
                    return
                if self.marker in request and not self.lost:
                    self.lost += 1
                    losing.set()
                server.sendall(request)

    def _answer(self, server: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        with suppress(OSError):
            while answer := server.recv(READ_BYTES):
                if losing.is_set():
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)


@contextmanager
def lossy_link(server_port: int, marker: bytes, arriving: int | None = None) -> Iterator[LossyLink]:
    link = LossyLink(server_port, marker, arriving)
    with closing(link.listener):
        thread = threading.Thread(target=link.accept, daemon=True)
        thread.start()
        yield link
        link.listener.shutdown(socket.SHUT_RDWR)
        thread.join()
