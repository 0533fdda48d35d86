"""The template's tail, special tokens, truncation and the checks on every prompt."""

import logging
import tracemalloc

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from activation_store import InputError
from activation_store.prompts import encoding
from activation_store.prompts.encoding import encode_prompts
from activation_store.prompts.prompts import PromptFormat
from activation_store.prompts.tail import find_tail
from activation_store.prompts.template import render
from tests.helpers.models import CHATML, QUESTIONS, train_tokenizer
from tests.helpers.tokenizer_kinds import KINDS

# As Qwen3's: thinking is switched off by what stands at the start of the answer.
QWEN3 = CHATML.replace(
    "assistant\n{%", "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{%"
)
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "And 4 + 4?"},
]


def encode(tokenizer, questions, *, numbers=None, n_embeddings=None, as_trained=False, **options):
    given = PromptFormat(**options)
    return encode_prompts(
        tokenizer, questions, given, n_embeddings=n_embeddings, as_trained=as_trained, numbers=numbers
    )


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


@pytest.mark.parametrize("options", [{}, {"max_length": 50, "truncate": True}])
def test_a_message_that_only_calls_tools_is_rendered_as_it_is(options):
    template = CHATML.replace(
        "<|im_end|>", "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>"
    )
    tokenizer = train_tokenizer(template)
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    question = [{"role": "user", "content": "a <|im_end|>"}, called, {"role": "user", "content": "Why? " * 50}]
    prompts = encode(tokenizer, [question], **options)
    rendered = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert '[{"name": "f"}]' in rendered
    assert prompts.control_rows.as_text == (0,)
    if options:
        assert prompts.n_tokens[0] <= 50
        rendered = rendered.replace("Why? " * 50, "")
    decoded = tokenizer.decode(prompts.row(0))
    head, _, tail = rendered.partition("Why? ") if not options else (rendered[:40], "", prompts.tail)
    assert decoded.startswith(head)
    assert decoded.endswith(tail)


def test_template_kwargs_change_the_tail():
    template = CHATML.replace("assistant\n{%", "assistant\n{% if thinking %}<think>{% endif %}{%")
    tokenizer = train_tokenizer(template)
    assert find_tail(tokenizer, {"thinking": True}).text == find_tail(tokenizer, {}).text + "<think>"


def test_thinking_is_switched_off_in_the_tail():
    tokenizer = train_tokenizer(QWEN3)
    tokenizer.add_tokens(["<think>", "</think>"])
    on = encode(tokenizer, QUESTIONS)
    off = encode(tokenizer, QUESTIONS, template_kwargs={"enable_thinking": False})
    assert off.tail == on.tail + "<think>\n\n</think>\n\n"
    assert len(off.positions) > len(on.positions)
    for name in ("<think>", "</think>"):
        token = tokenizer.convert_tokens_to_ids(name)
        assert ((off.tail_ids() == token).sum(axis=1) == 1).all()
        assert not (on.token_ids == token).any()


@pytest.mark.parametrize("kind", ["byte_level", "metaspace_bpe", "unigram"])
def test_one_bos_where_template_and_post_processor_both_write_it(kind):
    tokenizer = KINDS[kind]()
    bos = tokenizer.bos_token_id
    rendered = render(tokenizer, "Hi there", {})
    assert tokenizer(rendered)["input_ids"][:2] == [bos, bos]  # what a plain call would do
    for questions, use_chat_template in ((["Hi there"], True), ([rendered], False)):
        row = encode(tokenizer, questions, use_chat_template=use_chat_template).row(0)
        assert row[0] == bos
        assert (row == bos).sum() == 1


def test_a_template_without_bos_gets_none():
    tokenizer = train_tokenizer(CHATML, bos=True)
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id
    assert not (encode(tokenizer, ["Hi"]).token_ids == tokenizer.bos_token_id).any()


@pytest.mark.parametrize("kind", ["byte_level", "unmarked", "slow"])
def test_the_tail_follows_the_last_user_message(kind):
    tokenizer = KINDS[kind]()
    ours = encode(tokenizer, [CONVERSATION, "alone"])
    whole = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    np.testing.assert_array_equal(ours.row(0), tokenizer(whole, add_special_tokens=False)["input_ids"])
    assert (ours.tail_ids() == find_tail(tokenizer, {}).token_ids).all()
    assert tokenizer.decode(ours.tail_ids()[0]) == ours.tail


