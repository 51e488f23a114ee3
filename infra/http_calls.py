"""The questions that tell whether a server with a page is ready."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping

ANSWER_S = 5.0


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a GET is answered with 200."""
    return _status(url, headers or {}) == 200


def reached(url: str) -> bool:
    """Whether a GET is answered at all: a region may say that it is not ready."""
    return _status(url, {}) is not None


def _status(url: str, headers: Mapping[str, str]) -> int | None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # nobody between us and loopback
    try:
        with direct.open(urllib.request.Request(url, headers=dict(headers)), timeout=ANSWER_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None
