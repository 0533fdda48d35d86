"""Every command on stores in an object store: a real server, and the same as on a disk, byte for byte."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pandas as pd
import pytest
import torch
from obstore.store import from_url

from activation_store import ActivationStore, import_pt
from activation_store.capture.hidden_states import HiddenStates
from activation_store.files import lease, requests
from activation_store.files.storage import open_storage
from activation_store.store.writer import LOCK_PATH
from benchmarks.shared.objects import KEY, POOR_KEY, POOR_SECRET, SECRET, Server
from benchmarks.shared.proxy import Delay, Mistake, Proxy
from tests.helpers.commands import PROBESWEEP, run
from tests.helpers.models import QUESTIONS
from tests.helpers.stores import make_spec, make_values, tree, uncommit, write_store

pytestmark = pytest.mark.slow

# May not read the bucket of these tests.
POOR = {"AWS_ACCESS_KEY_ID": POOR_KEY, "AWS_SECRET_ACCESS_KEY": POOR_SECRET}


@dataclass
class Place:
    """The same stores in a folder and in a bucket, and all that the commands said."""

    folder: Path
    address: str
    model: Path
    said: list[str] = field(default_factory=list)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        done = run(*arguments)
        self.said += [done.stdout, done.stderr]
        return done

    def do(self, *arguments: object) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def extract(self, split: str, output_path: object) -> tuple[object, ...]:
        """The command: fixed batches, because the store records them."""
        return (
            "extract", "--model", self.model, "--dataset_path", self.folder / f"{split}.parquet", "--use_chat_template",
            "--layers", "0,1,3", "--shard_samples", 5, "--batch_size", 5, "--output_path", output_path,
        )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def environment(object_server: Server) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_server.env.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, object_server: Server) -> Place:
    folder = tmp_path_factory.mktemp("stores")
    place = Place(folder, f"{object_server.make_bucket('commands')}/a folder", tiny_model("llama"))
    generator = np.random.default_rng(0)
    for split, copies in {"train": 3, "test": 2}.items():
        questions = [f"{question} ({split} {copy})" for copy in range(copies) for question in QUESTIONS]
        table = pd.DataFrame({"question": questions, "success_rate": generator.random(len(questions))})
        table.to_parquet(folder / f"{split}.parquet")
        for where in (folder, place.address):
            said = place.do(*place.extract(split, f"{where}/{split}.zarr"))
            assert f"<ActivationStore {where}/{split}.zarr>" in said
    return place


def train(place: Place, where: object, output_dir: Path) -> Path:
    place.do(
        "train", "--train_activations", f"{where}/train.zarr", "--test_activations", f"{where}/test.zarr",
        "--output_dir", output_dir, "--k_fold", "--alphas", "1,100", "--permutations", "20",
    )  # fmt: skip
    return output_dir


@pytest.fixture(scope="module")
def results(place) -> Path:
    return train(place, place.address, place.folder / "results of addresses")


def objects(address: str) -> dict[str, bytes]:
    """What obstore itself finds below an address."""
    store = from_url(address)
    names = [one["path"] for page in obstore.list(store) for one in page]
    return {name: bytes(obstore.get(store, name).bytes()) for name in names}


def files(path: Path) -> dict[str, bytes]:
    """The same of a store on a disk, whose lock stays, empty."""
    return {name: data for name, data in tree(path).items() if name != LOCK_PATH}


def change(address: str, name: str) -> None:
    """Flip a bit."""
    data = bytearray(objects(address)[name])
    data[10] ^= 1
    obstore.put(from_url(address), name, bytes(data))


def kill(command: tuple[object, ...], slow: Mistake, endpoint: str, is_time: Callable[[], bool]) -> None:
    """Run a command, some of whose requests are slow, and kill it when it is time."""
    with Proxy(endpoint, [slow]) as proxy:
        # No fork of this process, which has used an object store.
        process = subprocess.Popen(
            [PROBESWEEP, *map(str, command)],
            # On as many threads as this process has, on which the last bits depend.
            env={**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        deadline = time.monotonic() + 60
        while not is_time():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()


# Extract


@pytest.mark.parametrize("split", ["train", "test"])
def test_extract_writes_the_bytes_that_it_writes_on_a_disk(place, split):
    found = objects(f"{place.address}/{split}.zarr")
    assert found == files(place.folder / f"{split}.zarr")
    assert ActivationStore.open(f"{place.address}/{split}.zarr").n_committed_shards > 3


def test_a_finished_extraction_is_not_repeated(place, monkeypatch):
    monkeypatch.setattr(HiddenStates, "load", None)
    store = from_url(f"{place.address}/test.zarr")
    before = {one["path"]: one["last_modified"] for page in obstore.list(store) for one in page}
    assert "22 of 22 committed" in place.do(*place.extract("test", f"{place.address}/test.zarr"))
    assert {one["path"]: one["last_modified"] for page in obstore.list(store) for one in page} == before
    assert "disk         unknown, an object store" in place.do(
        *place.extract("test", f"{place.address}/new.zarr"), "--dry_run"
    )
    assert not objects(f"{place.address}/new.zarr")


def test_a_killed_extraction_is_resumed(place, object_server):
    address = f"{place.address}/killed.zarr"
    command = place.extract("train", address)
    slow = Mistake("PUT", r"killed\.zarr/activations/c/", Delay(0.3), count=10_000)
    journal = open_storage(f"{address}/activations/journal")
    kill(command, slow, object_server.endpoint, lambda: len(journal.names()) > 2)
    left = ActivationStore.open(address)
    assert 0 < left.n_committed < len(left)
    assert "33 of 33 committed" in place.do(*command)
    assert objects(address) == files(place.folder / "train.zarr")


def test_damage_is_found_and_repaired(place):
    address = f"{place.address}/damaged.zarr"
    place.do("copy", f"{place.address}/test.zarr", address)
    whole = objects(address)
    for name in ("activations/c/1/0/0/0", "success_rate/c/0"):
        change(address, name)
    done = place.run("verify", address)
    assert done.returncode == 1
    assert f"{address}/activations/c/1/0/0/0 (rows 5-9): the values of layer index 0, position index 0" in done.stdout
    assert f"{address}/success_rate/c/0 is not what was written" in done.stdout
    place.do(*place.extract("test", address), "--repair")
    assert objects(address) == whole


# Read


def test_verify_and_inspect(place):
    address = f"{place.address}/test.zarr"
    assert place.do("verify", address) == f"{address}: all 22 samples are complete and undamaged\n"
    on_disk = place.do("inspect", place.folder / "test.zarr")
    assert place.do("inspect", address + "/") == on_disk.replace(f"{place.folder}/test.zarr", address)
    assert json.loads(place.do("inspect", address, "--json"))["path"] == address


def test_trainings_are_those_on_a_disk(place, results):
    expected, found = tree(train(place, place.folder, place.folder / "results")), tree(results)
    assert set(found) == set(expected) > {"run.json", "probes.safetensors", "probe.json", "inference.json"}
    assert [name for name in found if found[name] != expected[name]] == ["run.json"]
    run_of_disk, run_of_addresses = (json.loads(one["run.json"]) for one in (expected, found))
    for split in ("train", "test"):
        assert run_of_disk["request"][split].pop("path") == str(place.folder / f"{split}.zarr")
        assert run_of_addresses["request"][split].pop("path") == f"{place.address}/{split}.zarr"
    assert run_of_disk == run_of_addresses


def test_a_finished_training_is_not_repeated(place, results):
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    train(place, place.address, results)
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before


def test_predict_transfer_and_report(place, results, tmp_path, monkeypatch, caplog):
    scored = json.loads(place.do("predict", "--probe", results, "--text", "What is 2 + 3?", "--json"))
    assert np.isfinite(scored[0]["probe_score"])
    stores = [f"{place.address}/test.zarr", place.folder / "test.zarr"]
    place.do("transfer", results, *stores, "--output_path", tmp_path / "scores.json")
    (scores,) = json.loads((tmp_path / "scores.json").read_text())["probes"].values()
    assert scores[0] == scores[1]
    place.do("report", results)
    assert QUESTIONS[0] in (results / "report.html").read_text()
    for name, value in POOR.items():
        monkeypatch.setenv(name, value)
    place.do("report", results)
    assert "does not show these prompts: s3://commands/a folder/test.zarr: the server refuses access" in caplog.text
    assert QUESTIONS[0] not in (results / "report.html").read_text()


def test_export_and_import(place, tmp_path):
    for where, name in ((place.folder, "disk.pt"), (place.address, "address.pt")):
        place.do("export", f"{where}/test.zarr", tmp_path / name)
    disk, bucket = (torch.load(tmp_path / name) for name in ("disk.pt", "address.pt"))
    assert all(torch.equal(disk.pop(name), bucket.pop(name)) for name in ("activations", "labels"))
    assert disk == bucket
    address = f"{place.address}/imported.zarr"
    place.do("import", tmp_path / "disk.pt", address)
    import_pt(tmp_path / "disk.pt", tmp_path / "imported.zarr")
    assert objects(address) == files(tmp_path / "imported.zarr")
    before = objects(address)
    place.do("import", tmp_path / "disk.pt", address)
    assert objects(address) == before


def test_push(place, hub, tmp_path, monkeypatch):
    largest = 0

    def watched(self: Any, start: int, n_bytes: int) -> memoryview:
        nonlocal largest
        found = part(self, start, n_bytes)
        largest = max(largest, len(found))
        return found

    from activation_store.files.objects import ObjectContents

    part = ObjectContents.part
    place.do("push", f"{place.address}/train.zarr", "me/states")
    sent = hub.repos["dataset", "me/states"].files()
    assert {name: sent[name] for name in sent.keys() - {"README.md", ".gitattributes"}} == objects(
        f"{place.address}/train.zarr"
    )
    # Nothing is sent again, and only pieces of files are in memory.
    monkeypatch.setattr("activation_store.files.storage._PIECE_NBYTES", 1000)
    monkeypatch.setattr(ObjectContents, "part", watched)
    monkeypatch.setattr("probesweep.sharing.parcels._pack_store", lambda place, _: packed)
    from probesweep.sharing.parcels import Parcel

    names = tuple(objects(f"{place.address}/train.zarr"))
    packed = Parcel("dataset", f"{place.address}/train.zarr", names, "about", "shows", "card")
    place.do("push", f"{place.address}/train.zarr", "me/again")
    again = hub.repos["dataset", "me/again"].files()
    assert {name: again[name] for name in names} == {name: sent[name] for name in names}
    assert largest == 1000


# Copy


@pytest.fixture(scope="module", params=[1, 2])
def version(request) -> int:
    return request.param


@pytest.mark.parametrize("finished", [True, False])
def test_copies_in_all_directions(place, tmp_path, version, finished):
    spec = make_spec(version=version)
    source, address = tmp_path / "source.zarr", f"{place.address}/{secrets.token_hex(4)}"
    write_store(source, spec, make_values(spec), finish=finished)
    expected = tree(source)
    if not finished:
        uncommit(source, 1)
        expected = {name: data for name, data in tree(source).items() if "c/1/" not in name}
    without_lock = {name: data for name, data in expected.items() if name != LOCK_PATH}
    n_committed = 11 if finished else 7
    for one, other in (
        (source, f"{address}/a.zarr"),
        (f"{address}/a.zarr", f"{address}/b.zarr/"),
        (f"{address}/b.zarr", tmp_path / "c.zarr"),
        (tmp_path / "c.zarr", tmp_path / "new/d.zarr"),
    ):
        assert f"{n_committed} of 11 committed" in place.do("copy", one, other)
        found = tree(other) if isinstance(other, Path) else objects(other)
        assert found == (expected if isinstance(other, Path) else without_lock)
        assert ActivationStore.open(other).journal_hash == ActivationStore.open(source).journal_hash


def test_an_unfinished_store_is_copied_further(place, tmp_path, version):
    """The second time what was committed since is added; copies that are ahead are not overwritten."""
    spec = make_spec(version=version)
    for name, finish in (("part", False), ("whole", True)):
        write_store(tmp_path / f"{name}.zarr", spec, make_values(spec), finish=finish)
    uncommit(tmp_path / "part.zarr", 2)
    address = f"{place.address}/{secrets.token_hex(4)}.zarr"
    place.do("copy", tmp_path / "part.zarr", address)
    place.do("copy", tmp_path / "whole.zarr", address)
    assert objects(address) == files(tmp_path / "whole.zarr")
    done = place.run("copy", tmp_path / "part.zarr", address)
    assert done.returncode == 2
    assert "was written since it was copied (shard 2 is not that of" in done.stderr
    assert objects(address) == files(tmp_path / "whole.zarr")


@pytest.mark.parametrize("to_address", [True, False])
def test_a_killed_copy_is_resumed_and_sends_nothing_twice(
    place, tmp_path, version, object_server, to_address, monkeypatch
):
    spec = make_spec(24, shard_samples=1, version=version)
    source, key = tmp_path / "source.zarr", secrets.token_hex(4)
    write_store(source, spec, make_values(spec), finish=True)
    address = f"{place.address}/{key}.zarr"
    if not to_address:
        place.do("copy", source, address)
    one, other = (source, address) if to_address else (address, tmp_path / "other.zarr")
    shards = open_storage(f"{other}/activations/c" if to_address else other / "activations/c")
    method = "PUT" if to_address else "GET"
    slow = Mistake(method, rf"{key}\.zarr/activations/c/", Delay(0.1), count=10_000)
    kill(("copy", one, other), slow, object_server.endpoint, lambda: len(shards.names()) > 4)
    left = ActivationStore.open(other)
    assert left.n_committed < 24
    assert not left.health
    names = objects(address) if to_address else tree(other)
    there = [name for name in names if re.fullmatch(r"activations/c/\d+/0/0/0", name)]
    with Watched(object_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        place.do("copy", one, other)
        sent = [path for asked, path in proxy.asked if asked == method and f"{key}.zarr/activations/c/" in path]
    # A request of the killed process may have arrived after it ended.
    assert 0 < len(sent) <= 24 - len(there) < 24
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_server.endpoint)
    assert (objects(address) if to_address else files(other)) == files(source)


class Watched(Proxy):
    """Makes no mistakes, and knows what was asked."""

    def __init__(self, target: str) -> None:
        self.asked: list[tuple[str, str]] = []
        super().__init__(target)

    def handle(self, request: Any) -> None:
        self.asked.append((request.command, request.path))
        super().handle(request)


def test_copies_of_damaged_stores_and_to_other_stores_are_refused(place, tmp_path):
    spec = make_spec()
    address = f"{place.address}/{secrets.token_hex(4)}.zarr"
    write_store(tmp_path / "source.zarr", spec, make_values(spec), finish=True)
    write_store(tmp_path / "other.zarr", make_spec(dataset="e"), make_values(spec), finish=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").write_text("mine")
    place.do("copy", tmp_path / "source.zarr", address)
    for target, said in (
        (tmp_path / "other.zarr", "is another store; remove it or choose another TARGET"),
        (tmp_path / "full", "exists and is not a store"),
        (tmp_path / "source.zarr", "is the store that is copied, or in it"),
        (tmp_path / "source.zarr/inside.zarr", "is the store that is copied, or in it"),
        (f"{place.address}/test.zarr", "is another store"),
    ):
        before = tree(tmp_path)
        done = place.run("copy", tmp_path / "source.zarr", target)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
        assert tree(tmp_path) == before
    change(address, "activations/c/1/0/0/0")
    done = place.run("copy", address, tmp_path / "copy.zarr")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{address}/activations/c/1/0/0/0 (rows 4-7): the values of layer index 0" in done.stderr
    assert ActivationStore.open(tmp_path / "copy.zarr").n_committed == 4


# Mistakes


@pytest.mark.parametrize(
    ("variables", "address", "said"),
    [
        ({}, "s3://no-such-bucket/x.zarr", "there is no bucket no-such-bucket on the server"),
        (POOR, "s3://commands/x.zarr", "the server refuses access; check the credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://commands/x.zarr", "the object store cannot be reached"),
        ({}, "s3://", "names no bucket"),
        ({}, "s3://user:secret-of-the-test@commands/x.zarr", "credentials belong into the environment"),
    ],
)  # fmt: skip
def test_places_that_cannot_be_used(place, tmp_path, monkeypatch, variables, address, said):
    monkeypatch.setattr(HiddenStates, "load", None)
    monkeypatch.setattr(requests, "FIRST_SECONDS", 0.2)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for command in (
        place.extract("train", address),
        ("verify", address),
        ("copy", place.folder / "test.zarr", address),
        ("copy", address, tmp_path / "new.zarr"),
        ("push", address, "me/states"),
        ("train", "--train_activations", address, "--test_activations", address, "--output_dir", tmp_path / "new"),
    ):
        done = place.run(*command)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert said in done.stderr
        assert not list(tmp_path.iterdir())


def test_addresses_without_a_store(place, tmp_path):
    address = f"{place.address}/nothing.zarr"
    new = tmp_path / "new"
    for command in (
        ("verify", address), ("inspect", address), ("export", address, new), ("push", address, "me/states"),
        ("copy", address, new), ("transfer", place.folder, address),
        ("train", "--train_activations", address, "--test_activations", address, "--output_dir", new),
    ):  # fmt: skip
        done = place.run(*command)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert not new.exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train --train_activations a --test_activations b --output_dir s3://commands/r", "'--output_dir': s3://commands/r"),
        ("report s3://commands/r", "is in an object store, where only stores can be; give a path on a disk"),
        ("predict --probe s3://commands/r --text a", "where only stores can be"),
        ("pull me/states s3://commands/r", "where only stores can be"),
        ("verify s3://commands/x.pt", "s3://commands/x.pt: no such store"),
        ("transfer r s3://commands/x.pt", "r holds no finished training"),
        ("extract --model m --dataset_path d --output_path s3://commands/x.pt", "give a path that ends in .zarr"),
        ("train --train_activations s3://commands/x.pt --test_activations b --output_dir r", "which needs a disk"),
    ],
)  # fmt: skip
def test_what_is_only_on_disks(place, command, said):
    done = place.run(*command.split())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr


def experiment(place: Place, folder: Path, output_dir: object) -> Path:
    folder.mkdir()
    (folder / "e.toml").write_text(
        f"""output_dir = "{output_dir}"