def test_a_tokenizer_without_offsets_has_the_same_tail():
    tokenizer = KINDS["slow"]()
    tail = find_tail(tokenizer, {})
    assert tail.text == "<|im_end|>\n<|im_start|>assistant\n"
    assert list(tail.token_ids) == tokenizer(tail.text, add_special_tokens=False)["input_ids"]


def test_a_tail_that_a_tokenizer_without_offsets_cannot_tell_is_refused():
    with pytest.raises(InputError, match="cannot be told from those of the user's text"):
        find_tail(WholeTexts(), {})


class WholeTexts:
    """A tokenizer that takes the end of the user's text and what follows for one token."""

    chat_template, bos_token, is_fast = "x", None, False

    def apply_chat_template(self, conversations, **_):
        return [f"{conversation[0]['content']} end" for conversation in conversations]

    def __call__(self, text, **_):
        return {"input_ids": [hash(text)]}

    def decode(self, _):
        return ""


def test_a_tail_that_merges_with_the_text_is_refused():
    tokenizer = train_tokenizer("{{ messages[0]['content'] }}L")
    tokenizer.add_tokens(["LL"])
    with pytest.raises(InputError, match="tail 'L' merges with the user's text; give eoi_tokens=N"):
        find_tail(tokenizer, {})


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
        (None, ["a b"], {"use_chat_template": False}, "no chat template, .* give eoi_tokens=N"),
        (None, ["a b"], {}, "leave out use_chat_template=True and give eoi_tokens=N"),
        (CHATML, ["a", "b"], {"use_chat_template": False}, "row 0 does not end in .* add use_chat_template=True"),
        (CHATML, ["Hi", "word " * 40], {"max_length": 30}, r"1 prompts are longer than max_length=30, .* row 1 with"),
        (None, ["a b c d", "a"], {"use_chat_template": False, "eoi_tokens": 3}, "row 1 has 1 tokens, fewer than the 3"),
        (
            None,
            ["a b c d", "a b"],
            {"use_chat_template": False, "eoi_tokens": 2**63 - 1},
            r"9223372036854775807 positions of eoi_tokens=\.\.\.; the longest row has .: give eoi_tokens=. at most",
        ),
        (None, ["a"], {"use_chat_template": False, "eoi_tokens": 0}, "eoi_tokens=0 must be at least 1"),
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


def test_a_tail_that_differs_is_shown_beside_the_templates():
    template = CHATML.replace("assistant\n{%", "assistant\n{% if messages | length > 1 %}!{% endif %}{%")
    with pytest.raises(InputError, match=r"row 1 does not end in .* expected '<.im_end.>.*', found '.*!'; its"):
        encode(train_tokenizer(template), ["a", CONVERSATION])


