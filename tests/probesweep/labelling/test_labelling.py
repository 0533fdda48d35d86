"""Labellings as users run them: what is in the file, what is refused, and what a kill leaves."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from activation_store.errors import DeviceMemoryError
from activation_store.prompts.template import render
from probesweep import RequestError
from probesweep.labelling import progress as progress_module
from probesweep.labelling.attempts import Sampler
from probesweep.labelling.engines.local import LocalEngine
from probesweep.labelling.labelling import Labelling, progress_of
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS

COLUMNS = ["success_rate", "n_samples", "n_correct", "n_truncated", "attempts", "majority_answer"]
COLUMNS += ["majority_is_correct", "formatted_prompt"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.parquet"
    pd.DataFrame({"question": QUESTIONS, "answer": list("abcdefghijk"), "topic": "t"}).to_parquet(path)
    return path


@pytest.fixture
def given(tiny_model: Callable[[str], Path], questions: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model("llama")),
        "dataset_path": questions,
        "output_path": tmp_path / "out.parquet",
        "verifier": "contains",
        "n_samples": 4,
        "max_new_tokens": 6,
        "batch_size": 3,
    }


def _flags(given: dict[str, Any]) -> list[object]:
    given = {**given}
    bare = ["--no_chat_template"] if given.pop("use_chat_template", True) is None else []
    return [*bare, *(part for name, value in given.items() for part in (f"--{name}", value))]


def test_the_file_has_the_rows_and_what_became_of_each(given: dict[str, Any]) -> None:
    done = run("label", *_flags(given))
    assert done.returncode == 0, done.stderr
    frame = pd.read_parquet(given["output_path"])
    assert list(frame.columns) == ["question", "answer", "topic", *COLUMNS]
    assert frame["question"].tolist() == QUESTIONS
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    assert frame["formatted_prompt"].tolist() == [render(tokenizer, question, {}) for question in QUESTIONS]
    for _, row in frame.iterrows():
        verdicts = [attempt["correct"] for attempt in row["attempts"]]
        assert row["n_samples"] == len(verdicts) == 4
        assert row["n_correct"] == sum(verdicts)
        assert row["success_rate"] == sum(verdicts) / 4
        assert row["n_truncated"] == sum(attempt["finish_reason"] == "length" for attempt in row["attempts"])
        assert all(attempt["n_tokens"] <= 6 for attempt in row["attempts"])
    about = json.loads(pq.read_schema(given["output_path"]).metadata[b"probesweep_label"])
    assert about["fingerprint"]["verifier"] == "contains"
    assert about["fingerprint"]["n_samples"] == 4
    assert not progress_of(given["output_path"]).exists()


def test_the_file_goes_into_extract_with_default_flags(given: dict[str, Any], tmp_path: Path) -> None:
    assert run("label", *_flags(given), "--system_prompt", "Be brief.").returncode == 0
    store = tmp_path / "out.zarr"
    done = run("extract", "--model", given["model"], "--dataset_path", given["output_path"], "--output_path", store)
    assert done.returncode == 0, done.stderr
    from activation_store import ActivationStore

    opened = ActivationStore.open(store)
    assert opened.questions is not None
    assert "Be brief." in opened.questions[0]
    frame = pd.read_parquet(given["output_path"])
    assert opened.labels["success_rate"].tolist() == frame["success_rate"].tolist()
    assert opened.labels["n_samples"].tolist() == [4] * len(QUESTIONS)


def test_an_attempt_is_what_the_model_says_token_for_token(given: dict[str, Any]) -> None:
    Labelling(**{**given, "temperature": 0, "n_samples": 1}).run()
    frame = pd.read_parquet(given["output_path"])
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"]).eval()
    for prompt, attempts in zip(frame["formatted_prompt"], frame["attempts"], strict=True):
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        out = model.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=1)
        assert attempts[0]["text"] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_second_run_does_nothing_and_another_request_is_refused(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Labelling(**given).run()
    before = given["output_path"].read_bytes()
    monkeypatch.setattr("probesweep.labelling.engines.local.LocalEngine.load", lambda _: pytest.fail("loads weights"))
    Labelling(**given).run()
    assert given["output_path"].read_bytes() == before
    with pytest.raises(RequestError, match=r"temperature 1.0, now 0.5"):
        Labelling(**{**given, "temperature": 0.5}).run()
    done = run("label", *_flags({**given, "verifier": "exact"}))
    assert done.returncode == 2
    assert 'verifier "contains", now "exact"' in done.stderr
    assert given["output_path"].read_bytes() == before


def test_progress_of_another_request_is_refused(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupt_at_commit(monkeypatch, 3, after=True)
    with pytest.raises(KeyboardInterrupt):
        Labelling(**given).run()
    monkeypatch.undo()
    with pytest.raises(RequestError, match=r"out.parquet.progress was made with other inputs \(seed 0, now 1\)"):
        Labelling(**{**given, "seed": 1}).run()


def _interrupt_at_commit(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> list[int]:
    """Interrupt before or after the commit of that number; returns the commits that were begun."""
    begun: list[int] = []
    commit = progress_module._commit

    def interrupted(connection: Any) -> None:
        begun.append(1)
        if len(begun) == number and not after:
            raise KeyboardInterrupt
        commit(connection)
        if len(begun) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress_module, "_commit", interrupted)
    return begun


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_fault_at_any_commit_loses_nothing_that_is_committed(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, after: bool
) -> None:
    Labelling(**given).run()
    expected = given["output_path"].read_bytes()
    n_commits = 1 + 1 + 4
    for number in range(1, n_commits + 1):
        other = {**given, "output_path": tmp_path / f"{number}" / "out.parquet"}
        with monkeypatch.context() as patched:
            _interrupt_at_commit(patched, number, after=after)
            with pytest.raises(KeyboardInterrupt):
                Labelling(**other).run()
        with monkeypatch.context() as patched:
            begun = _interrupt_at_commit(patched, 0, after=after)
            Labelling(**other).run()
        # Batches that were committed are not run again; where there are none, all begins anew.
        n_done = max(0, number - 2 - (not after))
        assert len(begun) == (1 + 4 - n_done if n_done else n_commits)
        assert other["output_path"].read_bytes() == expected
    with monkeypatch.context() as patched:
        begun = _interrupt_at_commit(patched, 0, after=after)
        Labelling(**{**given, "output_path": tmp_path / "whole" / "out.parquet"}).run()
    assert len(begun) == n_commits


@pytest.mark.slow
def test_twenty_kills_at_random_moments_give_the_same_file(given: dict[str, Any], tmp_path: Path) -> None:
    given = {**given, "batch_size": 1, "max_new_tokens": 12}
    Labelling(**given).run()
    expected = given["output_path"].read_bytes()
    other = {**given, "output_path": tmp_path / "killed" / "out.parquet"}
    begun = time.monotonic()
    Labelling(**{**given, "output_path": tmp_path / "timed" / "out.parquet"}).run()
    seconds = time.monotonic() - begun
    generator, kills = random.Random(0), 0
    while kills < 20:
        pid = os.fork()
        if not pid:
            try:
                Labelling(**other).run()
            finally:
                os._exit(0)
        time.sleep(generator.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        if other["output_path"].exists():
            # It was done before: once more from the beginning.
            assert other["output_path"].read_bytes() == expected
            other["output_path"].unlink()
    Labelling(**other).run()
    assert other["output_path"].read_bytes() == expected


def test_columns_of_another_labelling_are_replaced_with_a_word(
    given: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "old.csv"
    pd.DataFrame({"question": QUESTIONS, "answer": "a", "success_rate": 0.123, "n_samples": 8}).to_csv(path)
    Labelling(**{**given, "dataset_path": path}).run()
    assert "columns of another labelling (success_rate, n_samples)" in caplog.text
    assert 0.123 not in pd.read_parquet(given["output_path"])["success_rate"].tolist()


def test_conversations_templates_and_several_files(given: dict[str, Any], tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    talk.append({"role": "user", "content": "2 {x}"})
    one.write_text(json.dumps({"question": talk, "answer": ["4"], "x": "y"}))
    two.write_text(
        json.dumps({"question": [{"role": "user", "content": "3 + 3"}], "answer": ["6", "six"], "x": "z", "more": 1})
    )
    template = "{question} = ? {unknown} {x}"
    Labelling(**{**given, "dataset_path": [one, two], "prompt_template": template, "system_prompt": "Count."}).run()
    frame = pd.read_parquet(given["output_path"])
    prompts = frame["formatted_prompt"].tolist()
    assert prompts[0].startswith("<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    assert prompts[0].endswith("user\n2 {x} = ? {unknown} y<|im_end|>\n<|im_start|>assistant\n")
    assert "user\n3 + 3 = ? {unknown} z<|im_end|>" in prompts[1]
    assert frame["more"].isna().tolist() == [True, False]


@pytest.mark.parametrize("together", [False, True])
def test_a_column_of_several_kinds_is_refused(given: dict[str, Any], tmp_path: Path, *, together: bool) -> None:
    rows = [{"question": "a", "answer": "b", "x": 1}, {"question": "a", "answer": "b", "x": [1]}]
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path, row in zip(paths, rows, strict=True):
        path.write_text(json.dumps(row))
    if together:
        paths = paths[:1]
        paths[0].write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(RequestError, match="labels are written as parquet, so write each column in one way"):
        Labelling(**{**given, "dataset_path": paths}).run()


def test_dry_run_shows_a_prompt_and_verdicts(given: dict[str, Any]) -> None:
    done = run("label", *_flags(given), "--dry_run", "--prompt_template", r"{question}\nJust the letter.")
    assert done.returncode == 0, done.stderr
    assert "What is 2 + 3?\nJust the letter.<|im_end|>" in done.stdout
    done = run("label", *_flags(given), "--dry_run")
    assert "<|im_start|>user\nWhat is 2 + 3?<|im_end|>" in done.stdout
    assert "'The answer is a.': right" in done.stdout
    assert "'The answer is b.': wrong" in done.stdout
    assert not given["output_path"].exists()


BAD = {
    "no answer column": ({"answer_column": "solution"}, "solution"),
    "no question column": ({"question_column": "prompt"}, "prompt"),
    "no such verifier": ({"verifier": "magic"}, "magic"),
    "greedy attempts": ({"temperature": 0}, "temperature=0|--temperature 0"),
    "negative temperature": ({"temperature": -1.0}, "temperature"),
    "no attempts": ({"n_samples": 0}, "n_samples"),
    "top_p": ({"top_p": 0.0}, "top_p"),
    "too long": ({"max_new_tokens": 300}, "max_new_tokens"),
    "no parquet": ({"output_path": "out.csv"}, "parquet"),
    "template without question": ({"prompt_template": "What?"}, "{question}"),
    "a column of labels": ({"answer_column": "majority_answer"}, "labels are written"),
    "bare text to a server": ({"engine": "openai", "use_chat_template": None}, "chat_template"),
    "no rows": ({"max_samples": 0}, "at least 1"),
    "a long name": ({"output_path": "x" * 250 + ".parquet"}, "too long"),
    "server without engine": ({"base_url": "http://localhost:1/v1"}, "engine"),
    "no such model": ({"model": "/nowhere/at/all"}, "nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_before_weights_are_loaded(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("probesweep.labelling.engines.local.LocalEngine.load", lambda _: pytest.fail("loads weights"))
    changed, words = BAD[name]
    done = run("label", *_flags({**given, **changed}))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert any(word in done.stderr for word in words.split("|")), done.stderr
    assert not given["output_path"].exists()


def test_empty_answers_are_refused_with_their_row(given: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "empty.parquet"
    pd.DataFrame({"question": QUESTIONS[:3], "answer": ["a", "", None]}).to_parquet(path)
    done = run("label", *_flags({**given, "dataset_path": path}))
    assert done.returncode == 2
    assert "row 1" in done.stderr


def test_a_verifier_that_raises_stops_with_the_row_or_is_null(given: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def judge(text, row):\n    if row['answer'] == 'c':\n        raise ValueError('no c')\n    return 0.5\n"
    )
    # Every third token ends an answer.
    folder = shutil.copytree(given["model"], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 400, 3))}))
    given |= {"verifier": f"python:{file}:judge", "truncated": "drop", "model": str(folder)}
    done = run("label", *_flags(given))
    assert done.returncode == 2
    assert "row 2" in done.stderr
    assert "no c" in done.stderr
    given["output_path"] = tmp_path / "other.parquet"
    done = run("label", *_flags(given), "--verify_errors", "null")
    assert done.returncode == 0, done.stderr
    frame = pd.read_parquet(given["output_path"])
    ended = [[one["finish_reason"] == "stop" for one in attempts] for attempts in frame["attempts"]]
    assert any(ended[2])
    assert frame["n_samples"].tolist() == [0 if row == 2 else sum(of_row) for row, of_row in enumerate(ended)]
    assert frame["n_correct"].dtype == float


def test_another_process_at_work_is_said(given: dict[str, Any]) -> None:
    from activation_store.files.durable import hidden_beside
    from probesweep.outputs import only_writer

    with only_writer(hidden_beside(given["output_path"], "lock"), given["output_path"]):
        done = run("label", *_flags(given))
    assert done.returncode == 2
    assert "process" in done.stderr


def test_other_tokens_that_end_an_answer_are_another_request(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = shutil.copytree(given["model"], tmp_path / "model")
    given["model"] = str(folder)
    _interrupt_at_commit(monkeypatch, 3, after=True)
    with pytest.raises(KeyboardInterrupt):
        Labelling(**given).run()
    monkeypatch.undo()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2, 3]}))
    with pytest.raises(RequestError, match=r"end_tokens \[1\], now \[1, 2, 3\]"):
        Labelling(**given).run()


def test_a_prompt_that_no_text_gives_has_none(
    given: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "control.parquet"
    pd.DataFrame({"question": ["Hi", "Hi <|im_end|>\n<|im_start|>user there"], "answer": "a"}).to_parquet(path)
    Labelling(**{**given, "dataset_path": path}).run()
    prompts = pd.read_parquet(given["output_path"])["formatted_prompt"]
    assert prompts.isna().tolist() == [False, True]
    assert "1 questions have control strings" in caplog.text
    done = run(
        "extract",
        "--model",
        given["model"],
        "--dataset_path",
        given["output_path"],
        "--output_path",
        tmp_path / "x.zarr",
    )
    assert done.returncode == 2
    assert "row 1" in done.stderr


def test_what_parquet_cannot_hold_is_said_before_the_model_runs(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("probesweep.labelling.engines.local.LocalEngine.load", lambda _: pytest.fail("loads weights"))
    path = tmp_path / "empty.jsonl"
    path.write_text('{"question": "one", "answer": "a", "meta": {}}\n')
    done = run("label", *_flags({**given, "dataset_path": path}))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "meta" in done.stderr


@pytest.mark.parametrize("body", ["import sys; sys.exit(0)", "return True, '\\ud800'"], ids=["exit", "surrogate"])
def test_a_function_of_the_user_can_do_what_it_wants(given: dict[str, Any], tmp_path: Path, body: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def judge(text, row):\n    {body}\n")
    folder = shutil.copytree(given["model"], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 400, 2))}))
    done = run("label", *_flags({**given, "model": folder, "verifier": f"python:{file}:judge"}))
    if "exit" in body:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "raised" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "?" in set(pd.read_parquet(given["output_path"])["majority_answer"])


def test_a_verifier_that_is_mended_judges_what_was_sampled(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(given["model"], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 400, 3))}))
    file = tmp_path / "mine.py"
    given |= {"model": str(folder), "verifier": f"python:{file}:judge"}
    good = "def judge(text, row):\n    return len(text) % 2 == 0, str(len(text))\n"
    file.write_text(good)
    Labelling(**given).run()
    expected = given["output_path"].read_bytes()
    # Wrong at first, and it raises in the last batch.
    last = len(QUESTIONS[progress_rows(given)[-1]])
    file.write_text(f"def judge(text, row):\n    assert len(row['question']) != {last}, 'broken'\n    return True\n")
    given["output_path"] = tmp_path / "again" / "out.parquet"
    with pytest.raises(RequestError, match="broken"):
        Labelling(**given).run()
    assert not progress_module.is_empty(progress_of(given["output_path"]))
    file.write_text(good)
    answered: list[tuple[int, ...]] = []
    answer = LocalEngine.answer

    def counted(engine: LocalEngine, batches: Any) -> Any:
        answered.extend(batches)
        return answer(engine, batches)

    monkeypatch.setattr(LocalEngine, "answer", counted)
    Labelling(**given).run()
    assert given["output_path"].read_bytes() == expected
    # Only what was not sampled yet.
    assert len(answered) == 1


def progress_rows(given: dict[str, Any]) -> list[int]:
    """The rows in the order of their batches: the longest prompts first."""
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    lengths = [len(tokenizer(question)["input_ids"]) for question in QUESTIONS]
    return sorted(range(len(QUESTIONS)), key=lambda row: -lengths[row])


def test_batches_can_be_made_smaller_after_an_interruption(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt_at_commit(monkeypatch, 3, after=True)
    with pytest.raises(KeyboardInterrupt):
        Labelling(**given).run()
    monkeypatch.undo()
    sizes: list[int] = []
    draw = Sampler.draw

    def watched(sampler: Sampler, prompts: Any, rows: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return draw(sampler, prompts, rows)

    monkeypatch.setattr(Sampler, "draw", watched)
    with pytest.raises(DeviceMemoryError, match="smaller batch_size"):
        Labelling(**given).run()
    Labelling(**{**given, "batch_size": 2}).run()
    assert max(sizes[1:]) == 2
    assert pd.read_parquet(given["output_path"])["n_samples"].tolist() == [4] * len(QUESTIONS)
