"""Datasets of a hub on this machine, read with the real clients: huggingface_hub, and datasets for splits."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from huggingface_hub import constants

from activation_store.errors import InputError
from activation_store.questions.dataset import Columns, read_all_columns, read_dataset
from activation_store.questions.formats import Wanted
from activation_store.questions.hub_address import HubAddress, is_on_hub
from tests.helpers.hub import Hub, parquet

ROWS = pd.DataFrame(
    {
        "question": ["2 + 3?", "7 * 6?", "9 - 4?", "1 + 1?"],
        "success_rate": [0.5, 1.0, 0.0, 0.25],
        "topic": ["plus", "times", "minus", "plus"],
    }
)
OTHERS = ROWS.assign(success_rate=[1.0, 0.0, 0.5, 0.75])
CARD = """\
---
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*.parquet
  - split: test
    path: main/test.parquet
- config_name: more
  data_files:
  - split: train
    path: more/train.parquet
---
# Sums
"""


WRITERS = {
    ".parquet": parquet,
    ".csv": lambda rows: rows.to_csv(index=False).encode(),
    ".tsv": lambda rows: rows.to_csv(index=False, sep="\t").encode(),
    ".jsonl": lambda rows: rows.to_json(orient="records", lines=True).encode(),
    ".json": lambda rows: rows.to_json(orient="records").encode(),
}


def publish(hub: Hub, rows: pd.DataFrame = ROWS, **options: str) -> str:
    """The dataset me/Sums, with two files in one split, as large datasets have."""
    return hub.publish(
        "me/Sums",
        {
            "README.md": CARD.encode(),
            "main/train-00000-of-00002.parquet": parquet(rows[:3]),
            "main/train-00001-of-00002.parquet": parquet(rows[3:]),
            "main/test.parquet": parquet(rows[::-1]),
            "more/train.parquet": parquet(rows[1:]),
        },
        **options,
    )


def read(where: object, **options: object):
    return read_dataset(where, "question", ["success_rate"], group_columns=["topic"], **options)


def labels(where: object) -> list[float]:
    return read(where).labels["success_rate"].tolist()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tries again for half a minute."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_is_read_as_if_it_were_here(ending, hub, tmp_path):
    local = tmp_path / f"local{ending}"
    local.write_bytes(WRITERS[ending](ROWS))
    commit = hub.publish("me/sums", {f"data/rows{ending}": local.read_bytes()})
    address = f"hf://datasets/me/sums/data/rows{ending}"
    here, there = read(local), read(address)
    assert there.content_hash == here.content_hash
    assert (here.revisions, there.revisions) == ([], [f"me/sums@{commit}"])
    assert there.path == f"hf://datasets/me/sums@{commit}/data/rows{ending}"
    assert read(there.path).content_hash == here.content_hash
    assert len(read(address, max_samples=2).questions) == 2
    assert read_all_columns(address, "question")[1].names == list(ROWS)


@pytest.mark.parametrize("branch", ["v1", "refs/convert/parquet", "refs/pr/3"])
def test_a_revision_is_a_branch_or_a_commit(branch, hub):
    old = hub.publish("me/sums", {"a.parquet": parquet(ROWS)}, branch=branch)
    new = hub.publish("me/sums", {"a.parquet": parquet(OTHERS)})
    assert labels("hf://datasets/me/sums/a.parquet") == labels(f"hf://datasets/me/sums@{new}/a.parquet")
    assert labels("hf://datasets/me/sums/a.parquet") == OTHERS["success_rate"].tolist()
    for revision in (branch, old):
        found = read(f"hf://datasets/me/sums@{revision}/a.parquet")
        assert found.labels["success_rate"].tolist() == ROWS["success_rate"].tolist()
        assert found.revisions == [f"me/sums@{old}"]


def test_an_address_is_written_as_it_is_read():
    for text in (
        "hf://datasets/a/b/c/d.parquet",
        "hf://datasets/a/b@refs/convert/parquet/c/d.parquet",
        "hf://datasets/a/b@v1.0/d.csv",
        "a/b:main:train",
        "a-1/b_2.c@0123456789012345678901234567890123456789:en-US:validation",
    ):
        assert str(HubAddress.parse(text)) == text
    for revision in ("refs/pr/1", "refs%2Fpr%2F1"):
        address = HubAddress.parse(f"hf://datasets/a/b@{revision}/x/y.csv")
        assert (address.revision, address.file) == ("refs/pr/1", "x/y.csv")
    assert HubAddress.parse("a/b@refs/pr/1:c:d") == HubAddress("a/b", "refs/pr/1", None, "c", "d")


def test_a_file_that_is_here_goes_before_a_split_of_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("me/Sums:main:train")
    assert is_on_hub(str(path))
    path.parent.mkdir()
    path.write_bytes(parquet(ROWS))
    assert not is_on_hub(str(path))
    assert not is_on_hub(path)
    assert is_on_hub(str(path), folder="elsewhere")
    assert labels(str(path)) == ROWS["success_rate"].tolist()
    assert hub.requests == []
    # A name that no file can have.
    assert is_on_hub(f"{'x' * 300}/{'y' * 300}:main:train")


def test_datasets_of_the_hub_and_of_the_disk_follow_one_another(hub, tmp_path):
    commit = hub.publish("me/sums", {"a.parquet": parquet(ROWS), "b.csv": WRITERS[".csv"](OTHERS)})
    local = tmp_path / "local.jsonl"
    local.write_bytes(WRITERS[".jsonl"](ROWS))
    found = read(["hf://datasets/me/sums/a.parquet", local, "hf://datasets/me/sums/b.csv"])
    assert found.labels["success_rate"].tolist() == pd.concat([ROWS, ROWS, OTHERS])["success_rate"].tolist()
    assert found.revisions == [f"me/sums@{commit}"]
    assert found.path.split(", ") == [
        f"hf://datasets/me/sums@{commit}/a.parquet",
        str(local),
        f"hf://datasets/me/sums@{commit}/b.csv",
    ]


def private(hub: Hub) -> None:
    hub.repos["dataset", "me/sums"].private = True


def gated(hub: Hub) -> None:
    hub.repos["dataset", "me/sums"].gated = True


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("hf://datasets/me/none/a.parquet", "the hub has no visible dataset me/none; check its name"),
        ("hf://datasets/me/sums@v9/a.parquet", "me/sums has no branch, tag or commit 'v9'"),
        (
            "hf://datasets/me/sums/c.parquet",
            "me/sums has no file 'c.parquet'; it has a.parquet, bad.parquet, data/b.csv, few.p",
        ),
        ("hf://datasets/me/sums/data", "me/sums has no file 'data'; it has data/b.csv"),
        ("hf://datasets/me/sums", "hf://datasets/me/sums is not the address of a file in a dataset of the hub; write"),
        ("hf://me/sums/a.parquet", "is not the address of a file"),
        ("hf://datasets/me/sums/notes.txt", "hf://datasets/me/sums/notes.txt: files that end in '.txt' are not read"),
        ("hf://datasets/me/sums/bad.parquet", "hf://datasets/me/sums/bad.parquet cannot be read as parquet"),
        ("hf://datasets/me/sums/few.parquet", "hf://datasets/me/sums/few.parquet has no column 'success_rate'"),
        ("hf://datasets/me/sums/null.parquet", "hf://datasets/me/sums/null.parquet: column 'question' has 1 values"),
        ("me/sums", "dataset me/sums does not exist; give a parquet"),
        ("me/sums:train", "of the hub hf://datasets/ORG/NAME/FILE or ORG/NAME:CONFIG:SPLIT"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(where, said, hub):
    few, null = ROWS[["question", "topic"]], ROWS.assign(question=["a", None, "b", "c"])
    contents = {"a": parquet(ROWS), "bad": b"x", "few": parquet(few), "null": parquet(null)}
    files = {f"{name}.parquet": content for name, content in contents.items()}
    hub.publish("me/sums", {**files, "data/b.csv": WRITERS[".csv"](ROWS), "notes.txt": b"x"})
    with pytest.raises(InputError) as raised:
        read(where)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "snapshots" not in str(raised.value)


@pytest.mark.parametrize(
    ("close", "said"),
    [
        (private, "if it is private run `hf auth login` (or set HF_TOKEN)"),
        (gated, "me/sums is gated: request access on its page, then run `hf auth login`"),
    ],
)
def test_what_is_not_for_everyone_asks_for_a_token(close, said, hub, monkeypatch):
    hub.publish("me/sums", {"README.md": b"# Sums", "a.parquet": parquet(ROWS)})
    close(hub)
    assert labels("hf://datasets/me/sums/a.parquet") == ROWS["success_rate"].tolist()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path(constants.HF_HUB_CACHE) / "of_another_user"))
    for where in ("hf://datasets/me/sums/a.parquet", "me/sums:default:train"):
        with pytest.raises(InputError, match="me/sums") as raised:
            read(where)
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)


def test_offline_and_without_a_network_the_cache_is_read(hub, monkeypatch, no_waiting):
    commit = hub.publish("me/sums", {"a.parquet": parquet(ROWS), "b.parquet": parquet(OTHERS)})
    address, other = (f"hf://datasets/me/sums/{name}.parquet" for name in "ab")
    read(address)
    # A port where nobody answers.
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    assert read(address).revisions == [f"me/sums@{commit}"]
    with pytest.raises(
        InputError, match="is not in the cache of this machine, and the hub could not be used"
    ) as raised:
        read(other)
    assert "refused" in str(raised.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read(address).revisions == [f"me/sums@{commit}"]
    assert labels(f"hf://datasets/me/sums@{commit}/a.parquet") == ROWS["success_rate"].tolist()
    said = (
        f"{other} is not in the cache of this machine, and HF_HUB_OFFLINE is set, so the hub cannot be used; unset it"
    )
    with pytest.raises(InputError) as raised:
        read(other)
    assert str(raised.value) == said


def test_without_datasets_the_extra_is_named(hub, monkeypatch):
    publish(hub)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"^me/Sums:main:train is read by .* pip install 'probesweep\[datasets\]'"):
        read("me/Sums:main:train")
    assert hub.requests == []
    assert labels("hf://datasets/me/Sums/main/test.parquet") == ROWS["success_rate"].tolist()[::-1]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("me/Sums:main:train", ROWS),
        ("me/Sums:main:test", ROWS[::-1]),
        ("me/Sums:more:train", ROWS[1:]),
    ],
)
def test_a_split_is_read_in_its_order_with_all_columns(where, rows, datasets_hub):
    commit = publish(datasets_hub)
    found = read(where)
    assert found.questions == rows["question"].tolist()
    assert found.labels["success_rate"].tolist() == rows["success_rate"].tolist()
    assert found.groups["topic"].tolist() == rows["topic"].tolist()
    assert found.revisions == [f"me/Sums@{commit}"]
    assert found.path == where.replace("me/Sums", f"me/Sums@{commit}")
    columns = Columns.read(where, Wanted(["question"], others=True))
    assert columns.names == list(ROWS)
    assert columns.path == where
    pd.testing.assert_frame_equal(columns.parts[0].rows.typed_table().to_pandas(), rows.reset_index(drop=True))
    assert len(read(where, max_samples=3).questions) == 3


def test_a_repository_of_plain_files_has_the_configuration_default(datasets_hub):
    datasets_hub.publish("me/plain", {"train.csv": WRITERS[".csv"](ROWS), "test.csv": WRITERS[".csv"](OTHERS)})
    assert labels("me/plain:default:test") == OTHERS["success_rate"].tolist()
    assert labels("me/plain:default:train") == ROWS["success_rate"].tolist()
    datasets_hub.publish("me/lines", {"train.jsonl": WRITERS[".jsonl"](ROWS)})
    assert labels("me/lines:default:train") == ROWS["success_rate"].tolist()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("me/none:main:train", "me/none:main:train: the hub has no visible dataset me/none"),
        ("me/Sums@v9:main:train", "me/Sums has no branch, tag or commit 'v9'"),
        (f"me/Sums@{'0' * 40}:main:train", f"me/Sums has no branch, tag or commit '{'0' * 40}'"),
        ("me/Sums:extra:train", "me/Sums has no configuration 'extra'; it has main, more"),
        ("me/Sums:main:dev", "me/Sums has no split 'dev' in main; it has train, test"),
        ("me/Sums:main:", "dataset me/Sums:main: does not exist; give a parquet"),
        ("me/Sums:main:train[:2]", "me/Sums has no split 'train[:2]' in main; it has train, test"),
        ("me/code:default:train", "me/code:default:train: datasets cannot read it: Dataset scripts are no longer supp"),
        ("me/broken:default:train", "me/broken:default:train: datasets cannot read it: "),
        ("me/empty:default:train", "me/empty:default:train: datasets cannot read it: "),
    ],
)
def test_a_split_that_is_not_there_is_said_in_one_line(where, said, datasets_hub, monkeypatch):
    logged = []
    monkeypatch.setattr(logging.getLogger("datasets"), "handle", logged.append)
    monkeypatch.setattr(logging.getLogger("datasets.packaged_modules.parquet.parquet"), "handle", logged.append)
    publish(datasets_hub)
    datasets_hub.publish("me/code", {"code.py": b"raise SystemExit('code of the repository ran')"})
    datasets_hub.publish("me/broken", {"train.parquet": b"PAR1 and no more"})
    datasets_hub.publish("me/empty", {"README.md": b"# Nothing"})
    for _ in range(2):
        with pytest.raises(InputError) as raised:
            read(where)
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
        assert logged == []
        # And where datasets has made the splits that there are.
        read("me/Sums:main:train")


def test_a_folder_of_the_same_name_is_no_repository(datasets_hub, tmp_path, monkeypatch):
    publish(datasets_hub)
    monkeypatch.chdir(tmp_path)
    Path("me/Sums/main").mkdir(parents=True)
    Path("me/Sums/README.md").write_text(CARD)
    Path("me/Sums/main/train-0.parquet").write_bytes(parquet(OTHERS))
    assert labels("me/Sums:main:train") == ROWS["success_rate"].tolist()


def test_a_split_comes_from_the_cache_at_the_very_commit(datasets_hub, monkeypatch, no_waiting):
    old = publish(datasets_hub)
    assert labels("me/Sums:main:train") == ROWS["success_rate"].tolist()
    asked = len(datasets_hub.requests)
    assert labels(f"me/Sums@{old}:main:train") == ROWS["success_rate"].tolist()
    assert len(datasets_hub.requests) == asked
    new = publish(datasets_hub, OTHERS, message="better labels")
    # Here datasets on its own would take what it made of the old commit.
    datasets_hub.fail = {"GET /api/datasets/me/Sums/tree": (500, {})}
    with pytest.raises(InputError, match="me/Sums:main:train: ") as raised:
        read("me/Sums:main:train")
    assert "\n" not in str(raised.value)
    datasets_hub.fail = {}
    assert labels("me/Sums:main:train") == OTHERS["success_rate"].tolist()
    from datasets import config

    for module in (constants, config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    for where, commit, rows in (
        ("me/Sums:main:train", new, OTHERS),
        (f"me/Sums@{new}:main:train", new, OTHERS),
        (f"me/Sums@{old}:main:train", old, ROWS),
    ):
        found = read(where)
        assert found.revisions == [f"me/Sums@{commit}"]
        assert found.labels["success_rate"].tolist() == rows["success_rate"].tolist()
    for where in ("me/Sums:more:train", "me/others:main:train"):
        with pytest.raises(InputError, match=f"^{where}.*HF_HUB_OFFLINE is set, so the hub cannot be used; unset it$"):
            read(where)


def test_another_commit_is_never_taken_for_the_one_that_was_asked_for(datasets_hub, monkeypatch):
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    old = publish(datasets_hub)
    read("me/Sums:main:train")
    publish(datasets_hub, OTHERS, message="better labels")
    # As if the hub went away between two questions of datasets.
    made = Cache(repo_id="me/Sums", dataset_name="Sums", config_name="main", hash=old)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: made)
    with pytest.raises(InputError, match="datasets took another commit; try again"):
        read("me/Sums:main:train")


def test_rows_of_a_split_stay_on_the_disk(datasets_hub):
    long = pd.DataFrame({"question": [f"{row} {'x' * 10_000}" for row in range(1000)], "success_rate": 0.5})
    datasets_hub.publish("me/long", {"train.parquet": parquet(long)})
    Columns.read("me/long:default:train", Wanted(["question"], others=True))
    before = pa.total_allocated_bytes()
    columns = Columns.read("me/long:default:train", Wanted(["question"], others=True))
    assert len(columns) == 1000
    assert pa.total_allocated_bytes() - before < 100_000


def test_nothing_is_imported_that_is_not_used():
    code = "import json, sys; import activation_store.questions.dataset; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"datasets", "huggingface_hub", "transformers"} & set(json.loads(done.stdout))
