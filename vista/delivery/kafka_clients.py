"""Kafka's clients: whom they trust, who they are, and what their errors mean.

`kafka://HOST:PORT[,HOST:PORT]/TOPIC` is plain; `kafkas://USER@HOST:PORT/TOPIC?password_file=PATH[&ca=PATH]`
is TLS with a password: SCRAM-SHA-256 if the broker has it, else PLAIN.
"""

import logging
import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka import errors

from vista.delivery.address import Address, shown
from vista.errors import BackendError, InputError

CONNECT_S = 4.0
"""For all hosts of the URL together, each its share: a wrong setting is found out soon."""
ANSWER_S = 15.0
"""Longer than a new leader takes to be elected."""

_OPTIONS = {"kafka": frozenset[str](), "kafkas": frozenset({"password_file", "ca"})}
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,200}")
_SCRAM = "SCRAM-SHA-256"
_SASL_HANDSHAKE = 17

_LISTENER = "check host and port, and that the scheme fits the listener: kafka:// plain, kafkas:// TLS"
_PASSWORD = "the user or what password_file holds is wrong"
_RIGHTS = (
    "the user needs Describe, DescribeConfigs, Read and Write on the topic, Create to make it, and Read on "
    "its groups TOPIC.REGION"
)
_AUTHORITY = "ca must name the authority that signed the broker's certificate"
_REMEDIES: tuple[tuple[type[errors.KafkaError], str], ...] = (
    (errors.SaslAuthenticationFailedError, _PASSWORD),
    (errors.AuthorizationError, _RIGHTS),
    (
        errors.UnknownTopicOrPartitionError,
        "the topic was deleted: `python -m vista repair --reason ...` makes it anew",
    ),
    (errors.LogTruncationError, "the brokers lost acknowledged records: deliver the live epochs again"),
    (errors.MessageSizeTooLargeError, "a record is longer than the topic's max.message.bytes: raise that"),
    (errors.NotEnoughReplicasError, "too few brokers are in sync: bring the others back"),
    (errors.InvalidReplicationFactorError, "too few brokers run: bring the others back"),
    (errors.PolicyViolationError, "the brokers' policy forbids it: ask who runs them"),
)
_SILENT = "the brokers do not answer: see that they run, then run the command again"
_connecting: list[list[str]] = []
"""Of every client that is being made now, how its connections failed."""
_Client = TypeVar("_Client")


def parse(url: str) -> Address:
    """Raises `InputError` for a URL that names no topic, or a user in the plain, or none with TLS."""
    address = Address.parse(url, options=_OPTIONS[url.partition(":")[0]])
    if not _TOPIC.fullmatch(address.name):
        raise InputError(
            f"URL {shown(url)}: name a topic of letters, digits, '.', '_' and '-' behind the hosts"
        )
    secret = address.scheme == "kafkas"
    if secret != bool(address.user) or secret != ("password_file" in address.options):
        raise InputError(
            f"URL {shown(url)}: kafkas:// takes a user and ?password_file=PATH, kafka:// neither"
        )
    return address


def access_to(address: Address) -> dict[str, Any]:
    """What every client of this address is given. Raises `InputError` if a file cannot be read."""
    access: dict[str, Any] = {
        "reconnect_backoff_max_ms": 1_000  # 30 s would keep a broker that came back waiting
    }
    if address.scheme == "kafka":
        return access
    return access | {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": address.options.get("ca"),
        "sasl_plain_username": address.user,
        "sasl_plain_password": address.password(),
    }


def connect(client: Callable[..., _Client], address: Address, **settings: Any) -> _Client:
    """Make one of Kafka's clients, which learns of all brokers from the first host that answers.

    Raises `BackendError`: which setting is wrong, soon.
    """
    hosts = address.hosts
    if address.scheme == "kafkas":
        host, settings["sasl_mechanism"] = _answering(address)
        hosts = (host,)
    share_ms = int(CONNECT_S * 1_000 / len(hosts))
    with _failures() as failures:
        for name, port in hosts:  # of several, kafka-python may spend all the time on one that is silent
            server = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
            try:
                return client(bootstrap_servers=server, bootstrap_timeout_ms=share_ms, **settings)
            except errors.KafkaTimeoutError as error:
                failures.append(str(error))
            except errors.KafkaError as error:
                raise _mapped(address.url, error) from error
    # kafka-python says no more of a wrong password; host, port and TLS have been tried before
    remedy = _PASSWORD if address.scheme == "kafkas" else _LISTENER
    raise BackendError(f"{address.url}: no broker can be used ({failures[0]}); {remedy}")


@contextmanager
def mapped(url: str) -> Iterator[None]:
    """Kafka's errors become `BackendError`."""
    try:
        yield
    except errors.KafkaError as error:
        raise _mapped(url, error) from error


def _mapped(url: str, error: errors.KafkaError) -> BackendError:
    remedy = next((remedy for kind, remedy in _REMEDIES if isinstance(error, kind)), _SILENT)
    return BackendError(f"{url}: {str(error) or type(error).__name__}; {remedy}")


@contextmanager
def _failures() -> Iterator[list[str]]:
    """The connections that fail meanwhile: a client does not raise why it gave up, it only logs, some lines a
    second. They are not shown: the error says it."""
    failures: list[str] = []
    # below, the package tells of every connection, and at last of passwords
    logging.getLogger("kafka").setLevel(logging.WARNING)
    for name in ("kafka.net.manager", "kafka.net.connection"):
        logging.getLogger(name).addFilter(_is_shown)
    _connecting.append(failures)
    try:
        yield failures
    finally:
        _connecting[:] = [one for one in _connecting if one is not failures]


def _is_shown(line: logging.LogRecord) -> bool:
    if str(line.msg).startswith("Bootstrap connection"):
        for failures in _connecting:
            failures.append(line.getMessage())
    return not _connecting


def _answering(address: Address) -> tuple[tuple[str, int], str]:
    """The first host that answers, and how passwords are checked. kafka-python would wait for ever for a host
    that is silent in the middle of a TLS handshake."""
    trusted = _trusted(address)
    failures: list[str] = []
    for host, port in address.hosts:
        try:
            with (
                socket.create_connection((host, port), CONNECT_S / len(address.hosts)) as plain,
                trusted.wrap_socket(plain, server_hostname=host) as connection,
            ):
                return (host, port), _SCRAM if _has_scram(connection) else "PLAIN"
        except ssl.SSLCertVerificationError as error:
            failures.append(f"{host}:{port} cannot be trusted ({error.verify_message}); {_AUTHORITY}")
        except OSError as error:
            failures.append(f"{host}:{port} cannot be used ({error}); {_LISTENER}")
    raise BackendError(f"{address.url}: {failures[0]}")


def _trusted(address: Address) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=address.options.get("ca"))
    except OSError as error:
        raise InputError(f"URL {address.url}: ca cannot be read: {error}") from error


def _has_scram(connection: ssl.SSLSocket) -> bool:
    """Ask in Kafka's protocol, request 17, version 1."""
    mechanism = struct.pack(">h", len(_SCRAM)) + _SCRAM.encode()
    request = struct.pack(">hhih", _SASL_HANDSHAKE, 1, 0, -1) + mechanism
    connection.sendall(struct.pack(">i", len(request)) + request)
    with connection.makefile("rb") as stream:
        answer = stream.read(int.from_bytes(stream.read(4)))
    if not answer:
        raise OSError("the listener knows no passwords")
    return mechanism in answer
