"""The experiment file: its keys, and the location of mistakes in it."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import date, time
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from activation_store import Extraction
from probesweep.errors import RequestError
from probesweep.labelling.labelling import Labelling
from probesweep.terminal.flags import in_toml
from probesweep.tracking.track import Kind
from probesweep.training import Training

# Sections of the file; their keys are the flags of extract and train, with the same meaning and default.
_EXTRACT_KEYS = {
    "model": ("model", "dtype", "device_map", "batch_size", "shard_samples", "prefix_cache", "trust_remote_code"),
    "data": (
        *("question_column", "label_column", "group_column", "use_chat_template", "chat_template_kwargs"),
        *("layers", "eoi_tokens", "max_length", "truncate", "max_samples"),
    ),
}
_LABEL_KEYS = {
    "label": (
        *("verifier", "answer_column", "engine", "base_url", "concurrency", "n_samples", "temperature", "top_p"),
        *("top_k", "max_new_tokens", "seed", "system_prompt", "prompt_template", "truncated", "verify_errors"),
    )
}
# Sections that say by being there that something is to be done.
_OPTIONAL = ("label",)
_STATISTICS = (
    *("k_fold", "n_folds", "seed", "nested_cv", "permutations", "permutation_statistic"),
    *("groups", "split_repeats", "drop_overlap"),
)
_MACHINES = ("workers", "ray")
_TEST = ("test_rows", "test_fraction")
_ELSEWHERE = (
    *("train_activations", "test_activations", "output_dir", "label_column", "device"),
    # The labels are those of the datasets, the layers those of the extraction.
    *("labels", "test_labels", "question_column", "max_samples", "layers"),
    *(*_TEST, *_STATISTICS, *_MACHINES),
)
_TRAIN_KEYS = {
    # With every option that has no other place.
    "probe": tuple(option.name for option in fields(Training) if option.name not in _ELSEWHERE),
    "statistics": _STATISTICS,
    "machines": _MACHINES,
}


@dataclass(frozen=True)
class Key:
    """The type of a key; `default` is `MISSING` if it is required."""

    type: Any
    default: Any


def _keys_of(owner: type, sections: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Key]]:
    hints, known = get_type_hints(owner), {field.name: field for field in fields(owner)}
    return {
        section: {name: Key(hints[name], known[name].default) for name in names} for section, names in sections.items()
    }


def _schema() -> dict[str, dict[str, Key]]:
    """Keys of every section; those of the section "" come before the first one."""
    extract, train = _keys_of(Extraction, _EXTRACT_KEYS), _keys_of(Training, _TRAIN_KEYS)
    tested = _keys_of(Training, {"data": _TEST})["data"]
    return {
        "": {"output_dir": Key(str, MISSING), "device": Key(str, "auto")},
        "model": extract["model"],
        **_keys_of(Labelling, _LABEL_KEYS),
        "data": {
            "train_dataset": Key(str | list[str], MISSING),
            "test_dataset": Key(str | list[str] | None, None),
            **tested,
            **extract["data"],
        },
        **train,
        "statistics": {**train["statistics"], "seeds": Key(list[int] | None, None)},
        "report": {"figures": Key(bool, False), "track": Key(Kind | None, None)},
    }


ALL_KEYS = frozenset(name for keys in _schema().values() for name in keys)


def find_line(text: str, section: str, *path: str | None) -> int | None:
    """Line, from 1, at which a key (None: the section itself) begins in TOML; None if it is missing.

    Parameters
    ----------
    text : str
    section : str
        "" for the keys before the first section.
    *path : str
        The key; if its value is a table, optionally a key of that, and so on.
    """
    keys = [key for key in (section, *path) if key]
    # Not splitlines, which splits at more characters than TOML does.
    lines, before = re.split(r"\r?\n", text), 0
    for number in range(1, len(lines) + 1):
        # Lines up to the middle of a value are not TOML; the key begins after the last lines that are, and lack it.
        try:
            document = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
        if _is_there(document, keys):
            return before + 1
        before = number
    return None


def checked_settings(path: Path, text: str, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All settings, with defaults filled in."""
    schema = _schema()
    _check_names(path, text, "", document, [*schema[""], *filter(None, schema)])
    settings: dict[str, dict[str, Any]] = {}
    for section, keys in schema.items():
        table = document.get(section, {}) if section else document
        if not isinstance(table, dict):
            raise RequestError(
                f"{path}, line {find_line(text, '', section)}: {section} = {table!r} should be a section; write "
                f"[{section}] on a line of its own and the keys below it"
            )
        if section in _OPTIONAL and section not in document:
            settings[section] = {}
            continue
        if section:
            _check_names(path, text, section, table, list(keys))
        settings[section] = {name: _value(path, text, section, name, key, table) for name, key in keys.items()}
    return settings


def _check_names(path: Path, text: str, section: str, table: dict[str, Any], known: list[str]) -> None:
    for name in table:
        if name in known:
            continue
        where = f"[{section}]" if section else "the top of the file"
        near = difflib.get_close_matches(name, known, 1)
        elsewhere = [f"[{other}]" for other, keys in _schema().items() if other and name in keys]
        if elsewhere and not near:
            hint = f"it belongs in {elsewhere[0]}"
        else:
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise RequestError(f"{path}, line {find_line(text, section, name)}: {name} is unknown in {where}; {hint}")


def _value(path: Path, text: str, section: str, name: str, key: Key, table: dict[str, Any]) -> Any:
    where = f"[{section}]" if section else "the top of the file"
    if name not in table:
        if key.default is MISSING:
            line = find_line(text, section, None) if section else 1
            place = f", line {line}" if line else ""
            raise RequestError(
                f"{path}{place}: {name} is missing in {where}; probesweep run --init writes a complete file"
            )
        return key.default
    try:
        return TypeAdapter(key.type, config=ConfigDict(strict=True)).validate_python(table[name])
    except ValidationError as error:
        wanted = " or ".join(dict.fromkeys(_in_words(one["msg"]) for one in error.errors()))
        raise RequestError(
            f"{path}, line {find_line(text, section, name)}: {name} = {in_toml(table[name])} in {where} should be "
            f"{wanted}{_quoted_date(table[name])}"
        ) from error


def _quoted_date(value: Any) -> str:
    """How to write the first date or time in a value as a string."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, date | time):
            return f'; as text put the {"date" if isinstance(each, date) else "time"} in quotes: "{each.isoformat()}"'
    return ""


def _in_words(message: str) -> str:
    """What pydantic expected, in TOML's words."""
    words = message.removeprefix("Input should be ").removeprefix("a valid ").removeprefix("an instance of ")
    return {
        "string": 'a string in quotes such as "all"',
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "dictionary": "a table such as {enable_thinking = false}",
        "list": "a list such as [1, 10]",
        "Sequence": "a list such as [1, 10]",
        "None": "left out",
        "Path": "a path in quotes",
    }.get(words, words)


def _is_there(document: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(document, Mapping) or key not in document:
            return False
        document = document[key]
    return True
