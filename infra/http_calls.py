"""The questions that tell whether a server with a page is ready."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

ANSWER_S = 5.0


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a GET is answered with 200."""
    answer = _asked(url, headers or {})
    return answer is not None and answer[0] == 200


def says(url: str) -> Any:
    """The JSON that a GET is answered with, whatever the status; None if it is not answered."""
    answer = _asked(url, {})
    return None if answer is None else json.loads(answer[1])


def _asked(url: str, headers: Mapping[str, str]) -> tuple[int, bytes] | None:
    """Status and body of the answer to a GET; None without one."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # nobody between us and loopback
    try:
        with direct.open(urllib.request.Request(url, headers=dict(headers)), timeout=ANSWER_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (OSError, http.client.HTTPException):
        return None