device = "cpu"
[model]
model = "{place.model}"
batch_size = 5
shard_samples = 5
[data]
train_dataset = "{place.folder}/train.parquet"
test_dataset = "{place.folder}/test.parquet"
use_chat_template = true
layers = "0,1,3"
[probe]
alphas = [1, 100]
[statistics]
k_fold = true
permutations = 20
"""
    )
    return folder / "e.toml"


def test_an_experiment_in_a_bucket_gives_the_files_of_one_on_a_disk(place, tmp_path):
    address = f"{place.address}/experiment"
    on_disk = experiment(place, tmp_path / "disk", "out")
    place.do("run", on_disk)
    first = experiment(place, tmp_path / "first", address)
    place.do("run", first)
    storage = open_storage(address)
    assert set(storage.names()) >= {"train.zarr/", "test.zarr/", "probes/", "stages.json"}
    there = {name: storage.read(f"probes/{name}") for name in storage.names("probes") if not name.endswith("/")}
    expected = {path.name: path.read_bytes() for path in (tmp_path / "disk/out/probes").iterdir() if path.is_file()}
    assert set(there) == {name for name in expected if not name.startswith(".")}
    # These name the stores.
    named = {"run.json", "report.html", "probe.json"}
    assert [name for name in there if name not in named and there[name] != expected[name]] == []
    # Another machine finds all of it.
    second = experiment(place, tmp_path / "second", address)
    done = place.run("run", second)
    assert done.returncode == 0, done.stderr
    for stage in ("extract train", "extract test", "train", "report"):
        assert f"{stage}: already done" in done.stdout + done.stderr
    assert {name: storage.read(f"probes/{name}") for name in there} == there
    assert "writer.lock" not in storage.names()


def test_other_inputs_in_a_bucket_are_refused_and_nothing_is_lost(place, tmp_path):
    address = f"{place.address}/kept"
    path = experiment(place, tmp_path / "e", address)
    place.do("run", path)
    before = open_storage(address).read("train.zarr/zarr.json")
    path.write_text(path.read_text().replace('layers = "0,1,3"', 'layers = "0-2"'))
    done = place.run("run", path)
    assert done.returncode == 2
    assert "was started from other inputs (layers: [0, 1, 3] in the store, [0, 1, 2] now)" in done.stderr
    assert open_storage(address).read("train.zarr/zarr.json") == before


def test_a_store_that_is_written_is_refused_before_a_model_is_loaded(place, monkeypatch):
    """As on a disk it exits with 1: nothing is wrong with the command."""
    monkeypatch.setattr(HiddenStates, "load", None)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.5)
    address = f"{place.address}/{secrets.token_hex(4)}.zarr"
    place.do("copy", place.folder / "test.zarr", address)
    lock = open_storage(address).acquire(LOCK_PATH)
    try:
        for command in (place.extract("test", address), ("copy", place.folder / "test.zarr", address)):
            done = place.run(*command)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)
            assert f"{address} is being written by process {os.getpid()} on " in done.stderr
        # Readers are not kept waiting.
        place.do("verify", address)
    finally:
        lock.release()


def test_the_extra_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    done = place.run("verify", f"{place.address}/test.zarr")
    assert done.returncode == 2
    assert 'object stores need obstore: pip install "probesweep[cloud]"' in done.stderr


def test_no_credentials_are_written(place, results, tmp_path, monkeypatch):
    if not (results / "report.html").exists():
        place.do("report", results)
    # What goes wrong is said without them, too; what --debug shows is obstore's own.
    for variables in ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, {"AWS_ENDPOINT_URL": "x"}, {"AWS_ALLOW_HTTP": "no"}):
        with monkeypatch.context() as patch:
            patch.setattr(requests, "FIRST_SECONDS", 0.2)
            for name, value in variables.items():
                patch.setenv(name, value)
            assert place.run("verify", f"{place.address}/test.zarr").returncode == 2
    written = {**objects("s3://commands"), **tree(place.folder), "said": "\n".join(place.said).encode()}
    assert len(written) > 100
    assert [name for name, data in written.items() if KEY.encode() in data or SECRET.encode() in data] == []
