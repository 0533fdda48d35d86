"""Read questions and labels, and refuse data that probes cannot be trained on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from activation_store.errors import InputError, PromptError, check_at_least_one
from activation_store.label_classes import LabelClasses, LabelColumn
from activation_store.questions.formats import Wanted, frame_rows, read_rows
from activation_store.questions.hub import HubDataset
from activation_store.questions.hub_address import is_on_hub
from activation_store.questions.question import Question, question_text
from activation_store.questions.rows import ArrowRows, Rows, check_columns
from activation_store.questions.words import are_words, is_unicode, join_words, read_words
from probesweep_errors import naming

# Beyond it float64 cannot represent every whole number.
_LAST_WHOLE = 2**53


@dataclass(frozen=True)
class Dataset:
    """The columns used, in dataset order.

    Parameters
    ----------
    path : str
        Where the rows come from, on the hub with the commit; ``DataFrame`` if that was one. Of several with commas
        between them.
    question_column : str
        Column of the questions.
    questions : list of str or list of dict
        Strings, or conversations that end with a user message.
    labels : dict of ndarray [sample]
        Numeric or boolean, finite; of a label of words the places of its classes.
    groups : dict of ndarray [sample]
        Strings that say which samples belong together.
    content_hash : str
        SHA-256 over questions, labels and groups in order.
    label_classes : dict of LabelClasses
        The classes of labels of words.
    revisions : list of str
        ``ORG/NAME@COMMIT`` of each dataset of the hub that rows come from.
    """

    path: str
    question_column: str
    questions: list[Question]
    labels: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]
    content_hash: str
    label_classes: dict[str, LabelClasses] = field(default_factory=dict[str, LabelClasses])
    revisions: list[str] = field(default_factory=list[str])


def listed(datasets: Any) -> list[Any]:
    """One dataset, or several, as a list."""
    return list(datasets) if isinstance(datasets, list | tuple) else [datasets]


@dataclass(frozen=True)
class Part:
    """One of the datasets whose rows follow one another.

    Parameters
    ----------
    rows : Rows
        What was read of it.
    found : HubDataset or None
        What its address on the hub meant.
    """

    rows: Rows
    found: HubDataset | None = None

    @classmethod
    def read(cls, given: Any, wanted: Wanted) -> Part:
        """Read the first rows of a file, a folder, a DataFrame or a dataset of the hub.

        Raises
        ------
        InputError
            As `Columns.read`.
        """
        if hasattr(given, "iloc"):
            return cls(frame_rows(given, wanted))
        if not is_on_hub(given):
            return cls(read_rows(Path(given), wanted))
        found = HubDataset.find(given)
        return cls(found.read(wanted), found)

    @property
    def path(self) -> Path | str:
        """For messages."""
        return self.rows.path

    @property
    def origin(self) -> Path | str:
        """What will always mean these rows, as far as that can be said."""
        return self.path if self.found is None else self.found.pinned


@dataclass(frozen=True)
class Columns:
    """The columns of one dataset or of several, whose rows follow one another; each is checked when it is read.

    Parameters
    ----------
    parts : sequence of Part
        The datasets that rows were read of.
    """

    parts: Sequence[Part]

    @classmethod
    def read(cls, datasets: Any, wanted: Wanted) -> Columns:
        """Read the first rows of a file, a folder, a DataFrame or a dataset of the hub, or of a list of them.

        Raises
        ------
        InputError
            A missing file or column, a file without rows, an address on the hub that cannot be read.
        """
        check_at_least_one(max_samples=wanted.max_rows)
        parts: list[Part] = []
        left = wanted.max_rows
        for each in listed(datasets):
            part = Part.read(each, replace(wanted, max_rows=left))
            if left != 0 and not len(part.rows):
                raise InputError(f"{part.path} has no rows")
            parts.append(part)
            left = None if left is None else left - len(part.rows)
        return cls([part for part in parts if len(part.rows)])

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    @property
    def names(self) -> list[str]:
        """Columns that all of the datasets have, in order."""
        first, *others = (part.rows.names for part in self.parts)
        return [name for name in first if all(name in names for names in others)]

    @property
    def path(self) -> str:
        """The datasets, for messages."""
        return ", ".join(str(part.path) for part in self.parts)

    @property
    def revisions(self) -> list[str]:
        """``ORG/NAME@COMMIT`` of each dataset of the hub."""
        return list(dict.fromkeys(part.found.revision for part in self.parts if part.found is not None))

    def questions(self, name: str) -> list[Question]:
        """Strings, or conversations that end with a user message."""
        return [each for part in self._having(name) for each in _questions(part.rows.values(name), part.path, name)]

    def numbers(self, name: str) -> list[Any]:
        """Values as Python's numbers; what is none stays what it is."""
        return [value for part in self._having(name) for value in part.rows.numbers(name)]

    def labels(self, name: str) -> LabelColumn:
        """Values of a label column."""
        parts = [_labels(part.rows, name) for part in self._having(name)]
        self._check_alike(name, [_kind_of_labels(part) for part in parts])
        return join_words(parts) if parts[0].classes else LabelColumn(np.concatenate([part.values for part in parts]))

    def groups(self, name: str) -> np.ndarray:
        """Values of a group column, as text."""
        values = [part.rows.values(name) for part in self._having(name)]
        parts = [_groups(these, part.path, name) for these, part in zip(values, self.parts, strict=True)]
        # Else it is not certain whether 1 in one file and "1" in another are one group.
        self._check_alike(name, [" and ".join(sorted({type(one).__name__ for one in these})) for these in values])
        return np.concatenate(parts)

    def _having(self, name: str) -> Sequence[Part]:
        for part in self.parts:
            check_columns(part.path, [name], part.rows.names)
        return self.parts

    def _check_alike(self, name: str, kinds: Sequence[str]) -> None:
        other = next((index for index, kind in enumerate(kinds) if kind != kinds[0]), None)
        if other is not None:
            raise InputError(
                f"{self.parts[other].path}: column {name!r} holds {kinds[other]}, and {kinds[0]} in "
                f"{self.parts[0].path}; write it in one way in all files"
            )


