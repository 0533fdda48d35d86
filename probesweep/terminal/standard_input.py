"""Prompts from standard input, for a command's `-`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from probesweep.errors import RequestError
from probesweep_errors import ProbesweepError

DASH = "-"


def texts_of(given: Sequence[str]) -> list[str]:
    """Prompts from a command line, each `-` replaced by the non-empty lines of standard input.

    Raises
    ------
    RequestError
        Bytes that are not UTF-8, or no lines.
    """
    for text in given:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"--text {text!r} contains bytes that are not valid in this terminal's encoding; use UTF-8, or a file "
                "with --dataset_path"
            ) from error
    if given.count(DASH) > 1:
        raise RequestError("--text - is given more than once, but standard input can be read only once; give it once")
    lines = _lines() if DASH in given else []
    return [line for text in given for line in (lines if text == DASH else [text])]


@contextmanager
def dataset_file(path: Path | str) -> Generator[Path | str]:
    """A path, or an address; for `-` a temporary JSON Lines file with the standard input, which errors then name."""
    if str(path) != DASH:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "standard-input.jsonl"
        copy.write_bytes(sys.stdin.buffer.read())
        try:
            yield copy
        except ProbesweepError as error:
            raise type(error)(str(error).replace(str(copy), "standard input"), argument=error.argument) from error


def _lines() -> list[str]:
    content = sys.stdin.buffer.read()
    try:
        # Lines end at newlines only, not at every Unicode separator.
        lines = [line.rstrip("\r") for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise RequestError(
            f"standard input is not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}); convert it, for "
            "example with iconv"
        ) from error
    if not any(line.strip() for line in lines):
        raise RequestError("--text -: standard input has no prompts; write one per line")
    return [line for line in lines if line.strip()]
