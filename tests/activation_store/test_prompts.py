"""The template's tail, special tokens and the checks on every prompt."""

import numpy as np
import pytest

from activation_store import InputError
from activation_store.prompts import encode_prompts, find_tail, render
from tests.conftest import CHATML, QUESTIONS, train_tokenizer


def encode(tokenizer, questions, **options):
    defaults = {"use_chat_template": True, "template_kwargs": {}, "eoi_tokens": None, "max_length": None}
    return encode_prompts(tokenizer, questions, **{**defaults, **options})


def test_tail_is_counted_on_the_rendered_whole():
    tokenizer = train_tokenizer()
    tail = find_tail(tokenizer, {})
    assert tail.text == "<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tail.token_ids) == tail.text
    prompts = encode(tokenizer, QUESTIONS)
    assert prompts.positions == tuple(range(-len(tail.token_ids), 0))
    assert (prompts.tail_ids() == tail.token_ids).all()
    for row, question in enumerate(QUESTIONS):
        ids = tokenizer(render(tokenizer, question, {}), add_special_tokens=False)["input_ids"]
        np.testing.assert_array_equal(prompts.row(row), ids)
        assert prompts.n_tokens[row] == len(ids)


def test_template_kwargs_change_the_tail():
    template = CHATML.replace("assistant\n{%", "assistant\n{% if thinking %}<think>{% endif %}{%")
    tokenizer = train_tokenizer(template)
    assert find_tail(tokenizer, {"thinking": True}).text == find_tail(tokenizer, {}).text + "<think>"


def test_templated_text_gets_no_second_bos():
    tokenizer = train_tokenizer("<s>" + CHATML, bos=True)
    rendered = [render(tokenizer, question, {}) for question in QUESTIONS]
    assert tokenizer(rendered[0])["input_ids"][:2] == [0, 0]  # what a plain call would do
    ours = encode(tokenizer, rendered, use_chat_template=False)
    for row in range(len(rendered)):
        assert (ours.row(row)[:2] == 0).sum() == 1
    np.testing.assert_array_equal(ours.token_ids, encode(tokenizer, QUESTIONS).token_ids)


def test_text_without_a_template_gets_its_bos():
    tokenizer = train_tokenizer(None, bos=True)
    prompts = encode(tokenizer, ["What is 2 + 3?", "<s>What is 2 + 3?"], use_chat_template=False, eoi_tokens=2)
    assert prompts.positions == (-2, -1)
    assert prompts.tail == ""
    np.testing.assert_array_equal(prompts.row(0), prompts.row(1))
    assert prompts.row(0)[0] == 0


@pytest.mark.parametrize("use_chat_template", [True, False])
def test_counted_tokens_need_no_tail(use_chat_template):
    tokenizer = train_tokenizer("{{ messages[0]['content'] }}")
    prompts = encode(tokenizer, QUESTIONS[:3], use_chat_template=use_chat_template, eoi_tokens=2)
    assert prompts.positions == (-2, -1)


@pytest.mark.parametrize(
    ("template", "questions", "options", "message"),
    [
        (None, ["a b"], {"use_chat_template": False}, "no chat template, .* give --eoi_tokens N"),
        (None, ["a b"], {}, "leave out --use_chat_template and give --eoi_tokens N"),
        (CHATML, ["a", "b"], {"use_chat_template": False}, "row 0 does not end in .* add --use_chat_template"),
        (CHATML, ["Hi", "word " * 40], {"max_length": 30}, r"1 prompts are longer than --max_length 30, .* row 1 with"),
        (None, ["a b c d", "a"], {"use_chat_template": False, "eoi_tokens": 3}, "row 1 has 1 tokens, fewer than the 3"),
        (None, ["a"], {"use_chat_template": False, "eoi_tokens": 0}, "--eoi_tokens 0: must be at least 1"),
        ("{{ messages[0]['content'] }}", ["a"], {}, "puts no tokens after the user's text"),
        ("{{ raise_exception('no users here') }}", ["a"], {}, "the chat template refuses .* no users here"),
        ("{{ messages[0]['content'] }}\n\n", ["a", "b\n"], {}, "row 1: .* merges with the tail"),
    ],
)
def test_what_cannot_be_right_is_refused(template, questions, options, message):
    tokenizer = train_tokenizer(template)
    if template == "{{ messages[0]['content'] }}\n\n":
        # A tokenizer that joins line breaks, as GPT-2's does.
        tokenizer.add_tokens(["\n\n\n", "\n\n"])
    with pytest.raises(InputError, match=message):
        encode(tokenizer, questions, **options)