def _kind_of_labels(labels: LabelColumn) -> str:
    if labels.classes is not None:
        return "text"
    return "true and false" if labels.values.dtype.kind == "b" else "numbers"


def read_dataset(
    path: Any,
    question_column: str,
    label_columns: Sequence[str],
    max_samples: int | None = None,
    group_columns: Sequence[str] = (),
) -> Dataset:
    """Read questions and labels from a parquet, CSV or JSON file, a ``save_to_disk`` folder, the hub, or a DataFrame.

    The hub's datasets are named ``hf://datasets/ORG/NAME/FILE`` or ``ORG/NAME:CONFIG:SPLIT``. Of several, the rows
    follow one another. A question is a string, or a list of messages ``{"role": ..., "content": ...}`` that ends with a
    user's. Text is never interpreted: neither a number in a CSV file
    nor JSON within a string. A label is a column of numbers, of true and false, or of words (text, or a categorical),
    which name classes.

    Raises
    ------
    InputError
        Missing file or column, no rows, questions that are neither text nor a conversation, labels that are null, not
        finite, numbers stored as text, or words among numbers, whole numbers that float64 would round, groups that are
        null, lists, or ambiguous.
    """
    arguments = {
        **{name: f"group_column.{name}" for name in group_columns},
        **{name: f"label_column.{name}" for name in label_columns},
        question_column: "question_column",
    }
    names = list(dict.fromkeys([question_column, *label_columns, *group_columns]))
    columns = Columns.read(path, Wanted(names, max_rows=max_samples, arguments=arguments))
    with naming("question_column"):
        questions = columns.questions(question_column)
    labels: dict[str, np.ndarray] = {}
    classes: dict[str, LabelClasses] = {}
    for name in label_columns:
        with naming(f"label_column.{name}"):
            read = columns.labels(name)
            labels[name] = read.values
            if read.classes is not None:
                classes[name] = read.classes
    groups: dict[str, np.ndarray] = {}
    for name in group_columns:
        with naming(f"group_column.{name}"):
            groups[name] = columns.groups(name)
    content = content_hash(questions, labels, groups, classes)
    origin = ", ".join(str(part.origin) for part in columns.parts)
    return Dataset(origin, question_column, questions, labels, groups, content, classes, columns.revisions)


