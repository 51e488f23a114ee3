"""Every error that the platform raises on purpose.

A message names the value, the limit and the remedy. `InputError` is the caller's to mend; every other
`VistaError` is an operator's. A back end's own exceptions are mapped to `BackendError` once, where the back
end is called.
"""


class VistaError(Exception):
    """Base of all errors raised on purpose. `exit_code` is that of a command which it ends."""

    exit_code = 1


class InputError(VistaError, ValueError):
    """The caller's input cannot be used: a flag, a file, a mapping, a row."""

    exit_code = 2


class RejectedDataError(InputError):
    """More bad rows than `max_reject_fraction` allows; the message holds the first five reasons."""


class DataValidationError(VistaError):
    """A day of events does not look like the days before it."""


class LeakError(VistaError):
    """A row would see something from after its cut."""


class SpaceMismatchError(VistaError):
    """Embeddings of one space were asked for, those of another were found."""


class RecordError(VistaError):
    """Bytes that are not a summary record: bad magic, version, codec, length or checksum."""


class CheckpointError(VistaError):
    """A model's files are missing, do not fit each other or were changed after they were written."""


class EpochError(VistaError):
    """An epoch is missing, incomplete, withdrawn or already published with other content."""


class ReleaseConflictError(VistaError):
    """Somebody else swapped the release first, or promotion is frozen."""


class RegionNotReadyError(VistaError):
    """A region does not hold the whole epoch."""


class BackendError(VistaError):
    """A store, log, catalog, tracking server or Ray head cannot be reached or refuses."""


class NoLogError(BackendError):
    """There is no log yet: nothing has been delivered, or the URL names another place."""


class StageError(VistaError):
    """A stage of a run failed; the message says which, why and what to do."""
