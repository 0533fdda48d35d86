"""Labels of others: the same columns, and one line for what is not understood."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from activation_store.questions.dataset import read_dataset
from probesweep.labelling.columns import ATTEMPT, FORMATTED_PROMPT, OUTCOME_COLUMNS
from probesweep.labelling.existing import read_existing
from probesweep_errors import ProbesweepError
from tests.helpers.commands import run

ALL = [*OUTCOME_COLUMNS, FORMATTED_PROMPT]


def rows_of(path: Path, **options: Any) -> dict[str, list]:
    """Columns of the labels of a file, which `extract` reads."""
    table = read_existing(path, **options).table
    assert table.schema.field("attempts").type == pa.list_(ATTEMPT)
    assert [name for name in table.column_names if name in ALL] == ALL
    written = path.with_name("labelled.parquet")
    pq.write_table(table, written)
    read_dataset(written, "question", ["n_samples"])
    return table.to_pydict()


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def attempts(*values: tuple) -> list[dict]:
    return [dict(zip([field.name for field in ATTEMPT], each, strict=True)) for each in values]


# Datasets


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize("kind", [bool, int, float])
def test_a_list_of_grades(tmp_path, ending, kind):
    path = tmp_path / f"d{ending}"
    table = pd.DataFrame({"question": ["a", "b"], "graded": [[kind(1), kind(0), kind(1)], [kind(0)]], "level": [1, 2]})
    table.to_parquet(path) if ending == ".parquet" else table.to_json(path, orient="records", lines=True)
    found = rows_of(path)
    assert list(found)[:3] == ["question", "graded", "level"]
    assert found["success_rate"] == [2 / 3, 0.0]
    assert (found["n_samples"], found["n_correct"]) == ([3, 1], [2, 0])
    assert found["attempts"][1] == attempts((None, None, 0.0, None, None))
    assert found["n_truncated"] == found["majority_answer"] == found[FORMATTED_PROMPT] == [None, None]
    assert read_existing(path).recognized == f"{path}: graded answers in the column 'graded'"


def test_a_list_of_structs_with_what_is_known_of_each_answer(tmp_path):
    answers = [
        {"text": "7.", "extracted": "7", "correct": True, "finish_reason": "stop", "n_tokens": 2},
        {"text": "It is 8", "extracted": "8", "correct": False, "finish_reason": "length", "n_tokens": 4},
        {"text": "7", "extracted": "7", "correct": True, "finish_reason": "stop", "n_tokens": 1},
        {"text": "?", "extracted": None, "correct": None, "finish_reason": "stop", "n_tokens": 1},
    ]
    path = write_lines(tmp_path / "d.jsonl", [{"question": "3 + 4", "answers": answers}])
    found = rows_of(path)
    assert found["success_rate"] == [2 / 3]
    assert (found["n_truncated"], found["majority_answer"], found["majority_is_correct"]) == ([1], ["7"], [True])
    assert found["attempts"][0][0] == {**answers[0], "correct": 1.0}
    assert rows_of(path, truncated="drop")["success_rate"] == [1.0]


@pytest.mark.parametrize("names", [("correct", "total"), ("n_correct", "n_samples"), ("n_correct", "total")])
@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_counts(tmp_path, names, ending):
    path = tmp_path / f"d{ending}"
    table = pd.DataFrame({"question": ["a", "b", "c"], names[0]: [3, 0, 0], names[1]: [4, 4, 0]})
    table.to_parquet(path) if ending == ".parquet" else table.to_csv(path, index=False)
    found = rows_of(path)
    assert found["success_rate"] == [0.75, 0.0, None]
    assert (found["n_correct"], found["n_samples"]) == ([3, 0, 0], [4, 4, 0])
    assert found["attempts"] == [None] * 3


def test_rates_with_their_numbers_of_samples():
    path = Path(__file__).parents[3] / "data/success_smollm2_test.parquet"
    shipped, found = pd.read_parquet(path), read_existing(path).table.to_pandas()
    np.testing.assert_array_equal(found["success_rate"], shipped["success_rate"])
    np.testing.assert_array_equal(found["n_correct"], shipped["success_rate"] * 8)
    assert found["n_correct"].dtype == np.int64
    assert list(found["answer"]) == list(shipped["answer"])


def test_what_labelling_wrote_stays_as_it_is(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"question": "a", "graded": [True, False]}])
    first = read_existing(path).table.drop_columns(["graded"])
    pq.write_table(first, tmp_path / "d.parquet")
    assert read_existing(tmp_path / "d.parquet", metric="attempts").table.equals(first)
    with pytest.raises(ProbesweepError, match="has several scores: attempts; n_correct; choose one with metric=NAME"):
        read_existing(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"correct": [5], "total": [4]},
            "row 0 has correct=5 and total=4; wanted is a number of answers, and how many",
        ),
        ({"correct": [1.0, None], "total": [4, 4]}, "row 1 has correct=None and total=4"),
        ({"correct": [1, 1], "total": [4, 2.5]}, "row 1 has correct=1 and total=2.5"),
        (
            {"graded": [[{"correct": 1}], [{"correct": 7}]]},
            "row 1 has the grade 7 in 'graded'; grades are true or false",
        ),
        (
            {"success_rate": [0.5, 0.33], "n_samples": [4, 3]},
            "row 1 has success_rate=0.33 and n_samples=3, which make no",
        ),
        (
            {"success_rate": [0.5, 0.6], "graded": [[1, 0], [1, 0]]},
            "row 1 has success_rate=0.6, and its grades make 0.5",
        ),
        ({"a": [[1, 0]], "b": [[1, 1]]}, "has several scores: a; b; choose one with metric=NAME"),
        (
            {"tokens": [[17, 4]], "level": [3]},
            "has no labels that are understood; it has question, tokens, level. Wanted",
        ),
    ],
)
def test_grades_that_make_no_sense(tmp_path, columns, message):
    path = tmp_path / "d.parquet"
    pd.DataFrame({"question": ["a", "b"][: len(next(iter(columns.values())))], **columns}).to_parquet(path)
    with pytest.raises(ProbesweepError) as raised:
        read_existing(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path))


def test_columns_that_are_not_there(tmp_path):
    path = tmp_path / "d.parquet"
    pd.DataFrame({"prompt": ["a"], "graded": [[True]]}).to_parquet(path)
    with pytest.raises(ProbesweepError, match="has no column 'question'; it has prompt, graded") as raised:
        read_existing(path)
    assert raised.value.argument == "question_column"
    with pytest.raises(ProbesweepError, match="has no column 'answer'") as raised:
        read_existing(path, question_column="prompt", answer_column="answer")
    assert raised.value.argument == "answer_column"
    with pytest.raises(ProbesweepError, match="there is no 'other'") as raised:
        read_existing(path, question_column="prompt", metric="other")
    assert raised.value.argument == "metric"


def test_the_command_says_which_flag_chooses_a_score(tmp_path):
    path, output = tmp_path / "d.parquet", tmp_path / "labels.parquet"
    pd.DataFrame({"question": ["q"], "a": [[1, 0]], "b": [[1, 1]]}).to_parquet(path)
    done = run("label", "--from", path, "--output_path", output)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {path} has several scores: a; b; choose one with --metric NAME\n",
    )
    done = run("label", "--from", path, "--metric", "a", "--output_path", output)
    assert done.returncode == 0, done.stderr
    assert pd.read_parquet(output)["success_rate"].tolist() == [0.5]


# lm-evaluation-harness


def sample(doc_id: int, response: str, score: float, **more: Any) -> dict:
    """As version 0.4.9 logs it."""
    return {
        "doc_id": doc_id,
        "doc": {"question": f"What is {doc_id} + 1?", "answer": f"#### {doc_id + 1}"},
        "target": f"#### {doc_id + 1}",
        "arguments": {"gen_args_0": {"arg_0": f"Q: What is {doc_id} + 1?\nA:", "arg_1": {"until": ["\n"]}}},
        "resps": [[response]],
        "filtered_resps": [response.split()[-1]],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "exact_match": score,
    } | more


def test_samples_of_the_harness_by_document(tmp_path):
    path = write_lines(
        tmp_path / "samples_gsm8k.jsonl",
        [
            sample(0, "It is 1", 1.0), sample(1, "It is 3", 0.0),
            sample(0, "no idea", 0.0, filtered_resps=["[invalid]"]), sample(1, "So 2", 1.0), sample(0, "1", 1.0),
        ],
    )  # fmt: skip
    found = rows_of(path)
    assert found["question"] == ["What is 0 + 1?", "What is 1 + 1?"]
    assert found["answer"] == ["#### 1", "#### 2"]
    assert found[FORMATTED_PROMPT] == ["Q: What is 0 + 1?\nA:", "Q: What is 1 + 1?\nA:"]
    assert found["success_rate"] == [2 / 3, 0.5]
    assert found["majority_answer"] == ["1", "3"]
    assert found["attempts"][0] == attempts(
        ("It is 1", "1", 1.0, None, None), ("no idea", None, 0.0, None, None), ("1", "1", 1.0, None, None)
    )
    assert (found["doc_id"], found["doc_hash"]) == ([0, 1], ["d", "d"])
    recognized = read_existing(path).recognized
    assert recognized == f"{path}: samples of lm-evaluation-harness, scored by exact_match, questions from 'question'"


def test_older_samples_and_multiple_choice(tmp_path):
    old = {
        "doc_id": 3, "doc": {"query": "Sky?", "choices": ["blue", "red"]}, "target": 0,
        "arguments": [["Sky? A:", " blue"], ["Sky? A:", " red"]], "resps": [[[-1.0, True]], [[-2.0, False]]],
        "filtered_resps": [[-1.0, True], [-2.0, False]], "acc": 1.0, "acc_norm": 0.0,
    }  # fmt: skip
    path = write_lines(tmp_path / "samples.jsonl", [old])
    with pytest.raises(ProbesweepError, match="has several scores: acc; acc_norm; choose one with metric=NAME"):
        read_existing(path)
    found = rows_of(path, metric="acc")
    assert (found["question"], found["answer"], found[FORMATTED_PROMPT]) == (["Sky?"], [0], ["Sky? A:"])
    assert found["attempts"] == [attempts((None, None, 1.0, None, None))]


def test_one_of_several_filters_counts(tmp_path):
    path = write_lines(
        tmp_path / "samples.jsonl", [sample(0, "It is 1", 0.0), sample(0, "It is 1", 1.0, filter="flexible-extract")]
    )
    with pytest.raises(ProbesweepError, match="scores: exact_match,strict-match; exact_match,flexible-extract; choose"):
        read_existing(path)
    with pytest.raises(ProbesweepError, match="there is no 'exact_match'"):
        read_existing(path, metric="exact_match")
    found = rows_of(path, metric="exact_match,flexible-extract")
    assert (found["success_rate"], found["n_samples"]) == ([1.0], [1])


def test_a_score_for_each_of_several_responses(tmp_path):
    several = {"resps": [["1", "2", "1"]], "filtered_resps": [["1", "2", "1"]]}
    path = write_lines(tmp_path / "samples.jsonl", [sample(0, "1", 0.0) | several | {"exact_match": [1, 0, 1]}])
    found = rows_of(path)
    assert (found["n_correct"], found["n_samples"], found["majority_answer"]) == ([2], [3], ["1"])
    one = write_lines(tmp_path / "one.jsonl", [sample(0, "1", 1.0), sample(1, "1", 1.0) | several])
    with pytest.raises(ProbesweepError, match="row 1 has 3 responses and 1 values of exact_match, which do not say"):
        read_existing(one)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([sample(0, "1", 34.2)], "without a score from 0 to 1 (it has exact_match); run the task with one"),
        (
            [sample(0, "1", 1.0), sample(0, "1", 1.0, doc={"question": "?"})],
            "rows 0 and 1 have the doc_id 0 and other doc",
        ),
        ([sample(0, "1", 1.0, doc={"a": "?", "b": 1})], "which key of doc holds the question? It has a, b"),
        ([sample(0, "1", 1.0, doc={"question": 7})], "row 0 has no question: doc['question'] is 7"),
        ([sample(0, "1", 1.0) | {"doc_id": None}], "row 0 has no doc_id"),
    ],
)
def test_samples_that_are_not_understood(tmp_path, rows, message):
    path = write_lines(tmp_path / "samples.jsonl", rows)
    with pytest.raises(ProbesweepError) as raised:
        read_existing(path)
    assert message in str(raised.value)


def test_the_key_of_the_question_can_be_named(tmp_path):
    path = write_lines(tmp_path / "samples.jsonl", [sample(0, "1", 1.0, doc={"a": "Really?"})])
    assert rows_of(path, question_column="a")["question"] == ["Really?"]


# Inspect


def epoch(sample_id: int, number: int, text: str, value: Any, **more: Any) -> dict:
    """A sample as the log of version 0.3 has it, without what is not read here."""
    return {
        "id": sample_id,
        "epoch": number,
        "input": f"What is {sample_id} + 1?",
        "target": str(sample_id + 1),
        "messages": [],
        "output": {
            "model": "m",
            "choices": [{"message": {"role": "assistant", "content": text}, "stop_reason": "stop"}],
            "usage": {"input_tokens": 9, "output_tokens": len(text), "total_tokens": 9 + len(text)},
        },
        "scores": {"match": {"value": value, "answer": text.split()[-1]}},
        "metadata": {"level": sample_id + 3, "answer": {}},
    } | more


def write_log(path: Path, samples: list[dict]) -> Path:
    log = {
        "version": 2,
        "status": "success",
        "eval": {
            "run_id": "r", "created": "2026-11-01T10:00:00+00:00", "task": "sums", "task_id": "t",
            "dataset": {}, "model": "mockllm/model", "config": {},
        },
        "samples": samples,
    }  # fmt: skip
    path.write_text(json.dumps(log))
    return path


@pytest.fixture(params=["stand-in", "inspect_ai"])
def reader(request, monkeypatch):
    """Inspect's reader where it is installed, and one that knows as much of its logs as is read here."""
    if request.param == "inspect_ai":
        pytest.importorskip("inspect_ai")
        return
    module = types.ModuleType("inspect_ai.log")
    module.read_eval_log = lambda path, resolve_attachments: as_log(json.loads(Path(path).read_text()))
    monkeypatch.setitem(sys.modules, "inspect_ai", types.ModuleType("inspect_ai"))
    monkeypatch.setitem(sys.modules, "inspect_ai.log", module)


