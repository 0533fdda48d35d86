"""What ``probesweep extract`` reads of a dataset where its flags do not say."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probesweep.errors import RequestError
from probesweep.labelling.asked import QUESTION
from probesweep.labelling.columns import FORMATTED_PROMPT
from probesweep.labelling.output import read_about

LABELS = ("success_rate",)
# What says how far a rate can be trusted.
_COUNTS = ("n_samples", "n_correct")
_PROMPT = ("system_prompt", "prompt_template")

logger = logging.getLogger(__name__)


def defaults_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Columns to read: of files that ``probesweep label`` wrote, the prompts that it asked, and the counts of attempts.

    Parameters
    ----------
    options : mapping
        The flags of ``extract``; ``question_column`` is None and ``label_column`` empty where they are not given.
    """
    made = _made_by_us(options["dataset_path"])
    labels = tuple(options["label_column"]) or (*LABELS, *(_COUNTS if made else ()))
    return {"label_column": labels, "question_column": options["question_column"] or _question_column(options, made)}


def _question_column(options: Mapping[str, Any], made: Sequence[dict[str, Any]]) -> str:
    asked = [one["fingerprint"] for one in made if "fingerprint" in one]
    if not asked or len(asked) < len(made):
        return QUESTION
    fingerprint = asked[0]
    ways = {(one["engine"] == "openai", one["question_column"], *(one[name] for name in _PROMPT)) for one in asked}
    if len(ways) > 1:
        raise RequestError(
            "the datasets were labelled with prompts made in different ways; name the column of those to extract: "
            "question_column=...",
            argument="question_column",
        )
    if fingerprint["engine"] != "openai" and options["model"] != fingerprint["model"]:
        logger.warning("the labels are those of the model %s, not of %s", fingerprint["model"], options["model"])
    if not options["use_chat_template"] and fingerprint["engine"] != "openai":
        logger.warning("the prompts are those that were labelled, in column %r", FORMATTED_PROMPT)
        return FORMATTED_PROMPT
    more = [name for name in _PROMPT if fingerprint[name] is not None]
    if more:
        logger.warning(
            "the labels are those of other prompts, made with %s: leave out use_chat_template=True to extract these",
            " and ".join(more),
        )
    return fingerprint["question_column"]


def _made_by_us(datasets: Sequence[Any]) -> list[dict[str, Any]]:
    """How each of the datasets was labelled; empty unless all of them were."""
    found = [_about(Path(path)) for path in datasets]
    return [about for about in found if about is not None] if None not in found else []


def _about(path: Path) -> dict[str, Any] | None:
    try:
        return read_about(path) if path.suffix == ".parquet" and path.is_file() else None
    except RequestError:
        # What is wrong with it, who reads its rows says better.
        return None
