"""What is read from a dataset, and what is refused."""

import csv
import io
import json
import math
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_store import InputError
from activation_store.questions.dataset import read_dataset
from activation_store.questions.formats import Wanted, read_rows
from activation_store.questions.question import question_text


def write(tmp_path, **columns):
    path = tmp_path / "d.parquet"
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_reads_columns_in_order(tmp_path):
    path = write(tmp_path, question=["a", "b", "c"], y=[0.1, 1.0, 0.3], kind=[1, 2, 3], right=[True, False, True])
    dataset = read_dataset(path, "question", ["y", "kind", "right"], max_samples=2)
    assert dataset.questions == ["a", "b"]
    assert [values.dtype for values in dataset.labels.values()] == [np.float64, np.int64, np.bool_]
    assert dataset.labels["y"].tolist() == [0.1, 1.0]


def test_content_hash_sees_order_text_and_labels(tmp_path):
    def content_hash(questions, labels):
        return read_dataset(write(tmp_path, question=questions, y=labels), "question", ["y"]).content_hash

    same = content_hash(["a", "b"], [0.0, 1.0])
    assert same == content_hash(["a", "b"], [0.0, 1.0])
    others = [(["b", "a"], [0.0, 1.0]), (["a", "c"], [0.0, 1.0]), (["a", "b"], [1.0, 0.0]), (["ab", ""], [0.0, 1.0])]
    assert same not in [content_hash(*other) for other in others]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": ["a"], "z": [1.0]}, "has no column 'y'; it has question, z"),
        ({"y": [1.0]}, "has no column 'question'; it has y"),
        ({"question": ["a", "b", "c"], "y": [1.0, None, None]}, r"'y' \(double\) has 2 null .* in row 1 \(None\)"),
        ({"question": ["a", "b"], "y": [1.0, np.inf]}, r"has 1 null or non-numeric values, the first in row 1 \(inf\)"),
        (
            {"question": ["a", "b"], "y": ["0.5", "x"]},
            r"has 1 numbers stored as text, the first in row 0 \('0.5'\)",
        ),
        ({"question": ["a", None], "y": [1.0, 2.0]}, "'question' has 1 values that are not text, the first in row 1"),
        ({"question": [1, 2], "y": [1.0, 2.0]}, "'question' has 2 values that are not text, the first in row 0"),
        ({"question": pd.Series([], dtype=str), "y": pd.Series([], dtype=float)}, "has no rows"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, columns, message):
    path = write(tmp_path, **columns)
    with pytest.raises(InputError, match=message):
        read_dataset(path, "question", ["y"])


CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}]
SAVED = Path(__file__).parents[2] / "data/saved_by_datasets"
# Texts that a reader could take for something else.
TEXTS = [
    "123",
    "null",
    "",
    "NA",
    "2020-01-01",
    "1e5",
    "true",
    '[{"role": "user", "content": "a"}]',
    'a "b", c\nd',
    "é 日 👍🏽",
]
LABELS = [0.5, 1.0, 0.0, 0.25, 1.0, 0.0, 1.0, 0.5, 0.5, 0.125]


