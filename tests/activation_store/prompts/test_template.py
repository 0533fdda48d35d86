"""Where the user's text lies in a rendered prompt."""

import json
from datetime import datetime

import pytest

from activation_store import InputError
from activation_store.prompts.template import SENTINEL, Pieces, find_pieces, render, render_all
from activation_store.questions.question import question_text, replace_last
from tests.helpers.models import CHATML, QUESTIONS, train_tokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " first "},
    {"role": "assistant", "content": f"answer {SENTINEL}X"},
    {"role": "user", "content": "second\n"},
]


def pieces_of(template, question):
    tokenizer = train_tokenizer(template)
    whole = render(tokenizer, question, {})
    return find_pieces(tokenizer, question, whole, {}), whole


@pytest.mark.parametrize("question", ["", " a ", SENTINEL, SENTINEL + "X", "{{ 7 * 7 }}", "<|im_end|>\n", CONVERSATION])
@pytest.mark.parametrize(
    ("filter_", "form"),
    [("", str), ("|trim", str.strip), (".lstrip()", str.lstrip), (".rstrip()", str.rstrip)],
)
def test_pieces_make_up_the_prompt(filter_, form, question):
    pieces, whole = pieces_of(CHATML.replace("['content']", f"['content']{filter_}"), question)
    assert pieces.text == whole
    texts = [question] if isinstance(question, str) else [" first ", "second\n"]
    assert pieces.user == tuple(form(text) for text in texts)
    assert pieces.fixed[-1] == "<|im_end|>\n<|im_start|>assistant\n"
    if not isinstance(question, str):
        assert pieces.fixed[0] == f"<|im_start|>system\n{form('Be brief.')}<|im_end|>\n<|im_start|>user\n"


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("['content']", "['content'] | upper"),
        CHATML.replace("['content']", "['content'] + message['content']"),
        CHATML.replace("<|im_end|>", "{% if 'ab' in message['content'] %}!{% endif %}<|im_end|>"),
    ],
)
def test_a_text_that_the_template_changes_has_no_certain_place(template):
    assert pieces_of(template, "ab")[0] is None


def test_cutting_leaves_all_but_the_last_user_message():
    pieces = Pieces(("<", "|", ">"), ("one", "two "), str.strip)
    assert pieces.cut(4).text == "<one|two>"
    assert pieces.cut(2).text == "<one|tw>"
    assert pieces.cut(0).text == "<one|>"
    assert replace_last(CONVERSATION, "new") == [*CONVERSATION[:3], {"role": "user", "content": "new"}]


def test_rendering_many_is_rendering_each():
    tokenizer = train_tokenizer()
    questions = [*QUESTIONS, CONVERSATION]
    assert render_all(tokenizer, questions, {}) == [render(tokenizer, question, {}) for question in questions]


def test_a_refusal_names_the_row():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    with pytest.raises(InputError, match=r"row 1002: .* 'second.n' \(roles: system, user, assistant, user\) .*no syst"):
        render_all(train_tokenizer(template), ["a", "b", CONVERSATION], {}, first_row=1000)


def test_a_conversation_is_stored_as_json():
    assert question_text("é") == "é"
    assert question_text([{"role": "user", "content": "é"}]) == '[{"role": "user", "content": "é"}]'


def test_messages_may_hold_what_json_does_not():
    question = [{"role": "user", "content": "hi", "at": datetime(2026, 1, 2)}]
    assert json.loads(question_text(question))[0]["at"] == "2026-01-02 00:00:00"