def read_all_columns(
    path: Path | str, question_column: str, max_samples: int | None = None
) -> tuple[list[Question | PromptError], Rows]:
    """Read the questions, and the rows as they are, from the same kinds of files as `read_dataset`.

    A question that is neither text nor a conversation is replaced by the error that says so.

    Raises
    ------
    InputError
        Missing file or column, no rows, an address on the hub that cannot be read.
    """
    arguments = {question_column: "question_column"}
    wanted = Wanted([question_column], others=True, max_rows=max_samples, arguments=arguments)
    rows = Columns.read(path, wanted).parts[0].rows
    return [
        read_question(value, f"{path}: column {question_column!r}, row {row}")
        for row, value in enumerate(rows.values(question_column))
    ], rows


def read_question(value: Any, where: str) -> Question | PromptError:
    """A value as a question, or why it is not one.

    Parameters
    ----------
    value : any
    where : str
        What to call it in the error.
    """
    question = [_present(message) for message in value] if isinstance(value, list) else value
    reason = _what_is_wrong(question)
    return question if reason is None else PromptError(f"{where}: {reason}", reason)


def _questions(values: list[Any], path: Path | str, name: str) -> list[Question]:
    wrong = [row for row, value in enumerate(values) if not isinstance(value, (str, list))]
    if wrong:
        raise InputError(
            f"{path}: column {name!r} has {len(wrong)} values that are not text, the first in row {wrong[0]} "
            f"({values[wrong[0]]!r}); drop or fix them"
        )
    questions: list[Question] = []
    for row, value in enumerate(values):
        question = read_question(value, f"{path}: column {name!r}, row {row}")
        if isinstance(question, PromptError):
            raise question
        questions.append(question)
    return questions


def _present(message: Any) -> Any:
    """A message without null keys, but for the content of one that calls tools.

    Files with types cannot tell a content that is null from one that is not there: here it is always null, as some
    templates ask for.
    """
    if not isinstance(message, dict):
        return message
    present = {key: value for key, value in message.items() if value is not None or key == "content"}
    if _calls_tools(present) and "content" not in present and "role" in present:
        return {"role": present["role"], "content": None, **present}
    return present


def _calls_tools(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls")) and message.get("role") != "user"


def _what_is_wrong(question: Any) -> str | None:
    """Why a value is not a question, None if it is one."""
    if not isinstance(question, (str, list)):
        return f"{question!r} is not text; drop or fix it"
    if isinstance(question, list):
        if not question:
            return "the list of chat messages is empty"
        for number, message in enumerate(question):
            reason = _what_is_wrong_with(message)
            if reason:
                return f"message {number}{reason}"
        if question[-1]["role"] != "user":
            return f"the last message must be the user's, not the {question[-1]['role']}'s; cut the conversation there"
    try:
        question_text(question).encode()
    except UnicodeEncodeError as error:
        return f"character {error.start} is half of a surrogate pair, which no text file can hold; drop or fix it"
    return None


def _what_is_wrong_with(message: Any) -> str | None:
    form = ' is not of the form {"role": ..., "content": ...}: '
    if not isinstance(message, dict):
        return f"{form}it has {message!r}"
    if not {"role", "content"} <= message.keys():
        return f"{form}it has the keys {', '.join(message)}"
    if message["content"] is None and not _calls_tools(message):
        return f"{form}content is null, which needs tool_calls and a role other than user"
    if not isinstance(message["role"], str) or not isinstance(message["content"], (str, type(None))):
        return f": role and content must be text, not {message['role']!r} and other parts"
    return None


def _labels(rows: Rows, name: str) -> LabelColumn:
    if are_words(rows, name):
        return read_words(rows, rows.path, name)
    kind = f" ({rows.typed(name).type})" if type(rows) is ArrowRows else ""
    values = rows.numbers(name)
    _check_numbers(values, f"{rows.path}: label column {name!r}{kind}")
    return LabelColumn(np.array(values, dtype=rows.number_type(name) or _number_type(values)))


def _check_numbers(values: Sequence[Any], where: str) -> None:
    """Refuse non-numbers, and whole numbers that float64, which probes use, would round."""
    wrong = [row for row, value in enumerate(values) if not _is_finite(value)]
    if wrong:
        raise InputError(
            f"{where} has {len(wrong)} null or non-numeric values, the first in row {wrong[0]} "
            f"({values[wrong[0]]!r}); drop those rows or make them numbers"
        )
    mixed = [row for row, value in enumerate(values) if isinstance(value, bool) != isinstance(values[0], bool)]
    if mixed:
        raise InputError(
            f"{where} mixes types: true or false, and numbers (row 0 is {values[0]!r}, row {mixed[0]} "
            f"{values[mixed[0]]!r}); make all of them numbers"
        )
    rounded = [row for row, value in enumerate(values) if abs(value) > _LAST_WHOLE and not _is_whole_float(value)]
    if rounded:
        raise InputError(
            f"{where} has {values[rounded[0]]} in row {rounded[0]}, which float64 cannot represent, so "
            "probes cannot tell it from its neighbours; subtract an offset from all labels, or use small class numbers"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, Real | Decimal) and math.isfinite(value))


