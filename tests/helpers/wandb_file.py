"""Read what wandb keeps of an offline run: wandb itself has no reader for Python any more."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER_NBYTES = 7
_BLOCK_NBYTES = 32768
_FULL, _LAST = 1, 4


def read_records(path: Path) -> Iterator[Any]:
    """Protobuf records of a ``.wandb`` file, which is a LevelDB log: pieces of records in blocks."""
    data, at, whole = path.read_bytes(), _HEADER_NBYTES, b""
    while at + _HEADER_NBYTES <= len(data):
        rest = _BLOCK_NBYTES - at % _BLOCK_NBYTES
        if rest < _HEADER_NBYTES:
            at += rest
            continue
        n_bytes, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        at += _HEADER_NBYTES
        whole += data[at : at + n_bytes]
        at += n_bytes
        if kind in (_FULL, _LAST):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
