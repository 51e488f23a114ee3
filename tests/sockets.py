"""What processes listen on, from /proc."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LISTENS = "0A"
LOOPBACK = {
    "0100007F",
    "00000000000000000000000001000000",
    "0000000000000000FFFF00000100007F",
}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1, as /proc/net writes them."""


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Address and port of every TCP socket on which one of the processes listens."""
    owned = set()
    for pid in pids:
        with suppress(FileNotFoundError):  # a process, or a descriptor, that has just gone
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    owned.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in owned:
                address, _, port = fields[1].rpartition(":")
                found.add((address, int(port, 16)))
    return found