def _is_whole_float(value: Any) -> bool:
    """Whether a number beyond 2 ** 53 is also one of float64, of which all there are whole."""
    try:
        return int(float(value)) == int(value)
    except OverflowError:
        return False


def _number_type(values: Sequence[Any]) -> type[Any]:
    """What holds all numbers of a column without a type."""
    if isinstance(values[0], bool):
        return np.bool_
    whole = all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in values)
    return np.int64 if whole else np.float64


def _groups(values: list[Any], path: Path | str, name: str) -> np.ndarray:
    """Numbers and texts alike as text: only whether they are equal matters."""
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    if missing:
        raise InputError(
            f"{path}: group column {name!r} has {len(missing)} null values, the first in row {missing[0]}; give "
            "every row a group"
        )
    texts = [str(value) for value in values]
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        if isinstance(value, (list, dict)) or not is_unicode(text):
            raise InputError(
                f"{path}: group column {name!r} has {value!r} in row {row}, which is neither a number nor a string; "
                "use one of them for each group"
            )
    _check_distinct(values, texts, path, name)
    return np.array(texts, dtype=object)


def _check_distinct(values: list[Any], texts: list[str], path: Path | str, name: str) -> None:
    """Refuse values of which it is not certain whether they are one group: 1, 1.0 and "1"."""
    by_text: dict[str, int] = {}
    by_number: dict[float, int] = {}
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        other = by_text.setdefault(text, row)
        if type(values[other]) is type(value) and isinstance(value, (bool, int, float)):
            other = by_number.setdefault(value, row)
        if type(values[other]) is not type(value) or texts[other] != text:
            raise InputError(
                f"{path}: group column {name!r} has {values[other]!r} in row {other} and {value!r} in row {row}: one "
                "group or two? Write each group in one way"
            )


def content_hash(
    questions: Sequence[Question],
    labels: Mapping[str, np.ndarray],
    groups: Mapping[str, np.ndarray],
    classes: Mapping[str, LabelClasses],
) -> str:
    """SHA-256 over questions, labels, with the names of classes that are words, and groups in order."""
    digest = hashlib.sha256()
    for question in questions:
        # A conversation is another question than the text that spells its JSON.
        kind = b"" if isinstance(question, str) else b"messages"
        data = question_text(question).encode()
        digest.update(kind + len(data).to_bytes(8, "little") + data)
    for name, values in labels.items():
        digest.update(f"{name}:{values.dtype.str}:".encode() + values.tobytes())
        if name in classes:
            digest.update(f"{name}:classes:{classes[name].to_json()!r}".encode())
    for name, texts in groups.items():
        digest.update(f"{name}:groups:".encode() + repr(texts.tolist()).encode())
    return digest.hexdigest()