def save_to_disk(table: pa.Table, folder, n_files=1):
    """A folder as `datasets` writes it: Arrow streams, and a state that lists them."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{n_files:05}.arrow" for number in range(n_files)]
    step = -(-table.num_rows // n_files)
    for number, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table.slice(number * step, step))
    state = {"_data_files": [{"filename": name} for name in names], "_split": None, "_format_columns": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


def write_as(kind, tmp_path, questions, labels):
    path = tmp_path / f"d.{kind}"
    if kind == "parquet":
        pd.DataFrame({"question": questions, "y": labels, "other": "o"}).to_parquet(path)
    elif kind in ("csv", "tsv"):
        frame = pd.DataFrame({"other": "o", "question": questions, "y": labels})
        # Python's own writer, and every text in quotes: an empty one is no missing one.
        frame.to_csv(path, index=False, quoting=2, sep="\t" if kind == "tsv" else ",")
    elif kind in ("jsonl", "json"):
        rows = [{"question": question, "y": label, "o": {}} for question, label in zip(questions, labels, strict=True)]
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    else:
        save_to_disk(pa.table({"question": questions, "y": labels, "other": ["o"] * len(labels)}), path, n_files=3)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl", "json", "folder"])
def test_every_kind_of_file_gives_the_same(kind, tmp_path):
    dataset = read_dataset(write_as(kind, tmp_path, TEXTS, LABELS), "question", ["y"])
    assert dataset.questions == TEXTS
    assert dataset.labels["y"].dtype == np.float64
    assert dataset.labels["y"].tolist() == LABELS
    assert (
        dataset.content_hash == read_dataset(write(tmp_path, question=TEXTS, y=LABELS), "question", ["y"]).content_hash
    )
    first = read_dataset(tmp_path / f"d.{kind}", "question", ["y"], max_samples=4)
    assert first.questions == TEXTS[:4]
    assert len(first.labels["y"]) == 4
    parquet = write(tmp_path, question=TEXTS, y=LABELS)
    assert dataset.content_hash == read_dataset(parquet, "question", ["y"]).content_hash


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "folder"])
def test_a_question_may_be_a_conversation(kind, tmp_path):
    conversations = [CONVERSATION, [{"role": "user", "content": "Hi", "name": "Ann"}]]
    dataset = read_dataset(write_as(kind, tmp_path, conversations, [0.0, 1.0]), "question", ["y"])
    # Arrow gives every message the keys that any of them has.
    assert dataset.questions == conversations
    as_text = [json.dumps(conversation) for conversation in conversations]
    (tmp_path / "text").mkdir()
    others = read_dataset(write_as(kind, tmp_path / "text", as_text, [0.0, 1.0]), "question", ["y"])
    assert others.questions == as_text
    assert others.content_hash != dataset.content_hash


def test_text_and_conversations_may_stand_side_by_side_in_json_lines(tmp_path):
    dataset = read_dataset(write_as("jsonl", tmp_path, ["a", CONVERSATION], [0, 1]), "question", ["y"])
    assert dataset.questions == ["a", CONVERSATION]
    assert dataset.labels["y"].dtype == np.int64


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ([], "row 1: the list of chat messages is empty"),
        (CONVERSATION[:1], "row 1: the last message must be the user's, not the system's"),
        ([{"from": "human", "value": "a"}], "row 1: message 0 is not of the form .*it has the keys from, value"),
        (["a"], "row 1: message 0 is not of the form .*it has 'a'"),
        ([{"role": "user", "content": ["a"]}], "row 1: message 0: role and content must be text"),
        ([{"role": "user", "content": None}], "row 1: message 0 is not of the form"),
        ("a\ud800b", "row 1: character 1 is half of a surrogate pair"),
        ({"role": "user", "content": "a"}, "has 1 values that are not text, the first in row 1"),
        (5, "has 1 values that are not text, the first in row 1"),
        (None, "has 1 values that are not text, the first in row 1"),
    ],
)
def test_what_is_no_question_is_refused(question, message, tmp_path):
    rows = [{"question": "a", "y": 0.0}, {"question": question, "y": 1.0}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "d.jsonl", "question", ["y"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "question,y\na,1\n,2\n", "'question' has 1 values that are not text, the first in row 1"),
        ("d.csv", "question,y\na,1\nb,\n", r"'y' has 1 null or non-numeric values, the first in row 1 \(None\)"),
        ("d.csv", "question,y\na,1\nb,x\n", r"has 1 null or non-numeric values, the first in row 1 \('x'\)"),
        ("d.csv", 'question,y\na,"1,5"\nb,"2,5"\n', r"has 2 numbers stored as text, .* row 0 \('1,5'\)"),
        ("d.csv", "question,y\na,1\nb\n", "cannot be read as CSV: .*Expected 2 columns, got 1"),
        ("d.csv", "question,z\na,1\n", "has no column 'y'; it has question, z"),
        ("d.csv", "question,y,y\na,1,2\n", "has several columns 'y'"),
        ("d.csv", "question,y\n", "has no rows"),
        ("d.csv", "", "cannot be read as CSV: .*[Ee]mpty"),
        ("d.csv", b"question,y\n\xff\xfe,1\n", "cannot be read as CSV: .*UTF8"),
        ("d.jsonl", '{"question": "a", "y": 1}\n{"question": "b"', "line 2 is not JSON"),
        ("d.csv", b"question,y\n\xe9,1\n", "UTF8 data; save it as UTF-8"),
        (
            "d.csv",
            "question,y\na,1\nb,0,5\n",
            "Expected 2 columns, got 3: b,0,5; put fields with a separator .* quotes",
        ),
        ("d.csv", "question;y\na;0,5\nb;1,0\n", "has question;y as one column; columns are separated by commas"),
        ("d.CSV", "question\ty\na\t0,5\n", "as one column; columns are separated by commas"),
        ("d.csv", "question|y\na|0,5\n", "as one column; columns are separated by commas"),
        ("d.json", '["a"]', r'item 0 of the array is not a JSON object but "a"; write one object per line'),
        ("d.json", '["a", 1]\n["b", 2]', "starts like a JSON array, but is not JSON .*; write one object per line"),
        ("d.json", '[{"question": "a", "y": 1},', "starts like a JSON array, but is not JSON"),
        ("d.jsonl", "5", "line 1 is not a JSON object but 5; write one object per line"),
        ("d.jsonl", '{"question": "a", "y": 1, "y": 2}', "line 1 has an object with the key 'y' more than once"),
        (
            "d.jsonl",
            '\n{"question": [{"role": "user", "role": "a"}]}',
            "line 2 has an object with the key 'role' more than once",
        ),
        (
            "d.jsonl",
            '{"question": "a", "y": 0.5}\n{"question": "b", "y": true}\n',
            "mixes types: .*make all of them num",
        ),
        (
            "d.jsonl",
            '{"question": "a", "y": "x"}\n{"question": "b", "y": 1}\n',
            r"has 1 null or non-numeric values, the first in row 0 \('x'\); .*make them numbers",
        ),
        ("d.jsonl", b'{"question": "\xe9", "y": 1}\n', "'utf-8' codec can't decode .*; save it as UTF-8"),
        ("d.jsonl", '{"question": "a", "z": 1}\n', "has no column 'y'; it has question, z"),
        ("d.jsonl", '{"question": "a", "y": 1}\n{"question": "b"}\n', "has 1 null or non-numeric .* row 1"),
        ("d.jsonl", '{"question": "a", "y": 1}\n{"question": "b", "y": "x"}\n', r"in row 1 \('x'\)"),
        ("d.jsonl", '{"question": "a", "y": NaN}\n', r"has 1 null or non-numeric .* row 0 \(nan\)"),
        ("d.jsonl", '{"question": "a", "y": [1]}\n', "has 1 null or non-numeric .* row 0"),
        ("d.jsonl", '{"question": "a", "y": 99999999999999999999}\n', "in row 0, which float64 cannot represent"),
        ("d.csv", "question,y\na,0x10\nb,1\n", r"in row 0 \('0x10'\); drop those rows or make them numbers"),
        ("d.csv", "question,y\na,1_0\nb,1\n", r"in row 0 \('1_0'\)"),
        ("d.csv", "question,y\na,1\nb,\u0661\n", r"in row 1 \('\u0661'\)"),
        ("d.csv", "question,y\na,1\nb,1e400\n", r"in row 1 \('1e400'\)"),
        ("d.csv", "question,y\na,1\nb,nan\n", r"in row 1 \('nan'\)"),
        ("d.csv", "question,y\na,1\nb,true\n", "mixes types: true or false, and numbers .*make all of them numbers"),
        ("d.jsonl", "\n", "has no rows"),
        ("d.jsonl", b'{"question": "\xff", "y": 1}\n', "cannot be read as JSON Lines: .*utf-8"),
        ("d.txt", "a", "files that end in '.txt' are not read; give a parquet, .csv or .jsonl file, or a folder"),
    ],
)
def test_files_that_cannot_be_used_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(tmp_path / name, "question", ["y"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"), [("d.csv", "question,y\na,1\n"), ("d.jsonl", '{"question": "a", "y": 1}')]
)
def test_wide_encodings_are_named(encoding, name, content, tmp_path):
    (tmp_path / name).write_bytes(content.encode(encoding))
    with pytest.raises(InputError, match=f"is {encoding[:6].upper()}; save it as UTF-8"):
        read_dataset(tmp_path / name, "question", ["y"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (r'"say \"hi\" ok",1', r'line 3: "say ."hi." ok",1 continues after its closing quote'),
        (r'"a, \"b, c\" d",1', "line 3: .* continues after its closing quote"),
        ('"a"b,1', 'line 3: "a"b,1 continues after its closing quote'),
        ('"a" ,1', "line 3: .* continues after its closing quote"),
        ('"a\nb"c,1', "line 4: .* continues after its closing quote"),
        ('"a,1\nb,2', 'line 3: the quote that opens "a,1 is never closed'),
    ],
)
def test_stray_quotes_in_a_csv_file_are_refused(content, message, tmp_path):
    (tmp_path / "d.csv").write_text(f"question,y\nfirst,0\n{content}\n")
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(tmp_path / "d.csv", "question", ["y"])
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.text('a",\n\r\0 ', max_size=12))
def test_csv_files_are_read_as_the_strict_reader_of_python_reads_them(body):
    text = "question,other\n" + body
    try:
        expected = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error:
        expected = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "d.csv"
        path.write_bytes(text.encode())
        if all(len(row) == 2 for row in expected) and expected:
            rows = read_rows(path, Wanted(["question"], others=True))
            found = zip(*(rows.values(name) for name in rows.names), strict=True)
            assert [tuple(value or "" for value in row) for row in found] == [tuple(row) for row in expected[1:]]
        else:
            with pytest.raises(InputError):
                read_rows(path, Wanted(["question"], others=True))


def test_a_json_file_may_be_an_array(tmp_path):
    rows = [{"question": "a", "y": 0.5, "o": [1]}, {"question": CONVERSATION, "y": 1}]
    for indent in (None, 1):
        (tmp_path / "d.json").write_text(" \n" + json.dumps(rows, indent=indent))
        dataset = read_dataset(tmp_path / "d.json", "question", ["y"])
        assert dataset.questions == ["a", CONVERSATION]
        assert dataset.labels["y"].tolist() == [0.5, 1.0]
        assert read_dataset(tmp_path / "d.json", "question", ["y"], max_samples=1).questions == ["a"]


def test_groups_of_a_csv_file_are_the_texts_that_are_written_there(tmp_path):
    names = ["007", "07", "7", "1.10", "1.1", "18446744073709551616", "18446744073709551617", "TRUE", "true", "1e5", ""]
    for quoting in (csv.QUOTE_ALL, csv.QUOTE_MINIMAL):
        for kept in (names[:3], names[3:5], names[5:7], names[7:9], ["2024-01-01", "2024-1-1"], names[:-1]):
            frame = pd.DataFrame({"g": kept, "question": "q", "y": "0.50"})
            frame.to_csv(tmp_path / "d.csv", index=False, quoting=quoting)
            dataset = read_dataset(tmp_path / "d.csv", "question", ["y"], group_columns=["g"])
            assert dataset.groups["g"].tolist() == kept
            assert dataset.labels["y"].tolist() == [0.5] * len(kept)


def test_labels_of_a_csv_file_are_numbers(tmp_path):
    (tmp_path / "d.csv").write_text('question,a,b,c\nx,1,1e-3,true\ny,"2",.50,FALSE\n')
    labels = read_dataset(tmp_path / "d.csv", "question", ["a", "b", "c"]).labels
    assert [(values.dtype.kind, values.tolist()) for values in labels.values()] == [
        ("i", [1, 2]),
        ("f", [0.001, 0.5]),
        ("b", [True, False]),
    ]


def test_groups_of_a_typed_file_keep_their_values(tmp_path):
    columns = {
        "bool": pa.array([True, False]),
        "int": pa.array([2**53, 2**53 + 1]),
        "uint": pa.array([2**64 - 1, 2**64 - 2], pa.uint64()),
        "category": pa.array(["b", "a"]).dictionary_encode(),
        "view": pa.array(["b", "a"], pa.string_view()),
        "time": pa.array([1, 2], pa.time64("ns")),
        "large": pa.array(["007", "7"], pa.large_string()),
        "when": pa.array([1, 2], pa.timestamp("ns")),
    }
    pq.write_table(pa.table({"question": ["x", "y"], "y": [0, 1], **columns}), tmp_path / "d.parquet")
    groups = read_dataset(tmp_path / "d.parquet", "question", ["y"], group_columns=list(columns)).groups
    assert {name: values.tolist() for name, values in groups.items()} == {
        "bool": ["True", "False"],
        "int": ["9007199254740992", "9007199254740993"],
        "uint": ["18446744073709551615", "18446744073709551614"],
        "category": ["b", "a"],
        "view": ["b", "a"],
        "time": ["00:00:00.000000001", "00:00:00.000000002"],
        "large": ["007", "7"],
        "when": ["1970-01-01 00:00:00.000000001", "1970-01-01 00:00:00.000000002"],
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1, "1"], "has 1 in row 0 and '1' in row 1: one group or two"),
        ([1, 1.0], "has 1 in row 0 and 1.0 in row 1: one group or two"),
        ([True, "True"], "has True in row 0 and 'True' in row 1"),
        ([0.0, -0.0], r"has 0\.0 in row 0 and -0\.0 in row 1"),
        (["a", [1]], r"has \[1\] in row 1, which is neither a number nor a string"),
        (["a", {"b": 1}], "in row 1, which is neither a number nor a string"),
        (["a", "\ud800"], "in row 1, which is neither a number nor a string"),
        (["a", None], "has 1 null values, the first in row 1"),
        ([0.5, math.nan], "has 1 null values, the first in row 1"),
    ],
)
def test_what_is_not_certain_to_be_one_group_is_refused(groups, message, tmp_path):
    rows = [{"question": "a", "y": 0, "g": group} for group in groups]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "d.jsonl", "question", ["y"], group_columns=["g"])


def test_text_and_numbers_may_name_groups_side_by_side(tmp_path):
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"question": "a", "y": 0, "g": g}) for g in ["a", 2**64, 2]))
    groups = read_dataset(tmp_path / "d.jsonl", "question", ["y"], group_columns=["g"]).groups
    assert groups["g"].tolist() == ["a", "18446744073709551616", "2"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([Decimal("0.10"), Decimal("1")]), [0.1, 1.0]),
        (
            pa.array([Decimal("0.1234567890123456789"), Decimal("0.2")], pa.decimal256(60, 19)),
            [0.12345678901234568, 0.2],
        ),
        (pa.array(pd.array([3, 1], "Int64")), [3, 1]),
        (pa.array(pd.array([0.5, 1], "Float64")), [0.5, 1.0]),
        (pa.array(pd.array([True, False], "boolean")), [True, False]),
        (pa.array([3, 1]).dictionary_encode(), [3, 1]),
        (pa.array([2**63, 1], pa.uint64()), [2**63, 1]),
    ],
)
def test_numbers_of_every_type_are_labels(column, expected, tmp_path):
    pq.write_table(pa.table({"question": ["a", "b"], "y": column}), tmp_path / "d.parquet")
    assert read_dataset(tmp_path / "d.parquet", "question", ["y"]).labels["y"].tolist() == expected
    missing = pa.array([column[0].as_py(), None], column.type)
    pq.write_table(pa.table({"question": ["a", "b"], "y": missing}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"has 1 null or non-numeric values, the first in row 1 \(None\)"):
        read_dataset(tmp_path / "d.parquet", "question", ["y"])


def write_numbers(kind, tmp_path, spelled):
    """A dataset with these labels, spelled as they are where the file has no types."""
    path = tmp_path / f"d.{kind}"
    if kind == "parquet":
        values = [float(text) if "." in text else Decimal(text) for text in spelled]
        whole = all(isinstance(value, Decimal) for value in values)
        pq.write_table(pa.table({"question": spelled, "y": [v if whole else float(v) for v in values]}), path)
    elif kind == "csv":
        path.write_text("question,y\n" + "".join(f"a,{text}\n" for text in spelled))
    else:
        path.write_text("".join(f'{{"question": "a", "y": {text}}}\n' for text in spelled))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize(
    ("spelled", "row"),
    [
        (["9007199254740992", "9007199254740993", "5"], 1),
        (["5", "18446744073709551615"], 1),
        (["-9007199254740993", "5"], 0),
        (["18446744073709551616", "18446744073709551617"], 1),
    ],
)
def test_whole_numbers_that_no_float64_holds_are_no_labels(kind, spelled, row, tmp_path):
    """Probes would take them for their neighbours: two classes for three."""
    with pytest.raises(
        InputError, match=rf"'y'.* has {spelled[row]} in row {row}, .*subtract an offset from all labels"
    ):
        read_dataset(write_numbers(kind, tmp_path, spelled), "question", ["y"])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_whole_number_that_no_float64_holds_is_no_label_beside_fractions(kind, tmp_path):
    with pytest.raises(InputError, match=r"'y' has 9007199254740993 in row 0, .*subtract an offset"):
        read_dataset(write_numbers(kind, tmp_path, ["9007199254740993", "0.5"]), "question", ["y"])


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_large_whole_numbers_that_float64_holds_are_labels(kind, tmp_path):
    spelled = ["9007199254740992", "9007199254740994", "18446744073709551616"]
    labels = read_dataset(write_numbers(kind, tmp_path, spelled), "question", ["y"]).labels["y"]
    assert [int(value) for value in labels.tolist()] == list(map(int, spelled))


def conversation(*messages):
    user = {"role": "user", "content": "Look it up"}
    return [user, *messages, {"role": "tool", "content": "42"}, user]


def calling(arguments, **content):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", **content, "tool_calls": [call]}


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_padding_of_structs_is_no_part_of_a_conversation(kind, tmp_path):
    questions = [
        conversation(calling({"city": "Oslo", "where": {"at": [{"x": 1}, {"y": 2}]}}, content="")),
        conversation(calling({"where": {"near": "b"}, "sku": "A7", "amount": 2}, content=None)),
        conversation(calling({}, content=None)),
        CONVERSATION,
    ]
    typed = read_dataset(write_as(kind, tmp_path, questions, [0, 1, 2, 3]), "question", ["y"])
    lines = read_dataset(write_as("jsonl", tmp_path, questions, [0, 1, 2, 3]), "question", ["y"])
    assert typed.questions == lines.questions == questions
    # Keys are in the order in which they first appear in the column: Arrow keeps no other.
    assert [question_text(question) for question in typed.questions] == list(map(json.dumps, questions))
    assert typed.content_hash == lines.content_hash


@pytest.mark.parametrize("kind", ["parquet", "folder", "jsonl"])
def test_content_that_is_not_there_beside_tool_calls_is_null(kind, tmp_path):
    questions = [conversation(calling({"a": 1})), conversation(calling({"a": 1}, content=None))]
    dataset = read_dataset(write_as(kind, tmp_path, questions, [0, 1]), "question", ["y"])
    assert dataset.questions == [questions[1]] * 2


def test_a_null_that_is_written_in_json_lines_stays(tmp_path):
    question = conversation(calling({"city": None, "at": [{"x": None}]}, content=None))
    assert read_dataset(write_as("jsonl", tmp_path, [question], [0]), "question", ["y"]).questions == [question]


def test_the_keys_of_a_map_are_its_own(tmp_path):
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string(), "with": pa.map_("string", "string")}))
    message = {"role": "user", "content": "a"}
    column = pa.array([[{**message, "with": [("city", None), ("sku", "b")]}], [{**message, "with": None}]], kind)
    pq.write_table(pa.table({"question": column, "y": [0, 1]}), tmp_path / "d.parquet")
    questions = read_dataset(tmp_path / "d.parquet", "question", ["y"]).questions
    assert questions == [[{**message, "with": {"city": None, "sku": "b"}}], [message]]
    twice = pa.array([[{**message, "with": [("city", "a"), ("city", "b")]}]], kind)
    pq.write_table(pa.table({"question": twice, "y": [0]}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match="has a key twice"):
        read_dataset(tmp_path / "d.parquet", "question", ["y"])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {**calling({}, content=None), "role": "user"},
    ],
)
def test_content_may_be_null_only_beside_tool_calls(message, tmp_path):
    with pytest.raises(InputError, match=r"row 0: message 1 is not of the form .*content is null"):
        read_dataset(write_as("jsonl", tmp_path, [conversation(message)], [0]), "question", ["y"])


def test_columns_that_are_not_used_stop_nothing(tmp_path):
    rows = [{"question": "a", "y": 0, "o": math.nan}, {"question": "b", "y": 1, "o": [{}]}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "d.csv").write_bytes(b"question,y,o,o\r\na,0,\xe9,\r\nb,1,,x\r\n")
    pq.write_table(
        pa.Table.from_arrays([["a", "b"], [0, 1], [1, 2], [1, 2]], ["question", "y", "o", "o"]), tmp_path / "d.parquet"
    )
    for kind in ("jsonl", "csv", "parquet"):
        assert read_dataset(tmp_path / f"d.{kind}", "question", ["y"]).questions == ["a", "b"]


def test_names_of_folders_are_no_columns(tmp_path):
    (tmp_path / "y=1").mkdir()
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "y=1/d.parquet")
    with pytest.raises(InputError, match="has no column 'y'"):
        read_dataset(tmp_path / "y=1/d.parquet", "question", ["y"])


def test_a_csv_file_may_have_long_rows_and_a_byte_order_mark(tmp_path):
    text = "x" * 3_000_000
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbf" + f'question,y\n"{text}",1\n'.encode())
    dataset = read_dataset(tmp_path / "d.csv", "question", ["y"])
    assert dataset.questions == [text]
    assert dataset.labels["y"].tolist() == [1]


def test_what_datasets_itself_saved_is_read():
    # Written by `save_to_disk` of datasets 5.2, which need not be installed for that.
    texts = read_dataset(SAVED / "train", "question", ["success_rate", "kind"])
    assert texts.questions == ["a", "b", "c"]
    assert texts.labels["success_rate"].tolist() == [0.0, 0.5, 1.0]
    assert texts.labels["kind"].tolist() == [0, 1, 0]  # a ClassLabel
    assert read_dataset(SAVED / "train", "messages", ["kind"]).questions == [CONVERSATION] * 3
    with pytest.raises(InputError, match=r"holds several splits; give one of them: .*/train, .*/test"):
        read_dataset(SAVED, "question", ["kind"])


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    table = pa.table({"question": ["a"], "y": [1.0]})
    save_to_disk(table, tmp_path / "both/train")
    save_to_disk(table, tmp_path / "both/test")
    (tmp_path / "both/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(InputError, match=r"several splits; give one of them: .*both/train, .*both/test"):
        read_dataset(tmp_path / "both", "question", ["y"])
    assert read_dataset(tmp_path / "both/train", "question", ["y"]).questions == ["a"]
    with pytest.raises(InputError, match="is a folder, but not one that datasets' save_to_disk writes"):
        read_dataset(tmp_path, "question", ["y"])
    with pytest.raises(InputError, match="has no column 'z'; it has question, y"):
        read_dataset(tmp_path / "both/train", "question", ["z"])
    data = tmp_path / "both/train/data-00000-of-00001.arrow"
    data.write_bytes(data.read_bytes()[:50])
    with pytest.raises(InputError, match="cannot be read as a datasets folder"):
        read_dataset(tmp_path / "both/train", "question", ["y"])
    data.unlink()
    with pytest.raises(InputError, match="cannot be read as a datasets folder"):
        read_dataset(tmp_path / "both/train", "question", ["y"])
    (tmp_path / "both/test/state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json cannot be read as JSON"):
        read_dataset(tmp_path / "both/test", "question", ["y"])
    state = {"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "b.arrow"}]}
    (tmp_path / "both/test/state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="with a selection of rows"):
        read_dataset(tmp_path / "both/test", "question", ["y"])


def test_a_parquet_file_needs_no_ending(tmp_path):
    pq.write_table(pa.table({"question": ["a"], "y": [1.0]}), tmp_path / "data")
    assert read_dataset(tmp_path / "data", "question", ["y"]).questions == ["a"]


def test_what_is_not_parquet_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_dataset(tmp_path / "none.parquet", "question", ["y"])
    (tmp_path / "text.parquet").write_text("question,y\na,1\n")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_dataset(tmp_path / "text.parquet", "question", ["y"])


def test_rows_of_several_datasets_follow_one_another(tmp_path):
    table = pd.DataFrame({"question": list("abcde"), "y": [1, 2, 3, 4, 5], "g": list("vvwww")})
    table[:2].to_parquet(tmp_path / "a.parquet")
    table[2:].to_csv(tmp_path / "b.csv", index=False)
    paths = [tmp_path / "a.parquet", tmp_path / "b.csv"]
    found = read_dataset(paths, "question", ["y"], None, ["g"])
    assert found.questions == list("abcde")
    assert found.labels["y"].tolist() == [1, 2, 3, 4, 5]
    assert found.groups["g"].tolist() == list("vvwww")
    table.to_parquet(tmp_path / "whole.parquet")
    assert found.content_hash == read_dataset(tmp_path / "whole.parquet", "question", ["y"], None, ["g"]).content_hash
    assert read_dataset([*paths, table], "question", ["y"]).questions == list("abcdeabcde")
    for n in (1, 2, 3):
        assert read_dataset(paths, "question", ["y"], n).questions == list("abcde")[:n]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"question": ["c"], "g": [1]}, "b.parquet has no column 'y'"),
        (
            {"question": ["c", "d"], "y": [1.0, None], "g": ["v", "v"]},
            "b.parquet: label column 'y'.*the first in row 1",
        ),
        (
            {"question": ["c"], "y": [True], "g": ["v"]},
            "b.parquet: column 'y' holds true and false, and numbers in .*a.p",
        ),
        ({"question": ["c"], "y": [1], "g": [1]}, "b.parquet: column 'g' holds int, and str in .*a.parquet"),
        ({"question": [], "y": [], "g": []}, "b.parquet has no rows"),
        ({"question": [5], "y": [1], "g": ["v"]}, "b.parquet: column 'question' has 1 values that are not text"),
    ],
)
def test_what_is_wrong_in_one_of_several_datasets_is_named_with_its_file(second, message, tmp_path):
    pd.DataFrame({"question": ["a"], "y": [1], "g": ["v"]}).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame(second).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=message):
        read_dataset([tmp_path / "a.parquet", tmp_path / "b.parquet"], "question", ["y"], None, ["g"])
