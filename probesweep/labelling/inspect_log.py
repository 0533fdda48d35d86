"""Logs of Inspect, read by its own reader."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from activation_store.errors import InputError
from probesweep.errors import RequestError
from probesweep.labelling.columns import LENGTH, Attempt
from probesweep.labelling.logged import TAKEN, Logged, choose_metric, is_share

# Inspect's own: correct, partially correct, incorrect, no answer.
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_CUT_OFF = ("max_tokens", "model_length")


def is_inspect_log(path: Path) -> bool:
    """Whether a file is a log of Inspect: ``.eval``, or JSON that begins like one."""
    if not path.is_file() or path.suffix not in (".eval", ".json"):
        return False
    if path.suffix == ".eval":
        return True
    with path.open("rb") as file:
        return re.match(rb'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:', file.read(1000)) is not None


def read_inspect_log(path: Path, metric: str | None) -> Logged:
    """Attempts of each sample: its epochs.

    Raises
    ------
    InputError, RequestError
        inspect_ai is not installed, a score is none, or of several none was chosen.
    """
    log = _read(path)
    samples: Sequence[Any] = log.samples or []
    scores = [_scores(sample) for sample in samples]
    names = list(dict.fromkeys(name for of_one in scores for name in of_one))
    if not names:
        raise InputError(f"{path} is a log of Inspect without scores; score it with inspect score")
    chosen = choose_metric(path, names, metric)
    by_sample: dict[Any, list[Any]] = {}
    attempts: dict[Any, list[Attempt]] = {}
    for sample, of_one in zip(samples, scores, strict=True):
        by_sample.setdefault(sample.id, []).append(sample)
        attempts.setdefault(sample.id, []).append(_attempt(path, sample, of_one.get(chosen)))
    firsts = [of_one[0] for of_one in by_sample.values()]
    metadata = list(dict.fromkeys(key for sample in firsts for key in sample.metadata))
    state = "" if log.status == "success" else f" (status {log.status}: only what it holds)"
    return Logged(
        questions=_questions(firsts),
        answers=_alike([sample.target for sample in firsts]),
        attempts=list(attempts.values()),
        prompts=[None] * len(firsts),
        others={
            "id": _alike_ids([sample.id for sample in firsts]),
            **{_column(key): [sample.metadata.get(key) for sample in firsts] for key in metadata},
        },
        recognized=f"{path}: a log of Inspect{state}, scored by {chosen}",
    )


def _column(key: str) -> str:
    return f"metadata_{key}" if key in {"id", *TAKEN} else key


def _read(path: Path) -> Any:
    try:
        from inspect_ai.log import read_eval_log  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RequestError(
            f"{path} is a log of Inspect, and inspect_ai is not installed; pip install inspect-ai"
        ) from error
    try:
        return read_eval_log(str(path), resolve_attachments=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read as a log of Inspect: {' '.join(str(error).split())}") from error


def _scores(sample: Any) -> dict[str, tuple[Any, str | None]]:
    """Value and answer of each score; of one with several values each of them, as SCORER.NAME."""
    found: dict[str, tuple[Any, str | None]] = {}
    for name, score in (sample.scores or {}).items():
        if isinstance(score.value, Mapping):
            found.update({f"{name}.{key}": (value, score.answer) for key, value in score.value.items()})
        else:
            found[name] = score.value, score.answer
    return found


def _attempt(path: Path, sample: Any, score: tuple[Any, str | None] | None) -> Attempt:
    value, answer = score or (None, None)
    output = sample.output
    reason = output.stop_reason if output.choices else None
    return Attempt(
        text=output.completion if output.choices else None,
        extracted=answer,
        correct=_grade(path, sample, value),
        finish_reason=LENGTH if reason in _CUT_OFF else reason,
        n_tokens=output.usage.output_tokens if output.usage else None,
    )


def _grade(path: Path, sample: Any, value: Any) -> float | None:
    # An unscored sample has a NaN, one that failed no score.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) and value in _GRADES:
        return _GRADES[value]
    if not is_share(value):
        raise InputError(
            f"{path}: sample {sample.id!r}, epoch {sample.epoch}, has the score {value!r}; scores must be C, P, I or "
            "N, true or false, or numbers from 0 to 1"
        )
    return float(value)


def _questions(samples: Sequence[Any]) -> list[Any]:
    """Texts; conversations if one is."""
    if all(isinstance(sample.input, str) for sample in samples):
        return [sample.input for sample in samples]
    return [
        [{"role": "user", "content": sample.input}]
        if isinstance(sample.input, str)
        else [{"role": message.role, "content": message.text} for message in sample.input]
        for sample in samples
    ]


def _alike(targets: Sequence[Any]) -> list[Any]:
    """Texts; lists if one is."""
    if any(isinstance(target, list) for target in targets):
        return [target if isinstance(target, list) else [target] for target in targets]
    return list(targets)


def _alike_ids(ids: Sequence[int | str]) -> list[int | str]:
    return list(ids) if len({type(one) for one in ids}) == 1 else [str(one) for one in ids]
