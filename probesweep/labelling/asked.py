"""Questions as they are asked: with a system prompt, and within a template of the user's."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from activation_store.questions.question import Question, as_messages, replace_last
from probesweep.errors import RequestError

QUESTION = "question"
logger = logging.getLogger(__name__)
_FIELD = re.compile(r"\{(\w+)\}")


def fields_of(prompt_template: str, columns: Sequence[str]) -> list[str]:
    """Columns that a template names in braces; other braces are text.

    Raises
    ------
    RequestError
        The question is not among them.
    """
    found = list(dict.fromkeys(_FIELD.findall(prompt_template)))
    named = [name for name in found if name == QUESTION or name in columns]
    if len(named) < len(found):
        others = ", ".join(f"{{{name}}}" for name in found if name not in named)
        logger.warning(
            "prompt_template=...: %s names no column and is text; columns are %s", others, ", ".join(columns)
        )
    if QUESTION not in named:
        raise RequestError(
            f"prompt_template={prompt_template!r} has no {{question}} in it; write that where the question goes",
            argument="prompt_template",
        )
    return list(dict.fromkeys(name for name in named if name != QUESTION))


def as_asked(
    questions: Sequence[Question],
    *,
    system_prompt: str | None,
    prompt_template: str | None,
    columns: Sequence[str],
    values: Callable[[str], Sequence[Any]],
) -> list[Question]:
    """Questions as conversations, where they are more than a text.

    Parameters
    ----------
    questions : sequence of str or list of dict
    system_prompt : str, optional
        Goes first.
    prompt_template : str, optional
        What the user says, with ``{question}`` in it, and perhaps other columns: ``{choices}``. Of a conversation, the
        last thing that the user says is the question.
    columns : sequence of str
        That there are.
    values : callable
        Of a column.

    Raises
    ------
    RequestError
        The template cannot be filled, or a conversation has a system prompt of its own.
    """
    asked = list(questions)
    if prompt_template is not None:
        found = {name: values(name) for name in fields_of(prompt_template, columns)}
        for row, question in enumerate(asked):
            texts = {QUESTION: as_messages(question)[-1]["content"], **{name: found[name][row] for name in found}}
            empty = next((name for name, value in texts.items() if value is None), None)
            if empty is not None:
                raise RequestError(
                    f"prompt_template={prompt_template!r}: column {empty!r} is null in row {row}; drop or fix that row",
                    argument="prompt_template",
                )
            asked[row] = replace_last(question, _filled(prompt_template, texts))
    if system_prompt is None:
        return asked
    own = [row for row, question in enumerate(asked) if as_messages(question)[0]["role"] == "system"]
    if own:
        raise RequestError(
            f"system_prompt=...: {len(own)} conversations have a system prompt of their own, the first in row "
            f"{own[0]}; leave it out, or take theirs out",
            argument="system_prompt",
        )
    return [[{"role": "system", "content": system_prompt}, *as_messages(question)] for question in asked]


def _filled(prompt_template: str, texts: dict[str, Any]) -> str:
    # In one go: a question may hold braces.
    return _FIELD.sub(lambda found: str(texts.get(found[1], found[0])), prompt_template)
