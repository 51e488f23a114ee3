"""A network between Airflow and Ray that can be cut: TCP, byte for byte, on a port of its own."""

import asyncio
import contextlib
from dataclasses import dataclass, field


@dataclass
class Network:
    """`url` leads to the head behind it while the network is whole; cut, it refuses and drops connections."""

    head_port: int
    port: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beyond, to_head = await asyncio.open_connection("127.0.0.1", self.head_port)
        self._open |= {writer, to_head}
        await asyncio.gather(_carry(reader, to_head), _carry(beyond, writer))
        self._open -= {writer, to_head}


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):  # that is what a cut is
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
