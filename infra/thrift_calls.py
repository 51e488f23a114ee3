"""The two questions that tell whether Hive is ready, in Thrift's binary protocol.

Its specification: https://github.com/apache/thrift/blob/master/doc/specs/thrift-binary-protocol.md
"""

import socket
import struct
from contextlib import suppress

from infra.servers import HOST

ANSWER_S = 30.0
THRIFT_CALL, THRIFT_REPLY = 0x80010001, 0x80010002
SASL_START, SASL_OK, SASL_COMPLETE = 1, 2, 5
OPEN_SESSION = bytes.fromhex("0c0001 080001 00000009 00 00")
"""Arguments: field 1, a struct with field 1, the client's version 10 of the protocol."""

SUCCESS_STATUS = bytes.fromhex("0c0001 080001 00000000")
"""Field 1 of the answer, a struct with field 1: 0."""


def lists_databases(port: int) -> bool:
    """Ask for `get_all_databases`, which reads PostgreSQL, in Thrift's binary protocol."""
    return _succeeded(_answer(port, _call("get_all_databases", b"\0")), "get_all_databases")


def opens_session(port: int, password: str) -> bool:
    """Log in with SASL PLAIN and ask for `OpenSession` in Thrift's binary protocol."""
    plain = b"\0vista\0" + password.encode()
    login = _sasl(SASL_START, b"PLAIN") + _sasl(SASL_OK, plain)
    request = _call("OpenSession", OPEN_SESSION)
    answer = _answer(port, login + struct.pack(">i", len(request)) + request)
    welcome = _sasl(SASL_COMPLETE, b"")
    session = answer[len(welcome) + 4 :]
    return answer.startswith(welcome) and _succeeded(session, "OpenSession", SUCCESS_STATUS)


def _answer(port: int, request: bytes) -> bytes:
    """Everything that is answered; nothing if the server cannot be reached or breaks off."""
    with suppress(OSError), socket.create_connection((HOST, port), timeout=ANSWER_S) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            return stream.read()
    return b""


def _sasl(status: int, content: bytes) -> bytes:
    return struct.pack(">bi", status, len(content)) + content


def _call(name: str, arguments: bytes) -> bytes:
    return struct.pack(">Ii", THRIFT_CALL, len(name)) + name.encode() + struct.pack(">i", 0) + arguments


def _succeeded(answer: bytes, name: str, result: bytes = b"") -> bool:
    """Whether a call was answered with its result, which is field 0, and not with an exception."""
    header = struct.pack(">Ii", THRIFT_REPLY, len(name)) + name.encode() + struct.pack(">i", 0)
    body = answer.removeprefix(header)
    return body != answer and body[:1] != b"\0" and body[1:3] == b"\0\0" and body[3:].startswith(result)
