"""A wrong setting is a typed error in time that says what to mend."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vista.errors import BackendError, VistaError

LIMIT_S = 10.0
"""That a wrong setting may take until it is an error."""


@contextmanager
def refused(said: str, kind: type[VistaError] = BackendError) -> Iterator[None]:
    """The block ends in time with an error whose text `said`, a regular expression, is found in."""
    started_s = time.monotonic()
    with pytest.raises(kind, match=said):
        yield
    assert time.monotonic() - started_s < LIMIT_S
