"""Calls to a Hive metastore 4 over thrift: its connections, and its errors mapped once.

A call over a connection that broke is made once more over a new one, so what the metastore may have done
already is asked for twice. That is why every write is conditional (it adds what must not be there yet, or
swaps what must be there), and why whoever is refused reads back whether the first try had been done.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pymetastore.hive_metastore.ThriftHiveMetastore import Client
from pymetastore.hive_metastore.ttypes import EnvironmentContext
from thrift.protocol.TBinaryProtocol import TBinaryProtocolAccelerated
from thrift.protocol.TProtocol import TProtocolException
from thrift.Thrift import TApplicationException, TException
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransport, TTransportException

from vista.delivery.address import Address
from vista.errors import BackendError

CONNECT_S, FIRST_ANSWER_S = 2.0, 7.0
"""Together under the 10 s within which a wrong host or port must be named."""

SILENT_S, PROBE_ANSWER_S = 2.5, 4.5
"""After so long without an answer others are asked for: together, with the connection, under 10 s too."""
ANSWER_S = 30.0
"""Of a metastore that answers others meanwhile: one call may look at many files."""
RESTART_S = 8.0
"""How long a metastore that has answered before may be away: it restarts in 4 to 7 s."""

_BROKEN = (TTransportException, TProtocolException, OSError)
Answer = TypeVar("Answer")


class Metastore:
    """Every process and thread has its own connection, opened when first used."""

    def __init__(self, address: Address) -> None:
        """`address` has one host."""
        self.url = address.url
        ((self._host, self._port),) = address.hosts
        self._lock = threading.Lock()
        self._connections: dict[tuple[int, int], tuple[Client, TBufferedTransport]] = {}
        logging.getLogger("thrift").setLevel(logging.CRITICAL)  # it prints what we raise

    def call(self, request: Callable[[Client], Answer], *answers: type[Exception]) -> Answer:
        """What the request returns. `answers` are exceptions of the metastore that the caller handles.

        Raises `BackendError` for all others.
        """
        try:
            return self._request(request)
        except answers:
            raise
        except TApplicationException as error:
            raise BackendError(f"{self.url}: {error}: the server must be a Hive metastore 4") from error
        except TProtocolException as error:
            raise BackendError(
                f"{self.url}: the answer is not thrift ({error}): host and port must be a metastore's"
            ) from error
        except (TTransportException, OSError) as error:
            raise BackendError(
                f"{self.url}: the metastore cannot be reached or does not answer ({error}): check host and "
                "port, and that it runs"
            ) from error
        except TException as error:
            said = getattr(error, "message", None) or error
            raise BackendError(
                f"{self.url}: the metastore refused ({said}): the reason is in its log; check its database, "
                "and that it may write to its warehouse"
            ) from error

    def close(self) -> None:
        """Close this process' connections; they open again when used."""
        with self._lock:
            for key in [key for key in self._connections if key[0] == os.getpid()]:
                self._connections.pop(key)[1].close()

    def _request(self, request: Callable[[Client], Answer], patience_s: float = 0.0) -> Answer:
        key = (os.getpid(), threading.get_ident())
        with self._lock:
            connection = self._connections.get(key)
        client = connection[0] if connection else self._connect(key, patience_s)
        try:
            return request(client)
        except _BROKEN as error:
            with self._lock:
                self._connections.pop(key)[1].close()
            if connection is None or isinstance(error, SilentError):
                raise
        return self._request(request, RESTART_S)

    def _connect(self, key: tuple[int, int], patience_s: float) -> Client:
        end_s = time.monotonic() + patience_s
        while True:
            try:
                client, transport = _opened(self._host, self._port)
                break
            except _BROKEN:
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.1)
        with self._lock:
            self._connections[key] = (client, transport)
        return client


class SilentError(TTransportException):  # type: ignore[misc]  # thrift has no types
    """The metastore answers nobody: frozen, not restarted, so that it is not waited for."""


class _Socket(TSocket):  # type: ignore[misc]
    """Waits for an answer as long as the metastore answers others: one that is frozen in the middle of a call
    keeps its connections."""

    patient = False

    def read(self, size: int) -> bytes:
        started_s = time.monotonic()
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        while self.patient and not poll.poll(SILENT_S * 1_000):
            waited_s = time.monotonic() - started_s
            if waited_s > ANSWER_S or not _answers(self.host, self.port):
                raise SilentError(message=f"no answer for {time.monotonic() - started_s:.0f} s")
        data: bytes = super().read(size)
        return data


def _opened(host: str, port: int, answer_s: float = FIRST_ANSWER_S) -> tuple[Client, TBufferedTransport]:
    """A connection over which a metastore has answered."""
    socket = _Socket(host, port)
    socket.setTimeout(CONNECT_S * 1_000)
    transport = TBufferedTransport(socket)
    client = Client(TBinaryProtocolAccelerated(transport, strictRead=True))
    try:
        transport.open()
        socket.setTimeout(answer_s * 1_000)
        client.get_databases("default")
    except BaseException:
        transport.close()
        raise
    socket.setTimeout(ANSWER_S * 1_000)
    socket.patient = True
    return client, transport


def _answers(host: str, port: int) -> bool:
    try:
        _, transport = _opened(host, port, PROBE_ANSWER_S)
    except (*_BROKEN, TException):
        return False
    transport.close()
    return True


def context(**values: str) -> EnvironmentContext:
    """What goes with a change: the metastore must not read the files to count them."""
    return EnvironmentContext({"DO_NOT_UPDATE_STATS": "true", **values})
