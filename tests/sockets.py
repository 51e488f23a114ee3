"""What processes listen on and are connected to, from /proc."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

LISTENS, CONNECTED = "0A", "01"
LOOPBACK = {
    "0100007F",
    "00000000000000000000000001000000",
    "0000000000000000FFFF00000100007F",
}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1, as /proc/net writes them."""


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Address and port of every TCP socket on which one of the processes listens."""
    return {_place(local) for state, local, _ in _tcp(pids) if state == LISTENS}


def connected(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Address and port of the other end of every TCP connection of one of the processes."""
    return {_place(remote) for state, _, remote in _tcp(pids) if state == CONNECTED}


def _tcp(pids: Iterable[int]) -> Iterator[tuple[str, str, str]]:
    """State, own end and other end of every TCP socket of the processes."""
    owned = set()
    for pid in pids:
        with suppress(FileNotFoundError):  # a process, or a descriptor, that has just gone
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    owned.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in owned:
                yield fields[3], fields[1], fields[2]


def _place(end: str) -> tuple[str, int]:
    address, _, port = end.rpartition(":")
    return address, int(port, 16)
