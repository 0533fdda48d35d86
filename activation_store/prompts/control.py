"""Control strings, such as ``<|im_end|>``, in a user's text: found, and encoded as the text that they are."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from activation_store.prompts.template import Pieces
from activation_store.prompts.tokenizer import Tokenizer


class ControlStrings:
    """The strings that a tokenizer turns into control tokens, and the way to keep them text.

    Control strings are the tokenizer's special tokens, and those other added tokens that the chat template writes
    (DeepSeek's turn markers are not marked as special).

    A prompt is encoded as text by a copy of the tokenizer in which control strings have no meaning and unguessable
    names stand for the control tokens of the template: all else goes through the pipeline as ever, so that no piece of
    the prompt is tokenized apart from its neighbours.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        template = str(tokenizer.chat_template)
        self._tokenizer = tokenizer
        self._ids = {
            token.content: number
            for number, token in added.items()
            if token.special or (token.content in template and _is_marker(token.content))
        }
        # The longest first, as the tokenizer chooses.
        names = sorted(filter(None, self._ids), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        matched_after = any(added[number].normalized for number in self._ids.values())
        self._normalize = normalizer.normalize_str if normalizer is not None and matched_after else None

    def inside(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts holds a control string."""
        if self._pattern is None:
            return False
        return any(
            self._pattern.search(text) or (self._normalize and self._pattern.search(self._normalize(text)))
            for text in texts
        )

    def encode_as_text(self, pieces: Pieces) -> list[int] | None:
        """Token ids of a prompt in which only the template's control strings are control tokens.

        Returns
        -------
        list of int or None
            None where this tokenizer cannot do that exactly: its text would be encoded otherwise than ever, or lost, or
            its vocabulary holds the control string as an ordinary word.
        """
        if self._text_copy is None or self._pattern is None:
            return None
        ids = self._encode(pieces)
        ordinary = self._ordinary_ids(pieces)
        if ids is None or _squeeze(self._tokenizer.decode(ids)) != _squeeze(self._tokenizer.decode(ordinary)):
            return None
        # The copy must do with the rest of the text what the tokenizer does with it.
        defused = Pieces(pieces.fixed, tuple(self._pattern.sub(" ", text) for text in pieces.user), pieces.form)
        if self.inside(defused.user) or self._encode(defused) != self._ordinary_ids(defused):
            return None
        return ids

    def _ordinary_ids(self, pieces: Pieces) -> list[int]:
        return self._tokenizer(pieces.text, add_special_tokens=False, verbose=False)["input_ids"]

    def _encode(self, pieces: Pieces) -> list[int] | None:
        assert self._text_copy is not None
        assert self._pattern is not None
        backend, names, original, unknown = self._text_copy
        fixed = tuple(self._pattern.sub(lambda found: names[found[0]], piece) for piece in pieces.fixed)
        ids: list[int] = backend.encode(Pieces(fixed, pieces.user, pieces.form).text, add_special_tokens=False).ids
        # What the vocabulary does not know is the unknown token, wherever it stands, unless the text spells it.
        allowed = {unknown} if not any(unknown in text for text in pieces.user) else set[str]()
        if set(ids) & {number for name, number in self._ids.items() if name not in allowed}:
            return None
        return [original.get(number, number) for number in ids]

    @cached_property
    def _text_copy(self) -> tuple[Any, dict[str, str], dict[int, int], str] | None:
        """The copy of the tokenizer, its name for every control string, their true ids, and its unknown token."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        try:
            document = json.loads(backend.to_str())
        except Exception:  # The library raises this very type for a pipeline with parts written in Python.
            return None
        # Not to be guessed: a text that holds one would write control tokens.
        nonce = secrets.token_hex(16)
        names = {name: f"<{nonce}{index}>" for index, name in enumerate(self._ids)}
        added = document["added_tokens"]
        free = max([token["id"] for token in added] + [backend.get_vocab_size(with_added_tokens=True)]) + 1
        aliases = [
            {**token, "id": free + index, "content": names[token["content"]], "special": False}
            for index, token in enumerate(token for token in added if token["content"] in names)
        ]
        plain = [{**token, "special": token["content"] in names} for token in added]
        copy = type(backend).from_str(json.dumps({**document, "added_tokens": plain + aliases}))
        copy.encode_special_tokens = True
        copy.no_truncation()
        copy.no_padding()
        original = {copy.token_to_id(alias): self._ids[name] for name, alias in names.items()}
        return copy, names, original, _unknown_token(document["model"])


def _is_marker(content: str) -> bool:
    """Whether an added token is more than a word or a run of spaces, which templates write as ordinary text."""
    return not (content.isspace() or content.isalnum())


def _unknown_token(model: dict[str, Any]) -> str:
    """What a tokenizer's model writes for what it does not know, empty if nothing."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return str(model.get("unk_token") or "")


def _squeeze(text: str) -> str:
    # Decoders set spaces around control tokens, or take them away.
    return "".join(text.split())
