"""A trained probe on new prompts gives what the training's own files say, from the model up."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from activation_store import ActivationStore, InputError
from activation_store.capture.session import LoadedModel
from activation_store.errors import NonFiniteError
from gpu_probes import ProbeError
from gpu_probes.errors import ProbeWarning
from probesweep import Probe, RequestError
from probesweep.use.card import Card
from probesweep.use.scored_datasets import score_dataset, score_texts
from tests.helpers.commands import run, run_forked
from tests.helpers.models import QUESTIONS, save_model
from tests.helpers.result_folders import sign

pytestmark = pytest.mark.slow

N_TRAIN, N_TEST = 44, 22


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model) -> Path:
    """Stores of a tiny model with three labels: numbers, two classes, three classes."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(3)
    for split, copies in {"train": 4, "test": 2}.items():
        questions = [f"{question} ({split} {copy})" for copy in range(copies) for question in QUESTIONS]
        size = np.array([len(question) for question in questions])
        pd.DataFrame(
            {
                "question": questions,
                "success_rate": size / size.max() + 0.1 * rng.random(len(size)),
                "long": (size + rng.normal(0, 10, len(size)) > np.median(size)).astype(int),
                "kind": np.arange(len(size)) % 3,
            }
        ).to_parquet(folder / f"{split}.parquet")
        labels = [word for label in ("success_rate", "long", "kind") for word in ("--label_column", label)]
        done = run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", folder / f"{split}.parquet", "--output_path",
            folder / f"{split}.zarr", "--use_chat_template", "--layers", "0,1,3", *labels,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def train(folder, tmp_path_factory) -> Callable[..., Path]:
    """Result folder of a training on a label, made once for the same options; not to be changed."""

    @cache
    def results(label: str, *options: str) -> Path:
        output = tmp_path_factory.mktemp("results")
        done = run(
            "train", "--train_activations", folder / "train.zarr", "--test_activations", folder / "test.zarr",
            "--output_dir", output, "--label_column", label, "--k_fold", "--alphas", "0.1,10", "--no_nested_cv",
            *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return output

    return results


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def prompts(folder: Path) -> list[str]:
    return pd.read_parquet(folder / "test.parquet")["question"].tolist()


@pytest.mark.parametrize("label", ["success_rate", "long", "kind"])
def test_predictions_are_those_of_the_stored_activations(folder, train, label):
    results = train(label)
    found = Probe.load(results).predict(prompts(folder))
    expected = np.array(read(results / "best_probe_predictions.json")["test_predictions"])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("join", ["layers", "mean", "1@-1,3@-2"])
def test_joined_cells(folder, train, join):
    results = train("success_rate", "--join", join)
    expected = read(results / "best_probe_predictions.json")["test_predictions"]
    np.testing.assert_allclose(Probe.load(results).predict(prompts(folder)), expected, rtol=1e-4, atol=1e-5)


def test_numbers_are_calibrated_on_the_line_through_cross_validated_predictions(folder, train):
    results = train("success_rate")
    probe = Probe.load(results)
    best = read(results / "best_probe_predictions.json")
    slope, intercept = np.polyfit(best["cv_predictions"], best["train_actual"], 1)
    texts = prompts(folder)
    np.testing.assert_allclose(probe.score(texts), slope * probe.predict(texts) + intercept, rtol=1e-9)
    assert np.linalg.norm(probe.direction) == pytest.approx(1)
    np.testing.assert_allclose(probe.direction[0] * np.linalg.norm(best["probe_weights"]), best["probe_weights"])


def test_two_classes_are_calibrated_by_platt_scaling(folder, train):
    results = train("long")
    probe = Probe.load(results)
    platt = read(results / "inference.json")["platt"]
    texts = prompts(folder)
    expected = expit(platt["slope"] * logit(probe.predict(texts)) + platt["intercept"])
    np.testing.assert_allclose(probe.score(texts), expected, rtol=1e-9)
    assert probe.classes == (0.0, 1.0)


def test_scores_rank_as_decision_values_where_probabilities_round_to_one(folder, train):
    """A small penalty makes decision values large."""
    results = train("long", "--alphas", "1e-9", "--probe", "lda")
    probe, rows = Probe.load(results), pd.read_parquet(folder / "test.parquet")
    decision = probe.decide(rows["question"].tolist())
    calibrated = probe.calibrate(decision)[:, 0]
    assert len(np.unique(expit(decision))) < len(np.unique(decision))
    np.testing.assert_array_equal(stats.rankdata(calibrated), stats.rankdata(decision[:, 0]))
    assert roc_auc_score(rows["long"], calibrated) == pytest.approx(Card.load(results).scores.test, abs=1e-12)


@pytest.mark.parametrize("label", ["long", "kind"])
def test_the_column_of_ranks_has_the_roc_auc_of_the_card(folder, train, tmp_path, label):
    """Also where probabilities round to 1: there is next to no scatter within classes, so decision values are large."""
    results = train(label, "--alphas", "1e-9", "--probe", "lda")
    score_dataset(Probe.load(results), folder / "test.parquet", tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet")
    classes = [""] if label == "long" else ["_0", "_1", "_2"]
    ranks = table[[f"probe_rank{name}" for name in classes]]
    areas = [
        roc_auc_score(table[label] == (k if len(classes) > 1 else 1), column)
        for k, column in enumerate(ranks.to_numpy().T)
    ]
    assert np.mean(areas) == pytest.approx(Card.load(results).scores.test, abs=1e-12)
    if len(classes) > 1:
        probabilities = np.array(read(results / "best_probe_predictions.json")["test_predictions"])
        assert len(np.unique(probabilities)) < ranks.stack().nunique() == ranks.size


@pytest.mark.parametrize("decision", [[[1e3], [1e4], [5e4]], [[100.0, 0, -50], [60, 0, -20], [40, 0, 0]]])
def test_prompts_far_out_have_ranks_of_their_own(train, decision, monkeypatch):
    probe = Probe.load(train("long" if len(decision[0]) == 1 else "kind"))
    monkeypatch.setattr(Probe, "decide", lambda *_: np.array(decision, dtype=np.float64))
    scores = score_texts(probe, ["a", "b", "c"]).scores
    names = [name for name in scores if name.startswith("probe_rank")]
    assert len(names) == len(decision[0])
    assert [scores[names[0]][row] for row in range(3)] == pytest.approx(
        [row[0] - max(row[1:], default=0) for row in decision], abs=1
    )
    assert set(scores[names[0].replace("rank", "score")]) == {1.0}


def test_a_probe_without_a_calibration_says_so_and_gives_its_predictions(folder, train, tmp_path):
    shutil.copytree(train("long"), tmp_path / "results")
    none = {"slope": None, "intercept": None, "reason": "labels do not rise"}
    for name, changes in (("probe.json", {"calibration": {"kind": None, **none}}), ("inference.json", {"platt": none})):
        document = read(tmp_path / "results" / name)
        (tmp_path / "results" / name).write_text(json.dumps(document | changes))
    sign(tmp_path / "results")
    with pytest.warns(ProbeWarning, match="results: scores are not calibrated: labels do not rise"):
        probe = Probe.load(tmp_path / "results")
    texts = prompts(folder)[:3]
    np.testing.assert_array_equal(probe.score(texts), probe.predict(texts))


def test_one_prompt_and_many_agree_and_the_model_is_loaded_once(folder, train):
    probe = Probe.load(train("success_rate"), batch_size=5)
    texts = prompts(folder)
    together = probe.score(texts)
    one_by_one = np.concatenate([probe.score([text]) for text in texts])
    np.testing.assert_allclose(one_by_one, together, rtol=1e-4, atol=1e-5)
    assert probe._loaded is probe._loaded
    assert len(probe.score([])) == 0
    with pytest.raises(RequestError, match="brackets"):
        probe.score("Hi")


def test_the_command_adds_columns_to_the_dataset(folder, train, tmp_path):
    results = train("success_rate")
    for suffix, reader in {
        "parquet": pd.read_parquet,
        "csv": pd.read_csv,
        "jsonl": lambda path: pd.read_json(path, lines=True),
    }.items():
        output = tmp_path / f"new/scores.{suffix}"
        done = run("predict", "--probe", results, "--dataset", folder / "test.parquet", "--output", output)
        assert done.returncode == 0, done.stderr
        assert f"{N_TEST} rows" in done.stdout
        table, given = reader(output), pd.read_parquet(folder / "test.parquet")
        assert list(table) == [*given, "probe_score", "probe_prediction"]
        np.testing.assert_allclose(table["success_rate"], given["success_rate"])
        expected = read(results / "best_probe_predictions.json")["test_predictions"]
        assert stats.spearmanr(table["probe_score"], expected).statistic == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(table["probe_prediction"], expected, rtol=1e-4, atol=1e-5)
    again = run(
        "predict", "--probe", results, "--dataset", tmp_path / "new/scores.parquet", "--output", tmp_path / "b.parquet"
    )
    assert again.returncode == 2
    assert "has a column 'probe_score' already" in again.stderr
    assert not (tmp_path / "b.parquet").exists()


@pytest.mark.parametrize(
    ("column", "values", "suffix", "wrong"),
    [
        ("probe_score", [1.0], "csv", "has a column 'probe_score' already"),
        ("notes", [["a", "b"]], "csv", "column 'notes' holds list<.*>, which CSV cannot hold; write .parquet"),
        ("notes", [{"a": [1]}], "csv", "column 'notes' holds struct<.*>, which CSV cannot hold"),
        ("notes", [b"\xff"], "csv", "column 'notes' .binary. has bytes, which CSV cannot hold"),
        ("notes", [float("inf")], "jsonl", "column 'notes' has a NaN or infinity, which JSON cannot hold"),
        ("notes", [[1.0, float("inf")]], "jsonl", "column 'notes' has a NaN or infinity, which JSON cannot hold"),
        ("notes", [b"a"], "jsonl", "column 'notes' has bytes b'a', which JSON cannot hold; write .parquet"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_model_runs(train, tmp_path, column, values, suffix, wrong):
    probe = Probe.load(train("success_rate"))
    pd.DataFrame({"question": ["Hi"], column: values}).to_parquet(tmp_path / "given.parquet")
    with pytest.raises((InputError, RequestError), match=wrong):
        score_dataset(probe, tmp_path / "given.parquet", tmp_path / f"scores.{suffix}")
    assert "_loaded" not in vars(probe)
    assert not (tmp_path / f"scores.{suffix}").exists()


SCORES = ["probe_score", "probe_prediction"]
FIELDS = {
    "id": ["007", "0007", "7"],
    "long": ["12345678901234567890123", "1", ""],
    "flag": ["FALSE", "TRUE", "true"],
    "price": ["1.10", "1.1", "1e-3"],
    "note": ["", "a\r\nb", 'say "hi", x'],
    "word": ["nan", "nan", "nan"],
    "digits": ["\u0661", "1_000", "+1"],
    "whole": ["5", "-6", "0"],
    "part": ["0.25", "1e+16", "-0.0"],
    "big": ["9223372036854775807", "-9223372036854775808", "1"],
    "gap": ["1", "", "3"],
    "day": ["2024-01-01", "2024-1-1", ""],
}


@pytest.fixture(scope="module")
def probe(train) -> Probe:
    return Probe.load(train("success_rate"))


@pytest.fixture
def fields(tmp_path) -> Path:
    """A CSV file of columns that a reader could change; questions that look like numbers."""
    with (tmp_path / "given.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["question", *FIELDS], *zip(["5", "6", "7"], *FIELDS.values(), strict=True)])
    return tmp_path / "given.csv"


def test_columns_of_a_csv_file_are_the_same_text_in_another(probe, fields, tmp_path):
    scored = score_dataset(probe, fields, tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file, strict=True))
    assert list(written[0]) == scored.columns == ["question", *FIELDS, *SCORES]
    assert {name: [row[name] for row in written] for name in FIELDS} == FIELDS
    assert {name: [float(row[name]) for row in written] for name in SCORES} == scored.scores


def test_an_empty_field_and_an_empty_text_stay_apart(probe, tmp_path):
    (tmp_path / "given.csv").write_text('a,question,,\n,x,1,\n"",y,,2\n')
    score_dataset(probe, tmp_path / "given.csv", tmp_path / "s.csv")
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [["", '"x"', '"1"', ""], ['""', '"y"', "", '"2"']]
    # Elsewhere columns need names of their own.
    for suffix in ("jsonl", "parquet"):
        with pytest.raises(InputError, match="has several columns ''; rename all but one"):
            score_dataset(probe, tmp_path / "given.csv", tmp_path / f"t.{suffix}")


def test_columns_of_a_csv_file_become_numbers_only_where_nothing_is_lost(probe, fields, tmp_path):
    score_dataset(probe, fields, tmp_path / "s.parquet")
    score_dataset(probe, fields, tmp_path / "s.jsonl")
    expected = {name: [text or None for text in texts] for name, texts in FIELDS.items()}
    expected |= {
        "whole": [5, -6, 0],
        "part": [0.25, 1e16, -0.0],
        "big": [2**63 - 1, -(2**63), 1],
        "gap": [1, None, 3],
        "question": ["5", "6", "7"],
    }
    table = pq.read_table(tmp_path / "s.parquet")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    for name, values in expected.items():
        assert repr(table[name].to_pylist()) == repr([row[name] for row in rows]) == repr(values)


JSON_ROWS = [
    '{"question": "é", "id": 12345678901234567890123, "x": 1.10, "meta": null, "source": "book 0"}',
    '{"meta": {"a": [1, "b", null], "n": {"a": 1e400}},   "source": 1, "question": "\\u00e9", "x": NaN}',
    '{"question": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "x": true}',
    '{"question": "d", "lone": "\\ud800", "source": [1, {}], "x": -Infinity, "": 0}',
]


@pytest.mark.parametrize("end", ["\n", "\r\n\r\n"])
def test_lines_of_json_go_out_as_they_came_in(probe, tmp_path, end):
    (tmp_path / "given.jsonl").write_bytes(("\ufeff" + end.join(JSON_ROWS) + end).encode())
    scored = score_dataset(probe, tmp_path / "given.jsonl", tmp_path / "s.jsonl")
    assert scored.columns == ["question", "id", "x", "meta", "source", "lone", "", *SCORES]
    lines = (tmp_path / "s.jsonl").read_bytes().decode().removesuffix("\n").split("\n")
    for line, given, scores in zip(lines, JSON_ROWS, scored.records(), strict=True):
        assert line.startswith(given[:-1] + ", ")
        assert list(json.loads(line).items())[-2:] == list(scores.items())


def test_a_json_array_goes_out_as_lines(probe, tmp_path):
    rows = [{"question": "a", "id": 10**22, "x": [None, 0.1]}, {"question": "b", "id": "\ud800\n"}]
    (tmp_path / "given.json").write_text(json.dumps(rows, indent=2))
    score_dataset(probe, tmp_path / "given.json", tmp_path / "s.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in given} for row, given in zip(lines, rows, strict=True)] == rows


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        (["book", 1], "mixes types"),
        ([0.5, True], "mixes types"),
        ([[0.5], [True]], "mixes types"),
        ([{"a": 0.5}, {"a": True}], "mixes types"),
        ([10**22, 1], "whole numbers beyond int64"),
        ([2**64 - 1, 0.5], r"fractions next to whole numbers beyond 2 \*\* 53"),
        ([-1, 2**63], "whole numbers beyond int64"),
        ([{"a": 2**64}, {}], "whole numbers beyond int64"),
        ([2**53 + 1, 0.5], r"fractions next to whole numbers beyond 2 \*\* 53"),
        (["\ud800", "a"], "half of a surrogate pair"),
        ([{}, {}], "parquet cannot hold"),
    ],
)
def test_what_parquet_cannot_hold_can_be_written_as_json_lines(probe, tmp_path, values, wrong):
    rows = [{"question": "a", "x": value} for value in values]
    (tmp_path / "given.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=rf"{wrong}.*write \.jsonl") as caught:
        score_dataset(probe, tmp_path / "given.jsonl", tmp_path / "s.parquet")
    assert "make all of them numbers" not in str(caught.value)
    assert not (tmp_path / "s.parquet").exists()
    score_dataset(probe, tmp_path / "given.jsonl", tmp_path / "s.jsonl")
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 2


NUMBERS = ["1e400", "-0", "3.14159265358979323846264338", "1.10", "1E5", "NaN", "-0.0", "12345678901234567890123"]


@pytest.mark.parametrize("kind", ["array", "pretty array", "lines"])
def test_numbers_of_json_go_out_as_they_are_written(probe, tmp_path, kind):
    break_ = "\r\n\t" if kind == "pretty array" else ""
    rows = [f'{{{break_}"question": "a", {break_}"x": {number}, "n": [{number}]{break_}}}' for number in NUMBERS]
    given = tmp_path / "given.json"
    given.write_bytes(("\n".join(rows) if kind == "lines" else f" [ {' , '.join(rows)} ]\n").encode())
    score_dataset(probe, given, tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_bytes().decode().removesuffix("\n").split("\n")
    space = "" if break_ else " "
    starts = [f'{{"question": "a",{space}"x": {number}, "n": [{number}], "probe_score": ' for number in NUMBERS]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    given.write_bytes(re.sub(rb', "n": \[.*?\]', b"", given.read_bytes()))
    score_dataset(probe, given, tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as file:
        assert [row["x"] for row in csv.DictReader(file)] == NUMBERS
    with pytest.raises(InputError, match=r"row 0 has 1e400, which is beyond the range of parquet; write \.jsonl"):
        score_dataset(probe, given, tmp_path / "s.parquet")


def test_an_object_without_keys_stays_json(probe, tmp_path):
    (tmp_path / "given.jsonl").write_text('{"question": "a" }\n{}\n{ }\n')
    score_dataset(probe, tmp_path / "given.jsonl", tmp_path / "s.jsonl", on_error="null")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [row["probe_score"] is None for row in rows] == [False, True, True]
    assert [list(row) for row in rows[1:]] == [[*SCORES, "probe_error"]] * 2


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (pa.time64("ns"), "00:00:01.000000001"),
        (pa.timestamp("ns"), "1970-01-01 00:00:01.000000001"),
        (pa.timestamp("ns", "Europe/Oslo"), "1970-01-01 01:00:01.000000001+01:00"),
        (pa.duration("ns"), "0 days 00:00:01.000000001"),
    ],
)
def test_nanoseconds_are_written_as_json(probe, tmp_path, kind, text):
    nested = [
        (pa.list_(pa.struct([("a", kind)])), [{"a": 10**9 + 1}], [{"a": text}]),
        (pa.list_(kind, 1), [10**9 + 1], [text]),
        (pa.large_list(kind), [None, 10**9 + 1], [None, text]),
        (kind, 10**9 + 1, text),
    ]
    columns = {f"c{place}": pa.array([value, None], kind) for place, (kind, value, _) in enumerate(nested)}
    pq.write_table(pa.table({"question": ["a", "b"], **columns}), tmp_path / "given.parquet")
    score_dataset(probe, tmp_path / "given.parquet", tmp_path / "s.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [rows[0][name] for name in columns] == [written for *_, written in nested]
    assert [rows[1][name] for name in columns] == [None] * len(nested)


def test_whole_numbers_of_json_up_to_64_bits_have_a_type_in_parquet(probe, tmp_path):
    rows = [{"question": "a", "x": 2**64 - 1}, {"question": "b", "x": None}, {"question": "c", "x": 1}]
    (tmp_path / "given.jsonl").write_text("\n".join(map(json.dumps, rows)))
    score_dataset(probe, tmp_path / "given.jsonl", tmp_path / "s.parquet")
    column = pq.read_table(tmp_path / "s.parquet")["x"]
    assert column.type == pa.uint64()
    assert column.to_pylist() == [2**64 - 1, None, 1]


def test_scalars_of_json_are_written_into_csv_as_they_are(probe, tmp_path):
    rows = [{"question": "a", "x": value} for value in [10**22, "007", None, True, 0.1, "", 2**53 + 1]]
    (tmp_path / "given.jsonl").write_text("\n".join(map(json.dumps, rows)))
    score_dataset(probe, tmp_path / "given.jsonl", tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as file:
        found = [row["x"] for row in csv.DictReader(file)]
    assert found == ["10000000000000000000000", "007", "", "true", "0.1", "", "9007199254740993"]
    (tmp_path / "given.jsonl").write_text('{"question": "a", "x": "\\ud800"}')
    with pytest.raises(InputError, match=r"half of a surrogate pair, which CSV cannot hold .*; write \.jsonl"):
        score_dataset(probe, tmp_path / "given.jsonl", tmp_path / "s.csv")
    (tmp_path / "given.jsonl").write_text('{"question": "a", "x": "b"}\n{"question": "a", "x": [1]}')
    with pytest.raises(InputError, match=r"row 1 has a list or an object in 'x', which CSV cannot hold; write \.jsonl"):
        score_dataset(probe, tmp_path / "given.jsonl", tmp_path / "s.csv")


def test_columns_of_parquet_keep_their_types(probe, tmp_path):
    values = {
        "question": (pa.string(), ["a", "b"]),
        "word": (pa.dictionary(pa.int8(), pa.string(), ordered=True), ["x", None]),
        "when": (pa.timestamp("ns", "Europe/Oslo"), [1, None]),
        "price": (pa.decimal128(20, 2), [Decimal("1.10"), None]),
        "large": (pa.decimal256(60, 3), [Decimal("1.100"), None]),
        "nested": (pa.list_(pa.struct([("a", pa.int8()), ("b", pa.large_string())])), [[{"a": 1, "b": None}], []]),
        "map": (pa.map_(pa.string(), pa.int32()), [[("k", None)], None]),
        "pair": (pa.list_(pa.float32(), 2), [[1, 2], None]),
        "view": (pa.string_view(), ["007", ""]),
        "bytes": (pa.binary(), [b"\xff", None]),
        "half": (pa.float16(), [0.5, float("nan")]),
        "unsigned": (pa.uint64(), [2**64 - 1, 0]),
        "none": (pa.null(), [None, None]),
    }
    fields = [pa.field(name, kind, metadata={"unit": name}) for name, (kind, _) in values.items()]
    schema = pa.schema([*fields, pa.field("must", pa.int32(), nullable=False)], metadata={"made": "by hand"})
    columns = [pa.array(given, kind) for kind, given in values.values()]
    pq.write_table(pa.table([*columns, pa.array([1, 2], pa.int32())], schema=schema), tmp_path / "given.parquet")
    score_dataset(probe, tmp_path / "given.parquet", tmp_path / "s.parquet")
    given, written = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("given", "s"))
    assert written.column_names == [*given.column_names, *SCORES]
    kept = written.select(given.column_names)
    assert kept.schema.equals(given.schema, check_metadata=True)
    assert repr(kept.to_pylist()) == repr(given.to_pylist())


def test_a_date_that_python_does_not_know_is_refused_where_it_has_to(probe, tmp_path):
    pq.write_table(
        pa.table({"question": ["a"], "when": pa.array([2**48], pa.timestamp("ms"))}), tmp_path / "given.parquet"
    )
    with pytest.raises(InputError, match=r"column 'when' \(timestamp\[ms\]\) cannot be read: "):
        score_dataset(probe, tmp_path / "given.parquet", tmp_path / "s.jsonl")
    score_dataset(probe, tmp_path / "given.parquet", tmp_path / "s.parquet")
    assert pq.read_table(tmp_path / "s.parquet")["when"].cast(pa.int64()).to_pylist() == [2**48]


def test_an_index_of_pandas_is_kept(probe, tmp_path):
    frame = pd.DataFrame(
        {"question": ["a", "b"], "kind": pd.Categorical(["x", "y"])}, index=pd.Index([7, 9], name="at")
    )
    frame.to_parquet(tmp_path / "given.parquet")
    score_dataset(probe, tmp_path / "given.parquet", tmp_path / "s.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "s.parquet")[["question", "kind"]], frame)


def test_conversations_of_parquet_are_written_as_json_without_padding(probe, tmp_path):
    user = {"role": "user", "content": "Hi"}
    calls = [{"function": {"name": name, "arguments": {name: 1}}} for name in ("f", "g")]
    questions = [[user, {"role": "assistant", "content": "", "tool_calls": [call]}, user] for call in calls]
    pq.write_table(pa.table({"question": questions, "note": [None, "a"]}), tmp_path / "given.parquet")
    score_dataset(probe, tmp_path / "given.parquet", tmp_path / "s.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == questions
    assert [row["note"] for row in rows] == [None, "a"]


def test_several_classes_get_a_column_each(folder, train, tmp_path):
    probe = Probe.load(train("kind"))
    scored = score_dataset(probe, folder / "test.parquet", tmp_path / "s.parquet")
    columns = ["probe_score_0", "probe_score_1", "probe_score_2"]
    assert scored.columns[-6:] == [*columns, "probe_rank_0", "probe_rank_1", "probe_rank_2"]
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert list(table) == scored.columns
    pd.testing.assert_frame_equal(table[scored.columns[-6:]], pd.DataFrame(scored.scores))
    np.testing.assert_allclose(table[columns].sum(axis=1), 1)


def test_large_classes_keep_their_names(train):
    probe = Probe.load(train("kind"))
    probe = replace(probe, card=replace(probe.card, classes=[1000001.0, 1000002.0, 0.1]))
    names = score_texts(probe, ["Hi"]).columns
    classes = ["1000001", "1000002", "0.1"]
    assert names == ["text", *(f"probe_{what}_{name}" for what in ("score", "rank") for name in classes)]


def test_text_is_scored_at_the_terminal(train):
    results = train("success_rate")
    done = run("predict", "--probe", results, "--text", "Hi", "--text", "What is 2 + 3?", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["text"] for row in rows] == ["Hi", "What is 2 + 3?"]
    np.testing.assert_allclose(
        [row["probe_score"] for row in rows], Probe.load(results).score(["Hi", "What is 2 + 3?"]), rtol=1e-6
    )
    assert "probe_score" in run("predict", "--probe", results, "--text", "Hi").stdout


def test_only_the_model_of_the_training_is_read(train, tmp_path, tiny_model):
    results = train("success_rate")
    moved = shutil.copytree(tiny_model("llama"), tmp_path / "moved")
    np.testing.assert_array_equal(
        Probe.load(results, model=str(moved)).score(["Hi"]), Probe.load(results).score(["Hi"])
    )
    save_model(tmp_path / "other", "qwen2")
    done = run("predict", "--probe", results, "--text", "Hi", "--model", tmp_path / "other")
    assert done.returncode == 2
    assert "has another weights" in done.stderr


def test_what_has_no_probe_or_no_prompts_is_refused(folder, tmp_path):
    done = run(
        "train", "--train_activations", folder / "train.zarr", "--test_activations", folder / "test.zarr",
        "--output_dir", tmp_path / "plain", "--label_column", "long",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(RequestError, match="has no best probe: it was trained without k_fold=True"):
        Probe.load(tmp_path / "plain")
    with pytest.raises(RequestError, match="holds no finished training"):
        Probe.load(tmp_path)
    for split in ("train", "test"):
        assert run("export", folder / f"{split}.zarr", tmp_path / f"{split}.pt").returncode == 0
    done = run(
        "train", "--train_activations", tmp_path / "train.pt", "--test_activations", tmp_path / "test.pt",
        "--output_dir", tmp_path / "pt", "--k_fold",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(RequestError, match="does not say how its prompts were made"):
        Probe.load(tmp_path / "pt")


def test_a_card_of_another_format_is_refused(train, tmp_path):
    results = shutil.copytree(train("success_rate"), tmp_path / "copy")
    card = read(results / "probe.json")
    for text, reason in (
        (json.dumps({**card, "format_version": 99}), "has format 99"),
        ("[]", "not a JSON object"),
        (json.dumps({**card, "layer": None}), "layer"),
    ):
        (results / "probe.json").write_text(text)
        with pytest.raises(ProbeError, match=r"does not match run\.json next to it"):
            Probe.load(results)
        # A stranger's folder can hold anything under the right hash.
        sign(results)
        with pytest.raises((ProbeError, RequestError), match=reason):
            Probe.load(results)


LONG = "word " * 400


@pytest.fixture
def odd(tmp_path) -> Path:
    """Six rows, of which four cannot be scored."""
    questions: list[Any] = ["Hi", LONG, None, "How are you?", 7, [{"role": "assistant", "content": "Hi"}]]
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"id": n, "question": text}) + "\n" for n, text in enumerate(questions)))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_bad_rows_are_null_with_a_reason_and_the_others_as_ever(train, odd, tmp_path, suffix):
    probe = Probe.load(train("success_rate"))
    output = tmp_path / f"scores.{suffix}"
    if suffix != "jsonl":
        rows = [{"id": n, "question": text} for n, text in enumerate(["Hi", LONG, None, "How are you?", "", None])]
        odd = tmp_path / "odd.parquet"
        pd.DataFrame(rows).to_parquet(odd)
    scored = score_dataset(probe, odd, output, on_error="null")
    readers = {"jsonl": lambda path: pd.read_json(path, lines=True), "csv": pd.read_csv, "parquet": pd.read_parquet}
    table = readers[suffix](output)
    usable = [0, 3] if suffix == "jsonl" else [0, 3, 4]
    assert np.flatnonzero(table["probe_score"].notna()).tolist() == usable
    assert np.flatnonzero(table["probe_error"].isna()).tolist() == usable
    texts = ["Hi", "", "", "How are you?", ""]
    expected = [probe.score([texts[row]])[0] for row in usable]
    np.testing.assert_allclose(table["probe_score"][usable].astype(float), expected, rtol=1e-4)
    assert "tokens, more than the 256 allowed" in table["probe_error"][1]
    assert table["probe_error"][2] == "None is not text; drop or fix it"
    assert list(scored.unusable) == [row for row in range(6) if row not in usable]


def test_bad_rows_stop_unless_asked_and_say_how_to_go_on(train, odd, tmp_path, caplog):
    given = ("predict", "--probe", train("success_rate"), "--dataset_path", odd, "--output_path", tmp_path / "o.jsonl")
    done = run(*given)
    assert done.returncode == 2
    assert "odd.jsonl: column 'question', row 2: None is not text" in done.stderr
    assert "--on_error null" in done.stderr
    assert not (tmp_path / "o.jsonl").exists()
    done = run(*given, "--on_error", "null", "--truncate", "--max_length", "100")
    assert done.returncode == 0, done.stderr
    assert "3 of them have no score (see probe_error); row 2: None is not text" in done.stdout
    assert "1 prompts were longer than 100 tokens and the end of their user's text was cut: row 1" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["probe_score"] is None for row in rows] == [False, False, True, False, True, True]
    assert rows[5]["probe_error"].startswith("the last message must be the user's")


def test_prompts_are_cut_as_extract_cuts_them(folder, train, tmp_path, tiny_model):
    """The cut prompt's activations are those of the same prompt extracted with the same flags."""
    text = "many words " * 60
    probe = Probe.load(train("success_rate"), truncate=True, max_length=60)
    pd.DataFrame({"question": [text], "success_rate": [0.0]}).to_parquet(tmp_path / "d.parquet")
    done = run(
        "extract", "--model", tiny_model("llama"), "--dataset_path", tmp_path / "d.parquet", "--output_path",
        tmp_path / "s.zarr", "--use_chat_template", "--layers", "0,1,3", "--truncate", "--max_length", "60",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cell = ActivationStore.open(tmp_path / "s.zarr").cell(probe.layer, probe.position)
    np.testing.assert_allclose(probe.decide([text]), cell @ probe.coef.T + probe.intercept, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"1 prompts are longer than max_length=60, row 0; .* add truncate=True"):
        Probe.load(train("success_rate"), max_length=60).score([text])
    with pytest.raises(InputError, match="max_length=257: the model takes 256 tokens at most"):
        Probe.load(train("success_rate"), max_length=257).score(["Hi"])
    with pytest.raises(InputError, match="max_length=0 must be at least 1"):
        Probe.load(train("success_rate"), max_length=0).score(["Hi"])


@pytest.mark.parametrize("prompts", [[None], [3], [["Hi"]], [[{"role": "user"}]], ["half \ud800"]])
def test_what_is_no_prompt_is_named(train, prompts):
    probe = Probe.load(train("success_rate"))
    for use in (probe.score, probe.predict, probe.decide):
        with pytest.raises(InputError, match=r"^row 0: "):
            use(prompts)
    decision, reasons = probe.decide_usable([*prompts, "Hi"])
    assert list(reasons) == [0]
    np.testing.assert_array_equal(np.isnan(decision[:, 0]), [True, False])


@pytest.mark.parametrize("prompts", ["abc", b"abc", None, 3, {"role": "user", "content": "Hi"}])
def test_a_single_prompt_is_no_list_of_them(probe, prompts):
    for use in (probe.score, probe.predict, probe.decide, probe.decide_usable):
        with pytest.raises(RequestError, match=r"is not a list of prompts; put a single one in brackets"):
            use(prompts)


def test_no_prompts_have_no_scores(probe):
    assert probe.score([]).shape == probe.predict([]).shape == (0,)
    assert probe.decide([]).shape == (0, 1)
    decision, reasons = probe.decide_usable([])
    assert (decision.shape, reasons) == ((0, 1), {})


@pytest.mark.parametrize("on_error", ["ignore", "", None, True])
def test_what_a_bad_row_comes_to_is_one_of_two(probe, odd, tmp_path, on_error):
    with pytest.raises(RequestError, match=r"on_error=.* must be one of stop, null"):
        score_dataset(probe, odd, tmp_path / "s.jsonl", on_error=on_error)
    with pytest.raises(RequestError, match=r"on_error=.* must be one of stop, null"):
        score_texts(probe, ["Hi"], on_error=on_error)
    assert not (tmp_path / "s.jsonl").exists()


def test_a_prompt_that_breaks_the_model_is_null(train, monkeypatch):
    probe, whole = Probe.load(train("success_rate")), LoadedModel.run

    def broken(*args: Any, **options: Any) -> Iterator[Any]:
        for rows, block in whole(*args, **options):
            block[rows == 1] = np.inf
            yield rows, block

    expected = probe.score(["Hi", "you"])
    monkeypatch.setattr(LoadedModel, "run", broken)
    with pytest.raises(NonFiniteError, match="the model returns NaN or infinity for row 1; drop these prompts"):
        probe.score(["Hi", "there", "you"])
    scored = score_texts(probe, ["Hi", "there", "you"], on_error="null")
    assert scored.unusable == {1: "the model returns NaN or infinity"}
    assert scored.scores["probe_score"][1] is None
    np.testing.assert_allclose([scored.scores["probe_score"][row] for row in (0, 2)], expected, rtol=1e-4)


def test_standard_input_is_read_where_a_dash_asks_for_it(folder, train, tmp_path):
    results, texts = train("success_rate"), ["Hi", "How are you? \u2014 \u00e9"]
    expected = Probe.load(results).score(texts)

    def scores(*arguments: str, content: bytes) -> subprocess.CompletedProcess[bytes]:
        return run_forked(["predict", "--probe", results, *arguments], content=content)

    lines = "\ufeffHi\r\n\r\n" + texts[1] + "\n"
    done = scores("--text", "-", "--json", content=lines.encode())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["text"] for row in found] == texts
    np.testing.assert_allclose([row["probe_score"] for row in found], expected, rtol=1e-4)
    rows = "".join(json.dumps({"question": text}) + "\n" for text in texts)
    done = scores("--dataset_path", "-", "--output_path", str(tmp_path / "o.jsonl"), content=rows.encode())
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["probe_score"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for content, message in {
        b"\n": "--text -: standard input has no prompts",
        b"caf\xe9\n": "standard input is not UTF-8 (byte 3 is 0xe9)",
    }.items():
        done = scores("--text", "-", content=content)
        assert done.returncode == 2
        assert message in done.stderr.decode()
    done = scores("--dataset_path", "-", "--output_path", str(tmp_path / "p.jsonl"), content=b"Hi\n")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard input, line 1 is not JSON")
    done = scores("--dataset_path", "-", "--output_path", str(tmp_path / "p.jsonl"), content=b'{"question": 1}\n')
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard input: column 'question', row 0: 1 is not text")


def test_a_terminal_shows_what_its_encoding_can(train):
    """Legacy encodings lack most characters, and arguments may be bytes that are no text."""
    given = ["predict", "--probe", train("success_rate"), "--text"]
    for encoding in ("latin-1", "cp1252"):
        done = run_forked([*given, "\u00e9 \u65e5\u672c"], encoding=encoding)
        assert done.returncode == 0, done.stderr
        assert b"\xe9 \\u65e5\\u672c" in done.stdout
    done = run_forked([*given, b"caf\xe9"])
    assert done.returncode == 2
    assert b"contains bytes that are not valid in this terminal's encoding" in done.stderr
