"""Questions rendered with the chat template: the prompt, and where in it the user's text is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any

from activation_store.errors import PromptError
from activation_store.prompts.tokenizer import Tokenizer
from activation_store.questions.question import Message, Question, as_messages, user_texts

# Stands for the user's text while the rest of a prompt is looked for; letters, which no template strips or escapes.
SENTINEL = "PROBESWEEPSENTINEL"


@dataclass(frozen=True)
class Pieces:
    """A rendered prompt in pieces: what the template (and other roles) wrote around what the user wrote.

    Parameters
    ----------
    fixed : tuple of str
        One more than there are user messages; the last one is the template's tail.
    user : tuple of str
        The user's texts as the template wrote them.
    form : callable
        What the template does to a text: nothing, or one of Python's strips.
    """

    fixed: tuple[str, ...]
    user: tuple[str, ...]
    form: Callable[[str], str]

    @property
    def text(self) -> str:
        """The whole prompt."""
        return "".join(chain.from_iterable(zip_longest(self.fixed, self.user, fillvalue="")))

    def cut(self, n_characters: int) -> Pieces:
        """The same prompt with the first characters of the last user message only."""
        return replace(self, user=(*self.user[:-1], self.form(self.user[-1][:n_characters])))


def writes_the_day(tokenizer: Tokenizer) -> bool:
    """Whether a template can insert today's date into prompts (Llama 3, SmolLM3)."""
    return "strftime_now" in str(tokenizer.chat_template)


def render(tokenizer: Tokenizer, question: Question, template_kwargs: dict[str, Any]) -> str:
    """Render a question with the chat template and the generation prompt."""
    return render_all(tokenizer, [question], template_kwargs)[0]


def render_all(
    tokenizer: Tokenizer, questions: Sequence[Question], template_kwargs: dict[str, Any], first_row: int = 0
) -> list[str]:
    """Render questions with the chat template and the generation prompt, in one call, which is several times faster.

    Raises
    ------
    InputError
        The template refuses one; names its row, counted from `first_row`.
    """
    conversations = [as_messages(question) for question in questions]
    try:
        return _apply(tokenizer, conversations, template_kwargs)
    except Exception:  # Templates are programs: they can raise anything.
        for row, conversation in enumerate(conversations, first_row):
            _render_or_say_why(tokenizer, conversation, template_kwargs, row)
        raise


def _apply(tokenizer: Tokenizer, conversations: list[list[Message]], template_kwargs: dict[str, Any]) -> list[str]:
    return tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True, **template_kwargs)


def _render_or_say_why(
    tokenizer: Tokenizer, conversation: list[Message], template_kwargs: dict[str, Any], row: int
) -> None:
    try:
        _apply(tokenizer, [conversation], template_kwargs)
    except Exception as error:
        roles = ", ".join(str(message["role"]) for message in conversation)
        reason = (
            f"the chat template refuses {str(conversation[-1]['content'])[:40]!r} (roles: {roles}) with "
            f"{template_kwargs}: {error}"
        )
        raise PromptError(f"row {row}: {reason}", reason) from error


def find_pieces(tokenizer: Tokenizer, question: Question, whole: str, template_kwargs: dict[str, Any]) -> Pieces | None:
    """Find the user's texts in a rendered prompt by rendering it again with sentinels in their place.

    Parameters
    ----------
    question : str or list of dict
        As it was rendered.
    whole : str
        What came of it.

    Returns
    -------
    Pieces or None
        None where the template does more to the text than to strip its ends, so that its place is not certain.
    """
    sentinel = _absent(SENTINEL, [str(message.get("content")) for message in as_messages(question)])
    texts = user_texts(question)
    fixed = tuple(_render_masked(tokenizer, question, sentinel, template_kwargs).split(sentinel))
    if len(fixed) != len(texts) + 1:
        return None
    # What is done to the ends of a text shows on one that has spaces there; this one may have none.
    spaced = f" {sentinel} "
    rendered = _render_masked(tokenizer, question, spaced, template_kwargs)
    for form in (str, str.strip, str.lstrip, str.rstrip):
        if Pieces(fixed, (form(spaced),) * len(texts), form).text == rendered:
            pieces = Pieces(fixed, tuple(form(text) for text in texts), form)
            return pieces if pieces.text == whole else None
    return None


def _render_masked(tokenizer: Tokenizer, question: Question, mask: str, template_kwargs: dict[str, Any]) -> str:
    """A question rendered with a mask in place of what the user wrote."""
    masked = [
        {**message, "content": mask} if message["role"] == "user" else message for message in as_messages(question)
    ]
    return render(tokenizer, masked, template_kwargs)


def _absent(word: str, texts: Sequence[str]) -> str:
    """The word, made longer until no text holds it."""
    while any(word in text for text in texts):
        word += "X"
    return word
