"""Samples as lm-evaluation-harness logs them with ``--log_samples``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from activation_store.errors import InputError
from activation_store.questions.rows import JsonRows, Rows
from probesweep.labelling.columns import Attempt
from probesweep.labelling.logged import TAKEN, Logged, choose_metric, is_share

Row = Mapping[str, Any]
# Where tasks have their questions.
_QUESTION_KEYS = ("question", "problem", "query", "prompt", "input", "instruction", "text")
_NO_METRICS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
    "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip
# They are in the attempts, or of one attempt alone.
_OF_ATTEMPTS = {"arguments", "resps", "filtered_resps", "filter", "metrics", "target", "prompt_hash", "target_hash"}
# What its filters return where they find no answer.
_INVALID = "[invalid]"


def is_lm_eval_log(rows: Rows) -> bool:
    """Whether rows are samples of lm-evaluation-harness."""
    return (
        isinstance(rows, JsonRows) and "doc_id" in rows.names and not {"resps", "filtered_resps"}.isdisjoint(rows.names)
    )


def read_lm_eval_log(rows: Rows, question_column: str | None, metric: str | None) -> Logged:
    """Attempts of each document: its rows, as files of several runs may be joined, and the responses of each row.

    Raises
    ------
    InputError, RequestError
        A row cannot be understood, or of several scores none was chosen.
    """
    assert isinstance(rows, JsonRows)
    path = Path(rows.path)
    names = _metrics(rows)
    chosen = choose_metric(path, list(names), metric if metric in names else _with_filter(names, metric))
    key, filter_name = names[chosen]
    numbered = [(number, row) for number, row in enumerate(rows.rows) if row.get("filter") == filter_name]
    by_document = _by_document(path, numbered)
    firsts = [of_one[0] for of_one in by_document]
    question_key = question_column or _question_key(path, firsts)
    used = {*_OF_ATTEMPTS, *TAKEN, *(each for each, _ in names.values())}
    others = [name for name in rows.names if name not in used]
    return Logged(
        questions=[_question(path, number, row, question_key) for number, row in firsts],
        answers=[row.get("target") for _, row in firsts],
        attempts=[
            [attempt for number, row in of_one for attempt in _attempts(path, number, row, key)]
            for of_one in by_document
        ],
        prompts=[_prompt(row.get("arguments")) for _, row in firsts],
        others={name: [row.get(name) for _, row in firsts] for name in others},
        recognized=(f"{path}: samples of lm-evaluation-harness, scored by {chosen}, questions from {question_key!r}"),
    )


def _metrics(rows: JsonRows) -> dict[str, tuple[str, str | None]]:
    """Key and filter of each score, by its name: as in the harness's results, METRIC,FILTER where there are filters."""
    filters = list(dict.fromkeys(row.get("filter") for row in rows.rows))
    listed = {name for row in rows.rows for name in row.get("metrics") or []}
    keys = [name for name in rows.names if name not in _NO_METRICS and (not listed or name in listed)]
    found: dict[str, tuple[str, str | None]] = {}
    for filter_name in filters:
        for key in keys:
            values = [row[key] for row in rows.rows if row.get("filter") == filter_name and row.get(key) is not None]
            if values and all(map(_grades, values)):
                found[key if len(filters) == 1 else f"{key},{filter_name}"] = key, filter_name
    if not found:
        raise InputError(
            f"{rows.path}: samples of lm-evaluation-harness without a score from 0 to 1 "
            f"(it has {', '.join(keys) or 'none'}); run the task with one, such as exact_match"
        )
    return found


def _with_filter(names: Mapping[str, Any], metric: str | None) -> str | None:
    """The one score of that metric, if it was named without its filter or with one that all have."""
    same = [name for name, (key, filter_name) in names.items() if metric in (key, f"{key},{filter_name}")]
    return same[0] if len(same) == 1 else metric


def _grades(value: Any) -> bool:
    return all(map(is_share, value)) and bool(value) if isinstance(value, list) else is_share(value)


def _by_document(path: Path, numbered: Sequence[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
    """Rows by ``doc_id``, in the order of the documents."""
    found: dict[Any, list[tuple[int, Row]]] = {}
    for number, row in numbered:
        if not isinstance(row.get("doc_id"), int | str):
            raise InputError(f"{path}: row {number} has no doc_id; log the samples again")
        of_one = found.setdefault(row["doc_id"], [])
        if of_one and of_one[0][1].get("doc") != row.get("doc"):
            raise InputError(
                f"{path}: rows {of_one[0][0]} and {number} have the doc_id {row['doc_id']} and other documents; give "
                "the file of one task"
            )
        of_one.append((number, row))
    return list(found.values())


def _question_key(path: Path, firsts: Sequence[tuple[int, Row]]) -> str:
    document = firsts[0][1].get("doc")
    keys = list(document) if isinstance(document, dict) else []
    for key in _QUESTION_KEYS:
        if key in keys:
            return key
    raise InputError(
        f"{path}: which key of doc holds the question? It has {', '.join(keys) or 'none'}; give question_column=NAME",
        argument="question_column",
    )


def _question(path: Path, number: int, row: Row, key: str) -> Any:
    document = row.get("doc")
    question = document.get(key) if isinstance(document, dict) else None
    if not isinstance(question, str | list):
        raise InputError(
            f"{path}: row {number} has no question: doc[{key!r}] is {question!r}", argument="question_column"
        )
    return question


def _attempts(path: Path, number: int, row: Row, key: str) -> list[Attempt]:
    texts, score = _texts(row.get("resps")), row.get(key)
    answers = _texts([row.get("filtered_resps")])
    scores = score if isinstance(score, list) else [score]
    if len(texts) > 1 and len(scores) != len(texts):
        raise InputError(
            f"{path}: row {number} has {len(texts)} responses and {len(scores)} values of {key}, which do not say "
            "which of them are right; log runs of one response each (other seeds) and join their files"
        )
    if len(texts) != len(scores):
        texts = [None] * len(scores)
    if len(answers) != len(scores):
        answers = [None] * len(scores)
    return [
        Attempt(text, None if answer == _INVALID else answer, None if each is None else float(each), None, None)
        for text, answer, each in zip(texts, answers, scores, strict=True)
    ]


def _texts(responses: Any) -> list[str | None]:
    """Texts of the one request of a document; none where it has several, or log-likelihoods."""
    if not isinstance(responses, list) or len(responses) != 1 or not isinstance(responses[0], list):
        return []
    found = responses[0][0] if len(responses[0]) == 1 and isinstance(responses[0][0], list) else responses[0]
    return list(found) if all(isinstance(text, str) for text in found) else []


def _prompt(arguments: Any) -> str | None:
    """The prompt of the first request: of versions that log a list of arguments, and of those that name them."""
    try:
        first = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0]
    except (KeyError, IndexError, TypeError):
        return None
    first = first[0] if isinstance(first, list) and len(first) == 1 else first
    return first if isinstance(first, str) else None
