"""What is already done: small JSON files with the inputs of each finished step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from activation_store.files.durable import make_folder, write_output
from probesweep.errors import RequestError

Memory = dict[str, dict[str, Any]]
_ADAPTER = TypeAdapter(Memory)


def recall(path: Path) -> Memory:
    """Read a file; empty if there is none.

    Raises
    ------
    RequestError
        It is not what `remember` writes.
    """
    try:
        return _ADAPTER.validate_python(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is damaged; remove it: finished work will be found again, or redone") from error


def remember(path: Path, done: Memory) -> None:
    """Write a file completely or not at all."""
    make_folder(path.parent)
    write_output(path, [json.dumps(done, indent=2, allow_nan=False).encode() + b"\n"])