def as_log(log: dict) -> types.SimpleNamespace:
    samples = []
    for sample in log["samples"]:
        output, scores = dict(sample["output"]), sample["scores"] or {}
        [choice] = output["choices"] or [{"message": {"content": ""}, "stop_reason": "unknown"}]
        usage = types.SimpleNamespace(**output["usage"]) if output["usage"] else None
        told = {"completion": choice["message"]["content"], "stop_reason": choice["stop_reason"], "usage": usage}
        read = {
            "output": types.SimpleNamespace(**output | told),
            "scores": {name: types.SimpleNamespace(**{"answer": None} | score) for name, score in scores.items()},
        }
        if isinstance(sample["input"], list):
            messages = [types.SimpleNamespace(role=one["role"], text=one["content"]) for one in sample["input"]]
            read["input"] = messages
        samples.append(types.SimpleNamespace(**sample | read))
    return types.SimpleNamespace(status=log["status"], samples=samples)


def cut_off(sample: dict) -> dict:
    sample["output"]["choices"][0]["stop_reason"] = "max_tokens"
    return sample


@pytest.mark.usefixtures("reader")
def test_a_log_of_inspect_by_sample(tmp_path):
    failed = epoch(1, 2, "-", None, scores=None, output={"model": "m", "choices": [], "usage": None})
    samples = [
        epoch(0, 1, "It is 1", "C"), epoch(1, 1, "It is 3", "I"), cut_off(epoch(0, 2, "It is 2", "P")), failed,
        epoch(0, 3, "1", 1),
    ]  # fmt: skip
    path = write_log(tmp_path / "log.json", samples)
    found = rows_of(path)
    assert (found["question"], found["answer"]) == (["What is 0 + 1?", "What is 1 + 1?"], ["1", "2"])
    assert (found["id"], found["level"], found["metadata_answer"]) == ([0, 1], [3, 4], ["{}", "{}"])
    assert (found["n_correct"], found["n_samples"], found["n_truncated"]) == ([2.5, 0.0], [3, 1], [1, None])
    assert found["attempts"][0] == attempts(
        ("It is 1", "1", 1.0, "stop", 7), ("It is 2", "2", 0.5, "length", 7), ("1", "1", 1.0, "stop", 1)
    )
    assert found["attempts"][1][1] == attempts((None, None, None, None, None))[0]
    assert read_existing(path).recognized == f"{path}: a log of Inspect, scored by match"


