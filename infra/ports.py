"""Free TCP ports of this machine."""

import os
import random
import socket
from collections.abc import Set

from vista.errors import BackendError

FIRST_PORT, LAST_PORT = 20_000, 32_000  # below the range that Linux gives to outgoing connections


def free_block(size: int, avoid: Set[int] = frozenset()) -> int:
    """The first of `size` neighbouring ports that are free and not to `avoid`. Raises `BackendError` if there
    are none."""
    generator = random.Random(os.urandom(8))
    for _ in range(100):
        first = generator.randrange(FIRST_PORT, LAST_PORT - size)
        if all(port not in avoid and is_free(port) for port in range(first, first + size)):
            return first
    raise BackendError(
        f"no {size} free neighbouring ports between {FIRST_PORT} and {LAST_PORT}: stop a server"
    )


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
