"""A question to a model: a string, or the messages of a conversation."""

from __future__ import annotations

import json
from typing import Any

# {"role": "user", "content": "..."}, and what else the template may want.
Message = dict[str, Any]
# A user's text, or a conversation that ends in a user's message.
Question = str | list[Message]


def as_messages(question: Question) -> list[Message]:
    """A conversation; a text is one user message."""
    return [{"role": "user", "content": question}] if isinstance(question, str) else question


def user_texts(question: Question) -> list[str]:
    """What the user wrote in it."""
    return [message["content"] for message in as_messages(question) if message["role"] == "user"]


def other_texts(question: Question) -> list[str]:
    """What other roles say in it: the system, earlier answers. One that only calls tools says nothing."""
    others = (message.get("content") for message in as_messages(question) if message["role"] != "user")
    return [content for content in others if content]


def question_text(question: Question) -> str:
    """A question as it is stored: a text as it is, a conversation as JSON."""
    return question if isinstance(question, str) else json.dumps(question, ensure_ascii=False, default=str)


def replace_last(question: Question, text: str) -> Question:
    """The same question with another last user message."""
    return text if isinstance(question, str) else [*question[:-1], {**question[-1], "content": text}]
