"""The URL of a server back end, taken apart.

A URL never holds a secret: `?password_file=` names the file that does, `?ca=` the authority to trust.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from vista.errors import InputError


@dataclass(frozen=True, slots=True)
class Address:
    """`scheme://user@host:port,host:port/name?option=value`, as one back end may be written."""

    url: str
    scheme: str
    hosts: tuple[tuple[str, int], ...]
    name: str = ""
    user: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str, *, options: frozenset[str]) -> Self:
        """Raises `InputError`: a password in the URL, a host without a port, an option not in `options`."""
        parts = urlsplit(url)
        user, at, places = parts.netloc.rpartition("@")
        hosts = tuple(filter(None, map(_host, places.split(","))))
        wrong = [place for place in places.split(",") if _host(place) is None]
        # one with a / ? or # in it ends what is taken for the host
        if ":" in user or (wrong and not at and "@" in url):
            raise InputError(
                f"URL {shown(url)}: it holds a password; write it into a file and add ?password_file=PATH"
            )
        if wrong:
            raise InputError(f"URL {shown(url)}: {wrong[0]!r} is no host:port")
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(given.keys() - options):
            known = ", ".join(sorted(options)) or "none"
            raise InputError(f"URL {shown(url)}: option {unknown[0]!r} is unknown; known are {known}")
        return cls(url, parts.scheme, hosts, unquote(parts.path.strip("/")), unquote(user), given)

    def password(self) -> str | None:
        """What the password file holds. Raises `InputError` if it cannot be read."""
        if "password_file" not in self.options:
            return None
        path = Path(self.options["password_file"])
        try:
            return path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"URL {self.url}: password_file cannot be read: {error}") from error


def shown(url: str) -> str:
    """A URL that cannot be used, for a message: without what may be a password, and without its options.

    >>> shown("redis://vista:hunter/2@host:6379?password=hunter2"), shown("redis://vista@a:1,b:2/x?ca=y")
    ('redis://vista:...@host:6379', 'redis://vista@a:1,b:2/x')
    """
    scheme, separator, rest = url.partition("://")
    name, _, others = rest.partition(":")
    if "@" not in name and "@" in others:
        rest = f"{name}:...@{others.rpartition('@')[2]}"
    return f"{scheme}{separator}{rest.partition('?')[0]}"


def _host(place: str) -> tuple[str, int] | None:
    host, colon, port = place.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        return None
    return host.strip("[]"), int(port)
