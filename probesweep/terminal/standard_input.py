"""Prompts from standard input, where a command's `-` asks for them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from activation_store.errors import InputError
from probesweep.errors import RequestError

DASH = "-"


def texts_of(given: Sequence[str]) -> list[str]:
    """Texts of a command line, each `-` replaced by the lines of standard input that are not empty.

    Raises
    ------
    RequestError
        Bytes that are no UTF-8 text, or no lines.
    """
    for text in given:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"--text {text!r} holds bytes that are no text in this terminal's encoding; give UTF-8, or a file with "
                "--dataset_path"
            ) from error
    if given.count(DASH) > 1:
        raise RequestError("--text - is there more than once, and standard input can be read once; give it once")
    lines = _lines() if DASH in given else []
    return [line for text in given for line in (lines if text == DASH else [text])]


@contextmanager
def dataset_file(path: Path) -> Generator[Path]:
    """A path, or for `-` a file of JSON Lines that holds standard input as long as it is used; errors say so."""
    if str(path) != DASH:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "standard-input.jsonl"
        copy.write_bytes(sys.stdin.buffer.read())
        try:
            yield copy
        except (InputError, RequestError) as error:
            raise type(error)(str(error).replace(str(copy), "standard input")) from error


def _lines() -> list[str]:
    content = sys.stdin.buffer.read()
    try:
        # A line ends where people and programs end it, not at every separator of Unicode.
        lines = [line.rstrip("\r") for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise RequestError(
            f"standard input is no UTF-8 text (byte {error.start} is 0x{content[error.start]:02x}); convert it, for "
            "example with iconv"
        ) from error
    if not any(line.strip() for line in lines):
        raise RequestError("--text -: standard input has no prompts; write one a line")
    return [line for line in lines if line.strip()]
