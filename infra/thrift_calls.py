"""The two questions that tell whether Hive is ready, in Thrift's binary protocol.

Its specification: https://github.com/apache/thrift/blob/master/doc/specs/thrift-binary-protocol.md
"""

import socket
import struct
from contextlib import suppress
from typing import BinaryIO

from infra.servers import HOST

ANSWER_S = 30.0
THRIFT_CALL, THRIFT_REPLY = 0x80010001, 0x80010002
SASL_START, SASL_OK, SASL_COMPLETE = 1, 2, 5
OPEN_SESSION = bytes.fromhex("0c0001 080001 00000009 00 00")
"""Arguments: field 1, a struct with field 1, the client's version 10 of the protocol."""

SUCCESS_STATUS = bytes.fromhex("0c0001 080001 00000000")
"""Field 1 of the answer, a struct with field 1: 0."""

SESSION_FIELD, SESSION_BYTES = bytes.fromhex("0c0003 0c0001 0b0001 00000010"), 51
"""Field 3 of the answer to OpenSession, and how long the struct in it is: two names of 16 bytes."""


def lists_databases(port: int) -> bool:
    """Ask for `get_all_databases`, which reads PostgreSQL, in Thrift's binary protocol."""
    return _succeeded(_answer(port, _call("get_all_databases", b"\0")), "get_all_databases")


def opens_session(port: int, password: str) -> bool:
    """Log in with SASL PLAIN, open a session, and close it: of one that is left open the log warns."""
    plain = b"\0vista\0" + password.encode()
    login = _sasl(SASL_START, b"PLAIN") + _sasl(SASL_OK, plain)
    welcome = _sasl(SASL_COMPLETE, b"")
    with (
        suppress(OSError, struct.error),
        socket.create_connection((HOST, port), timeout=ANSWER_S) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(login + _framed(_call("OpenSession", OPEN_SESSION)))
        if stream.read(len(welcome)) != welcome:
            return False
        opened = _frame(stream)
        if not _succeeded(opened, "OpenSession", SUCCESS_STATUS):
            return False
        connection.sendall(_framed(_call("CloseSession", _closing(opened))))
        return _succeeded(_frame(stream), "CloseSession", SUCCESS_STATUS)
    return False


def _answer(port: int, request: bytes) -> bytes:
    """Everything that is answered; nothing if the server cannot be reached or breaks off."""
    with suppress(OSError), socket.create_connection((HOST, port), timeout=ANSWER_S) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            return stream.read()
    return b""


def _closing(opened: bytes) -> bytes:
    """Arguments: field 1, a struct whose field 1 is the session of the answer to OpenSession."""
    start = opened.find(SESSION_FIELD) + 3
    return b"\x0c\0\1" + b"\x0c\0\1" + opened[start : start + SESSION_BYTES] + b"\0\0"


def _framed(request: bytes) -> bytes:
    return struct.pack(">i", len(request)) + request


def _frame(stream: BinaryIO) -> bytes:
    (length,) = struct.unpack(">i", stream.read(4))
    return stream.read(length)


def _sasl(status: int, content: bytes) -> bytes:
    return struct.pack(">bi", status, len(content)) + content


def _call(name: str, arguments: bytes) -> bytes:
    return struct.pack(">Ii", THRIFT_CALL, len(name)) + name.encode() + struct.pack(">i", 0) + arguments


def _succeeded(answer: bytes, name: str, result: bytes = b"") -> bool:
    """Whether a call was answered with its result, which is field 0, and not with an exception."""
    header = struct.pack(">Ii", THRIFT_REPLY, len(name)) + name.encode() + struct.pack(">i", 0)
    body = answer.removeprefix(header)
    return body != answer and body[:1] != b"\0" and body[1:3] == b"\0\0" and body[3:].startswith(result)