def test_the_row_in_a_message_counts_from_the_start_of_the_dataset(monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_ROWS", 2)
    tokenizer = train_tokenizer()
    rendered = render(tokenizer, "a", {})
    with pytest.raises(InputError, match="row 3 does not end in"):
        encode(tokenizer, [rendered, rendered, rendered, "b"], use_chat_template=False)
    batched = encode(tokenizer, [*QUESTIONS, "<|im_end|>"])
    assert batched.control_rows.as_text == (len(QUESTIONS),)
    monkeypatch.undo()
    whole = encode(tokenizer, [*QUESTIONS, "<|im_end|>"])
    np.testing.assert_array_equal(batched.token_ids, whole.token_ids)
    np.testing.assert_array_equal(batched.starts, whole.starts)
    np.testing.assert_array_equal(batched.text_hash, whole.text_hash)


@pytest.mark.parametrize(
    ("questions", "options", "message"),
    [
        (
            ["a"],
            {"use_chat_template": False, "truncate": True, "max_length": 9},
            "truncate=True cuts the user's text",
        ),
        (["a"], {"truncate": True}, "truncate=True needs max_length=N"),
        ([CONVERSATION], {"use_chat_template": False}, "row 0 is a list of chat messages.* add use_chat_template=True"),
        (
            ["a"] * 3 + ["b " * 90] * 12,
            {"max_length": 60},
            r"12 prompts .* rows 3, 4, .* 12 and 2 more; .*truncate=True",
        ),
        (["a", "b"], {"max_length": 5, "truncate": True}, r"2 prompts cannot be cut to max_length=5, rows 0, 1: "),
    ],
)
def test_what_is_too_long_is_refused(questions, options, message):
    with pytest.raises(InputError, match=message):
        encode(train_tokenizer(), questions, **options)


def test_the_way_out_of_templated_text_is_not_truncation():
    tokenizer = train_tokenizer()
    with pytest.raises(InputError, match="longer than max_length=20") as caught:
        encode(tokenizer, [render(tokenizer, "word " * 40, {})], use_chat_template=False, max_length=20)
    assert "truncate" not in str(caught.value)


def starts_that_fit(tokenizer, question, max_length):
    """Token ids of every start of the text, between characters, that fits and has the tail, by its number."""
    tail = list(find_tail(tokenizer, {}).token_ids)
    ends = [0, *(found.end() for found in regex.finditer(r"\X", question))]
    rendered = [render(tokenizer, question[:end], {}) for end in ends]
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return {n: row for n, row in enumerate(ids) if len(row) <= max_length and row[-len(tail) :] == tail}


CUT = st.lists(
    st.sampled_from(["sheep ", "a", "  ", "\n", "e\u0301", "👨‍👩‍👧", "日本", "1234", "...", "don't ", "\r\n", "<"]),
    min_size=4,
    max_size=14,
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smollm2", "byte_level", "metaspace_bpe"])
@given(fragments=CUT, less=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_truncation_keeps_a_start_of_the_text_to_which_no_character_can_be_added(kind, fragments, less):
    tokenizer, question = KINDS[kind](), "".join(fragments).strip()
    n_tokens = int(encode(tokenizer, [question]).n_tokens[0])
    max_length = max(n_tokens - less, int(encode(tokenizer, [""]).n_tokens[0]))
    if max_length >= n_tokens:
        return
    ours = encode(tokenizer, ["", question], max_length=max_length, truncate=True)
    fitting = starts_that_fit(tokenizer, question, max_length)
    kept = [n for n, ids in fitting.items() if ids == ours.row(1).tolist()]
    assert kept
    assert max(kept) + 1 not in fitting
    assert ours.truncated_rows == (1,)
    np.testing.assert_array_equal(ours.row(0), encode(tokenizer, [""]).row(0))


def test_truncation_strips_what_the_template_strips():
    # Found by the test above: nothing is to be stripped from the whole text, but there is from its start.
    tokenizer = KINDS["metaspace_bpe"]()
    n_tokens = int(encode(tokenizer, ["a b c"]).n_tokens[0])
    cut = encode(tokenizer, ["a b c d e"], max_length=n_tokens, truncate=True)
    np.testing.assert_array_equal(cut.row(0), encode(tokenizer, ["a b c"]).row(0))


@pytest.mark.slow
def test_truncation_is_counted_and_hashed_as_cut(caplog):
    tokenizer = KINDS["smollm2"]()
    questions = ["short", "How many sheep does the farmer have now? " * 2500, "Hi", "<|im_end|> ends " * 30]
    with caplog.at_level(logging.WARNING):
        cut = encode(tokenizer, questions, max_length=100, truncate=True)
    assert cut.truncated_rows == (1, 3)
    assert "2 prompts were longer than 100 tokens and the end of their user's text was cut: rows 1, 3" in caplog.text
    assert cut.n_tokens.tolist()[1::2] == [100, 100]
    assert (cut.tail_ids() == find_tail(tokenizer, {}).token_ids).all()
    assert cut.control_rows.as_text == (3,)
    text = tokenizer.decode(cut.row(1))
    again = encode(tokenizer, [text], use_chat_template=False)
    assert again.text_hash[0] == cut.text_hash[1]
    whole = encode(tokenizer, questions)
    assert (whole.text_hash == cut.text_hash).tolist() == [True, False, True, False]
    assert whole.truncated_rows == ()
    # Control strings that are left are text after the cut as well.
    ends = [(cut.row(row) == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() for row in range(4)]
    assert len(set(ends)) == 1


def test_truncation_of_a_conversation_cuts_its_last_message():
    tokenizer = KINDS["byte_level"]()
    long = [*CONVERSATION[:3], {"role": "user", "content": "And 4 + 4, and " * 20}]
    cut = encode(tokenizer, [long], max_length=120, truncate=True)
    text = tokenizer.decode(cut.row(0))
    before = render(tokenizer, CONVERSATION, {}).rpartition("And 4")[0]
    assert text.startswith(before + "And 4 + 4, and And")
    assert text.endswith(cut.tail)
    assert 110 < cut.n_tokens[0] <= 120


def test_a_text_that_the_template_rewrites_is_not_cut():
    tokenizer = train_tokenizer(CHATML.replace("['content']", "['content'] | upper"))
    with pytest.raises(InputError, match=r"1 prompts cannot be cut .* row 1: .* or the template rewrites it"):
        encode(tokenizer, ["A", "word " * 40], eoi_tokens=3, max_length=30, truncate=True)


def test_a_template_that_looks_at_the_length_is_not_cut():
    template = CHATML.replace("<|im_end|>", "{% if messages[0]['content'] | length < 30 %}?{% endif %}<|im_end|>")
    with pytest.raises(InputError, match="prompts cannot be cut"):
        encode(train_tokenizer(template), ["word " * 40], eoi_tokens=3, max_length=20, truncate=True)


@pytest.mark.slow
def test_token_ids_of_all_prompts_are_never_held_as_lists(monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_ROWS", 50)
    tokenizer = train_tokenizer()
    questions = [f"{QUESTIONS[4]} {row}" for row in range(1500)]
    encode(tokenizer, questions[:10])
    tracemalloc.start()
    n_tokens = len(encode(tokenizer, questions).token_ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The array and its parts, 4 bytes a token each, next to one batch; a list takes 8 bytes a token and its integers.
    assert peak < 2.5 * 4 * n_tokens + 5e5


def test_a_token_without_an_embedding_is_refused_with_its_row():
    tokenizer = train_tokenizer(CHATML.replace("assistant\n", "assistant\n<think>"))
    n_embeddings = len(tokenizer)
    encode(tokenizer, QUESTIONS, n_embeddings=n_embeddings)
    # Added to the tokenizer, as is done for a finetuning, and the model was not resized: in the template ...
    tokenizer.add_tokens([*(f"<pad{number}>" for number in range(7)), "<think>"])
    with pytest.raises(
        InputError, match=rf"row 0: token {n_embeddings + 7} '<think>' is beyond the model's {n_embeddings} emb"
    ):
        encode(tokenizer, QUESTIONS, n_embeddings=n_embeddings)
    encode(tokenizer, QUESTIONS, n_embeddings=n_embeddings + 8)
    # ... or in one question.
    plain = train_tokenizer(None)
    plain.add_tokens(["<tool>"])
    given = ["a", "b <tool> c", "<tool>"]
    with pytest.raises(InputError, match=rf"row 1: token {len(plain) - 1} '<tool>' is beyond"):
        encode(plain, given, use_chat_template=False, eoi_tokens=1, n_embeddings=len(plain) - 1)


@pytest.mark.parametrize(("single", "last"), [("<s> $A </s>", -2), ("$A </s> </s>", -3)])
def test_a_token_that_the_tokenizer_appends_is_a_warning(single, last, caplog):
    tokenizer = train_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    found = encode(tokenizer, ["", *QUESTIONS], use_chat_template=False, eoi_tokens=1)
    assert set(found.tail_ids()[1:].ravel().tolist()) == {1}
    assert f"position -1 is that token and {last} the prompt's own last one" in caplog.text


@pytest.mark.parametrize("bos", [True, False])
def test_a_tokenizer_that_appends_nothing_is_not_warned_of(bos, caplog):
    encode(train_tokenizer(None, bos=bos), QUESTIONS, use_chat_template=False, eoi_tokens=1)
    encode(train_tokenizer(bos=bos), QUESTIONS)
    assert not caplog.records
