"""The questions that tell whether a server with a page is ready."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

ANSWER_S = 5.0


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a GET is answered with 200."""
    answer = _asked(url, headers or {})
    return answer is not None and answer[0] == 200


def says(url: str) -> Any:
    """The JSON that a GET is answered with, whatever the status; None if it is not answered by JSON."""
    answer = _asked(url, {})
    with suppress(ValueError):
        return None if answer is None else json.loads(answer[1])
    return None


def _asked(url: str, headers: Mapping[str, str]) -> tuple[int, bytes] | None:
    """Status and body of the answer to a GET; None without one."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # nobody between us and loopback
    request = urllib.request.Request(url, headers=dict(headers))
    with suppress(OSError, http.client.HTTPException):  # an answer that is an error may break off, too
        try:
            with direct.open(request, timeout=ANSWER_S) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
    return None
