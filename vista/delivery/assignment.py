"""The buckets that a worker has been assigned, whatever log shares them out."""

from collections.abc import Callable, Iterable


class Assignment:
    """Tells a worker, in order of buckets, what it loses and what it gets."""

    def __init__(
        self,
        on_assigned: Callable[[Iterable[int]], None],
        on_revoked: Callable[[Iterable[int]], None],
    ) -> None:
        self.buckets: frozenset[int] = frozenset()
        self._on_assigned, self._on_revoked = on_assigned, on_revoked

    def change(self, buckets: Iterable[int]) -> None:
        """These are the worker's buckets now."""
        before, self.buckets = self.buckets, frozenset(buckets)
        if revoked := before - self.buckets:
            self._on_revoked(sorted(revoked))
        if assigned := self.buckets - before:
            self._on_assigned(sorted(assigned))
