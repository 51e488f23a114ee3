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
    return _status(url, headers or {}) == 200


def says(url: str) -> Any:
    """The JSON that a GET is answered with, whatever the status; None if it is not answered."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=ANSWER_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)
    except (OSError, http.client.HTTPException):
        return None


def _status(url: str, headers: Mapping[str, str]) -> int | None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # nobody between us and loopback
    try:
        with direct.open(urllib.request.Request(url, headers=dict(headers)), timeout=ANSWER_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None
