"""How numbers, untrusted text and intervals are written for readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gpu_probes.terms import PermutationStatistic, TaskType

METRICS = {"spearman": "Spearman", "roc_auc": "ROC-AUC"}
NOTHING = "-"
# Of the scores of more than two classes: each against all others, and the mean with equal weights, as scikit-learn's
# roc_auc_score(multi_class="ovr", average="macro").
AVERAGING = "one-vs-rest, macro"
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def metric_title(metric: str, n_classes: int) -> str:
    """Name of a metric for readers; that of more than two classes with how their scores become one."""
    title = METRICS.get(metric, metric)
    return f"{title}, {AVERAGING}" if n_classes > 2 else title


def number(value: float | int | None, spec: str = ".3f") -> str:
    """Three decimals by default; a dash where there is no number."""
    return NOTHING if value is None or np.isnan(value) else format(value, spec)


def class_name(value: float) -> str:
    """All digits of a class's label, so that no two classes share a name."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names of classes from users' data in one line, the first ones if there are many."""
    shown = ", ".join(one_line(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def interval(ends: tuple[float | None, float | None]) -> str:
    """``[low, high]`` on one line, or nothing where it is unknown."""
    low, high = ends
    return "" if low is None or high is None else f"[{low:.3f},\N{NO-BREAK SPACE}{high:.3f}]"


def statistic_text(statistic: PermutationStatistic, task_type: TaskType) -> str:
    """What a permutation test compares, where it is not the probe's own CV score, to follow the word "test"."""
    labels = "rates" if task_type == "regression" else "class indicators"
    return "" if statistic == "probe" else f", by least squares on the {labels}"


def caution(note: str | None) -> str:
    """A warning about an interval, as a sentence to append."""
    return f" Caution about this interval: {one_line(note)}." if note else ""


def visible(text: object) -> str:
    r"""Text with control characters, lone surrogates and direction marks escaped (``\x00``); newlines stay.

    SVG and UTF-8 cannot hold some of them, and others would reverse the text around them.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


def one_line(text: object) -> str:
    """The same with newlines escaped, too, for labels."""
    return visible(text).replace("\n", "\\n")


def position_text(position: object, token: str | None) -> str:
    """A position and the token at it."""
    return f"{one_line(position)} '{one_line(token)}'" if token else one_line(position)


def sizes(needed: int, allowed: int) -> tuple[str, str]:
    """Two numbers of bytes, the first the larger, with enough digits to tell them apart.

    The first is rounded up, so that allowing the printed amount is enough.
    """
    for digits in range(1, 16):
        texts = _size(needed, digits, math.ceil), _size(allowed, digits, math.floor)
        if texts[0] != texts[1]:
            return texts
    return f"{needed} bytes", f"{allowed} bytes"


def _size(n_bytes: int, digits: int, rounded: Callable[[float], int]) -> str:
    exponent = min(max(n_bytes.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    if not exponent:
        return f"{n_bytes} bytes"
    return f"{rounded(n_bytes / 1024**exponent * 10**digits) / 10**digits:,.{digits}f} {_UNITS[exponent]}"
