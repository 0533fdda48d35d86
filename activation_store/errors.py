"""What can go wrong with a dataset, a model or a store: one tree, so that a caller can catch all of it or a part."""

# What mends most damage: the inputs are still there, and the model computes the same values again.
MEND = "restore it from a copy, or run the same extract again with --repair (imported: import it anew)"
RESTORE = "restore it from a copy: the rest of the store cannot be read without it"


class StoreError(Exception):
    """Base of every error of this package; the message is one line: what, where, how to mend it."""


class InputError(StoreError, ValueError):
    """The dataset, the model or an argument cannot be used as given."""


class PromptError(InputError):
    """The question of a row cannot be used, and those of other rows can; `reason` says why, without the row."""

    # As every error of the tree it can be made of its message alone, as whoever adds to the message does.
    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class FingerprintMismatchError(InputError):
    """The store was started from other inputs than the ones given now; `differences` names them."""

    differences: str = ""


class StoreLockedError(StoreError):
    """Another process is writing the store."""


class UnsupportedFormatError(InputError):
    """Not a probesweep store, or one of a format that this version does not read."""


class CorruptStoreError(StoreError):
    """Bytes of the store are not the bytes that were committed."""


class MissingShardError(InputError):
    """Rows were asked for that are not there: never committed, or their file is gone."""


class NonFiniteError(StoreError):
    """The model produced NaN or infinity."""


class ParityError(StoreError):
    """The model gives other values for prompts in a batch than one by one."""


class DeviceMemoryError(StoreError):
    """A single prompt does not fit in the device's memory."""
