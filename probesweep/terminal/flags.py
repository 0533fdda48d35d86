"""What the libraries say in Python's words, in those of the command line and of experiment files.

Messages name an argument as ``name=value``, where the value is a literal, ``N`` or another word in capitals, or ``...``
for any. Nothing else is changed: not what is quoted, nor what the user wrote that looks the same, such as a path.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Callable, Collection, Generator, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

import click

# Arguments of Python that have another name here, and perhaps another unit: their values are not shown.
RENAMED = {
    "budget_bytes": "budget_gib",
    "kind": "track",
    "sample_weight": "weight_column",
    "train_labels": "label_column",
}
# The same for keys of an experiment file, which has one key for each dataset.
KEYS = {
    **RENAMED,
    "output_path": "output_dir",
    "spill_folder": "output_dir",
    "train_activations": "train_dataset",
    "test_activations": "test_dataset",
    "labels": "train_dataset",
    "test": "test_dataset",
    "test_labels": "test_dataset",
}
# Of single commands; in a file there is no such key.
_ONLY_FLAGS = {"repair": "probesweep extract --repair"}
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_LITERAL = (
    rf"\.\.\.|{_QUOTED}|\[(?:{_QUOTED}|[^][{{}}'\"])*\]|\((?:{_QUOTED}|[^()'\"])*\)|\{{(?:{_QUOTED}|[^][{{}}'\"])*\}}"
    r"|-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|-?inf|nan|True|False|None|[A-Z]+(?:@[A-Z]+)?"
)
_MENTION = rf"(?<![^\s(])(?P<name>[a-z_]+)=(?P<literal>{_LITERAL})(?![\w/\\=@-]|\.[\w/])"


def as_flags(message: str, ctx: click.Context) -> str:
    """Name flags instead of arguments.

    Parameters
    ----------
    message : str
    ctx : click.Context
        Of the command that runs. Flags of other commands are named as well: stores that lack something say how to
        extract them.
    """
    root = ctx.find_root().command
    others = root.commands.values() if isinstance(root, click.Group) else ()
    options = {
        str(option.name): option for command in (*others, ctx.command) for option in command.params if option.name
    }
    return _rewrite(message, options, RENAMED, ctx.params, lambda name, literal: _as_flag(options[name], literal))


def as_keys(message: str, keys: Collection[str], given: object) -> str:
    """Name keys of an experiment file instead of arguments.

    Parameters
    ----------
    message : str
    keys : collection of str
    given : any
        What the user wrote, in mappings and lists.
    """
    names = {*keys, *_ONLY_FLAGS}
    return _rewrite(message, names, KEYS, given, lambda name, literal: _ONLY_FLAGS.get(name) or _as_key(name, literal))


def _rewrite(
    message: str,
    names: Collection[str],
    renamed: Mapping[str, str],
    given: object,
    write: Callable[[str, str], str],
) -> str:
    # What the user wrote comes first, so that it is passed over as a whole.
    theirs = sorted({text for text in _texts(given) if "=" in text}, key=len, reverse=True)
    kept = "|".join([*map(re.escape, theirs), rf"(?<!\w)(?:{_QUOTED})(?!\w)"])

    def replace(found: re.Match[str]) -> str:
        name, literal = found["name"], found["literal"]
        if name in names:
            return write(name, literal)
        return write(renamed[name], "...") if renamed.get(name) in names else found[0]

    return re.sub(rf"(?:{kept})|{_MENTION}", replace, message)


def _texts(given: object) -> Generator[str]:
    """Everything that is text in what the user gave; of paths the parts, as messages may name a folder above."""
    if isinstance(given, str | Path):
        yield str(given)
        yield from Path(given).parts
    elif isinstance(given, Mapping):
        for key, value in given.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(given, list | tuple):
        for value in given:
            yield from _texts(value)


def _as_flag(option: click.Parameter, literal: str) -> str:
    if isinstance(option, click.Argument):
        return option.human_readable_name if literal == "..." else f"{option.human_readable_name} {_as_word(literal)}"
    flag = option.opts[0]
    if literal == "...":
        return flag
    assert isinstance(option, click.Option)
    if literal == "None" or option.is_flag:
        # Of --no_prefix_cache it is False; click says True of other flags in some versions only.
        given = option.is_flag and str(option.flag_value is not False)
        return flag if literal == given else f"leave out {flag}"
    value = _value(literal)
    if isinstance(value, list | tuple) and option.multiple:
        return " ".join(f"{flag} {_as_word(repr(each))}" for each in value)
    return f"{flag} {_as_word(literal)}"


def _as_word(literal: str) -> str:
    """A literal of Python as a shell takes it."""
    value = _value(literal)
    if isinstance(value, dict):
        return shlex.quote(json.dumps(value))
    if isinstance(value, list | tuple):
        return shlex.quote(",".join(map(str, value)))
    return shlex.quote(value) if isinstance(value, str) and value.isprintable() else literal


def _as_key(name: str, literal: str) -> str:
    return name if literal == "..." else f"{name} = {in_toml(_value(literal))}"


class _Word(str):
    """What is no literal of Python: a word in capitals, infinity."""


def _value(literal: str) -> Any:
    try:
        return ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        return _Word(literal)


def in_toml(value: Any) -> str:
    """A value in TOML syntax."""
    if isinstance(value, _Word):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {in_toml(each)}' for key, each in value.items())}}}"
    return repr(value)
