"""Label columns of words, in files of every kind."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from activation_store import InputError
from activation_store.questions.dataset import read_dataset

WORDS = ["positive", "negative", "neutral", "positive"]
QUESTIONS = ["a", "b", "c", "d"]
SIZES = ["small", "medium", "large", "small"]
IN_ORDER = pd.CategoricalDtype(["tiny", "small", "medium", "large"], ordered=True)


def read(path):
    return read_dataset(path, "question", ["y"])


def write(path, values):
    """The same rows in a file of the kind that the path names."""
    table = pa.table({"question": QUESTIONS[: len(values)], "y": values})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_words_are_places_of_their_sorted_names(tmp_path, kind):
    found = read(write(tmp_path / f"d.{kind}", WORDS))
    assert found.labels["y"].tolist() == [2, 0, 1, 2]
    assert found.labels["y"].dtype == np.int64
    assert found.label_classes["y"].names == ("negative", "neutral", "positive")
    assert not found.label_classes["y"].ordered


@pytest.mark.parametrize(
    ("values", "names", "ordered"),
    [
        (pa.array(WORDS).dictionary_encode(), ["negative", "neutral", "positive"], False),
        (pa.array(WORDS, pa.large_string()), ["negative", "neutral", "positive"], False),
        (pa.array(WORDS, pa.string_view()), ["negative", "neutral", "positive"], False),
        (pa.array(pd.array(WORDS, "string")), ["negative", "neutral", "positive"], False),
        (pa.array(pd.Categorical(SIZES, dtype=IN_ORDER)), ["small", "medium", "large"], True),
        (pa.array(pd.Categorical(SIZES)), ["large", "medium", "small"], False),
        (["true", "half true", "false", "true"], ["false", "half true", "true"], False),
        (["Z", "a", "É", "_"], ["Z", "_", "a", "É"], False),
    ],
)
def test_categoricals_with_an_order_keep_it_and_others_are_sorted(tmp_path, values, names, ordered):
    found = read(write(tmp_path / "d.parquet", values))
    assert list(found.label_classes["y"].names) == names
    assert found.label_classes["y"].ordered == ordered
    assert [names[place] for place in found.labels["y"]] == pa.array(values).to_pylist()


def test_row_groups_with_other_dictionaries_are_one_column(tmp_path):
    schema = pa.schema([("question", pa.string()), ("y", pa.dictionary(pa.int8(), pa.string()))])
    with pq.ParquetWriter(tmp_path / "d.parquet", schema) as writer:
        for words in (["b", "a"], ["c", "b"]):
            table = pa.table(
                {"question": QUESTIONS[:2], "y": pa.array(words).dictionary_encode().cast(schema.field("y").type)}
            )
            writer.write_table(table)
    assert read(tmp_path / "d.parquet").labels["y"].tolist() == [1, 0, 2, 1]


def test_a_csv_of_true_false_and_more_is_words_and_of_these_two_booleans(tmp_path):
    found = read(write(tmp_path / "d.csv", ["true", "false", "mostly true", "True"]))
    assert found.label_classes["y"].names == ("True", "false", "mostly true", "true")
    found = read(write(tmp_path / "d.csv", ["true", "false", "true", "true"]))
    assert (found.label_classes, found.labels["y"].dtype) == ({}, np.bool_)


def test_the_hash_of_a_dataset_knows_the_names(tmp_path):
    same = read(write(tmp_path / "a.parquet", ["a", "b"])).content_hash
    assert same == read(write(tmp_path / "b.csv", ["a", "b"])).content_hash
    assert same != read(write(tmp_path / "a.parquet", ["a", "c"])).content_hash
    assert same != read(write(tmp_path / "a.parquet", [0, 1])).content_hash


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            "parquet",
            ["0.5", "0.7"],
            r"'y' has 2 numbers stored as text, the first in row 0 \('0.5'\); store .* as numbers",
        ),
        ("parquet", ["high", " 7"], r"1 numbers stored as text, the first in row 1 \(' 7'\); .* such as 'class 7'"),
        ("parquet", ["high", "nan"], r"1 numbers stored as text, the first in row 1 \('nan'\)"),
        ("csv", ["1,5", "2,5"], r"2 numbers stored as text, the first in row 0 \('1,5'\)"),
        ("csv", ["70 %", "high"], r"1 numbers stored as text"),
        ("jsonl", ["1", "2"], "2 numbers stored as text"),
        ("parquet", ["a", None, None], r"'y' has 2 null or empty values, the first in row 1 \(None\); drop those rows"),
        ("csv", ["a", None], r"1 null or empty values, the first in row 1 \(None\)"),
        ("jsonl", ["a", " "], r"1 null or empty values, the first in row 1 \(' '\)"),
        ("parquet", ["good", "bad", "good "], "'good' in row 0 and 'good ' in row 2: one class or two"),
    ],
)
def test_columns_that_name_no_classes_are_refused(tmp_path, kind, values, message):
    with pytest.raises(InputError, match=message) as error:
        read(write(tmp_path / f"d.{kind}", values))
    assert error.value.argument == "label_column.y"
    assert "\n" not in str(error.value)


def test_types_are_not_mixed(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"question": "a", "y": "yes"}\n{"question": "b", "y": true}\n')
    with pytest.raises(InputError, match="mixes types: row 0 is 'yes', row 1 True; make all of them text"):
        read(tmp_path / "d.jsonl")


def test_texts_of_their_own_are_no_classes(tmp_path):
    pd.DataFrame({"question": "a", "y": [f"text {row}" for row in range(60)]}).to_csv(tmp_path / "d.csv")
    with pytest.raises(InputError, match=r"has 60 different texts in 60 rows .* name no classes; choose a column"):
        read(tmp_path / "d.csv")


@pytest.mark.parametrize("ordered", [False, True])
def test_rows_of_several_files_have_one_set_of_classes(tmp_path, ordered):
    """Files hold different classes, at other places; an order stays where one file has it in full."""
    kind = pd.CategoricalDtype(["small", "medium", "large"], ordered=ordered)
    for number, words in enumerate((["large", "small"], ["small", "medium", "large"])):
        values = pa.array(pd.Categorical(words, dtype=kind))
        pq.write_table(pa.table({"question": QUESTIONS[: len(words)], "y": values}), tmp_path / f"{number}.parquet")
    found = read_dataset([tmp_path / "0.parquet", tmp_path / "1.parquet"], "question", ["y"])
    names = ("small", "medium", "large") if ordered else ("large", "medium", "small")
    assert (found.label_classes["y"].names, found.label_classes["y"].ordered) == (names, ordered)
    assert [names[place] for place in found.labels["y"]] == ["large", "small", "small", "medium", "large"]