@pytest.mark.usefixtures("reader")
def test_conversations_and_several_targets(tmp_path):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1 + 1?"}]
    path = write_log(
        tmp_path / "log.json", [epoch(0, 1, "2", "C", input=messages, target=["2", "two"]), epoch(1, 1, "2", "C")]
    )
    found = rows_of(path)
    assert found["question"] == [messages, [{"role": "user", "content": "What is 1 + 1?"}]]
    assert found["answer"] == [["2", "two"], ["2"]]


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": {"value": "C"}, "b": {"value": {"x": 1, "y": 0}}}, "has several scores: a; b.x; b.y; choose one with"),
        (
            {"a": {"value": 7}},
            "sample 0, epoch 1, has the score 7; scores must be C, P, I or N, true or false, or numb",
        ),
        ({"a": {"value": "maybe"}}, "has the score 'maybe'"),
        (None, "is a log of Inspect without scores"),
    ],
)
def test_logs_that_are_not_understood(tmp_path, scores, message):
    path = write_log(tmp_path / "log.json", [epoch(0, 1, "1", "C", scores=scores)])
    with pytest.raises(ProbesweepError) as raised:
        read_existing(path)
    assert message in str(raised.value)


def test_without_inspect_its_package_is_named(tmp_path, monkeypatch):
    for module in ("inspect_ai", "inspect_ai.log"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("log.json", "log.eval"):
        path = write_log(tmp_path / name, [epoch(0, 1, "1", "C")])
        with pytest.raises(ProbesweepError, match="is a log of Inspect, and inspect_ai is not installed; pip install"):
            read_existing(path)
