"""What is read from a dataset, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from activation_store import InputError
from activation_store.dataset import read_dataset


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
            r"has 2 null or non-numeric values, the first in row 0 \('0.5'\)",
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
SAVED = Path(__file__).parent / "saved_by_datasets"
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
        ("d.csv", "question,y\na,1\nb,\n", r"'y' \(int64\) has 1 null or non-numeric values, the first in row 1"),
        ("d.csv", "question,y\na,1\nb,x\n", r"has 1 null or non-numeric values, the first in row 1 \('x'\)"),
        ("d.csv", 'question,y\na,"1,5"\nb,"2,5"\n', r"has 2 null or non-numeric .* row 0 \('1,5'\)"),
        ("d.csv", "question,y\na,1\nb\n", "cannot be read as CSV: .*Expected 2 columns, got 1"),
        ("d.csv", "question,z\na,1\n", "has no column 'y'; it has question, z"),
        ("d.csv", "question,y,y\na,1,2\n", "has several columns 'y'"),
        ("d.csv", "question,y\n", "has no rows"),
        ("d.csv", "", "cannot be read as CSV: .*[Ee]mpty"),
        ("d.csv", b"question,y\n\xff\xfe,1\n", "cannot be read as CSV: .*UTF8"),
        ("d.jsonl", '{"question": "a", "y": 1}\n{"question": "b"', "line 2 is not JSON"),
        ("d.json", '[{"question": "a", "y": 1}]', "line 1 is not a JSON object but .*one object a line"),
        ("d.jsonl", '{"question": "a", "z": 1}\n', "has no column 'y'; it has question, z"),
        ("d.jsonl", '{"question": "a", "y": 1}\n{"question": "b"}\n', "has 1 null or non-numeric .* row 1"),
        ("d.jsonl", '{"question": "a", "y": 1}\n{"question": "b", "y": "x"}\n', "'y' mixes types"),
        ("d.jsonl", '{"question": "a", "y": NaN}\n', r"has 1 null or non-numeric .* row 0 \(nan\)"),
        ("d.jsonl", '{"question": "a", "y": [1]}\n', "has 1 null or non-numeric .* row 0"),
        ("d.jsonl", '{"question": "a", "y": 99999999999999999999}\n', "'y' mixes types"),
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
