"""Several workers write what one process does, whoever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pandas as pd
import psutil
import pytest

from activation_store import ActivationStore, Extraction, InputError, StoreError
from activation_store.extraction import distributed
from activation_store.format.spec import StoreSpec
from probesweep_errors import ProbesweepError
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS
from tests.helpers.ray import FaultyWorker, three_nodes
from tests.helpers.stores import tree

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("starts_ray")]


@pytest.fixture(scope="module")
def inputs(tiny_model, tmp_path_factory):
    dataset = tmp_path_factory.mktemp("inputs") / "questions.parquet"
    pd.DataFrame({"question": QUESTIONS, "success_rate": np.linspace(0, 1, len(QUESTIONS))}).to_parquet(dataset)
    return {
        "model": str(tiny_model("llama")), "dataset_path": dataset, "use_chat_template": True, "shard_samples": 2,
        "batch_size": 2, "device": "cpu",
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """Every file of the store that one process writes."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    Extraction(**inputs, output_path=path).run()
    return tree(path)


@pytest.fixture
def fault(tmp_path, monkeypatch):
    """Sets what goes wrong in the workers."""

    def set_fault(**fault):
        (tmp_path / "deaths").mkdir()
        monkeypatch.setenv("FAULT", json.dumps({"folder": str(tmp_path / "deaths"), "most": 1, **fault}))
        monkeypatch.setattr(distributed, "ShardWorker", FaultyWorker)

    return set_fault


@pytest.mark.parametrize("what", ["die before", "die inside", "die after"])
def test_a_worker_that_dies_is_replaced(what, inputs, whole, fault, tmp_path, capfd):
    fault(shard=1, what=what)
    store = Extraction(**inputs, output_path=tmp_path / "s.zarr", workers=2).run()
    out, err = capfd.readouterr()
    assert out == ""
    assert "raylet" not in err
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    assert store.verify() == []
    assert tree(tmp_path / "s.zarr") == whole


def test_three_deaths_at_one_shard_stop_it_and_any_process_goes_on(inputs, whole, fault, tmp_path):
    fault(shard=2, what="die before", most=99)
    with pytest.raises(StoreError, match=r"s\.zarr: workers died 3 times at rows 4-5; all other shards") as caught:
        Extraction(**inputs, output_path=tmp_path / "s.zarr", workers=2).run()
    assert "\n" not in str(caught.value)
    # All others, but for one that another worker may have been running.
    assert ActivationStore.open(tmp_path / "s.zarr").n_committed_shards in (4, 5)
    Extraction(**inputs, output_path=tmp_path / "s.zarr").run()
    assert tree(tmp_path / "s.zarr") == whole


def test_what_a_worker_raises_is_raised_here(inputs, fault, tmp_path):
    fault(shard=1, what="raise")
    with pytest.raises(StoreError, match=r"^the disk of this worker is full$"):
        Extraction(**inputs, output_path=tmp_path / "s.zarr", workers=1).run()


def test_workers_finish_and_repair_what_one_process_began(inputs, whole, tmp_path):
    path = tmp_path / "s.zarr"
    for name, content in whole.items():
        if name not in ("activations/journal/finished", "activations/journal/1", "activations/c/3/0/0/0"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    Extraction(**inputs, output_path=path, workers=2, repair=True).run()
    assert tree(path) == whole


def test_a_node_that_goes_away(inputs, whole, fault, tmp_path, monkeypatch):
    """Three raylets, one of them killed with its worker while shards are run."""
    fault(shard=99, what="die before", seconds=0.5)
    path = tmp_path / "s.zarr"
    with three_nodes() as address:
        gone = []

        def kill_one():
            while len(list((path / "activations/journal").glob("[0-9]"))) < 2:
                time.sleep(0.05)
            raylets = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"]
            # Not the first, with which the driver talks.
            victim = sorted(raylets, key=lambda process: process.create_time())[-1]
            gone.append(victim.pid)
            victim.kill()

        thread = threading.Thread(target=kill_one)
        thread.start()
        Extraction(**inputs, output_path=path, ray=address).run()
        thread.join()
    assert gone
    assert tree(path) == whole


def test_an_interrupt_keeps_what_is_committed_and_leaves_no_process(inputs, whole, tmp_path):
    path, deaths = tmp_path / "s.zarr", tmp_path / "deaths"
    deaths.mkdir()
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from activation_store.extraction import distributed; from tests.helpers.ray import FaultyWorker\n"
    code += "distributed.ShardWorker = FaultyWorker\nfrom probesweep.commands.main import main; main()"
    flags = ["--model", inputs["model"], "--dataset_path", inputs["dataset_path"], "--output_path", path]
    flags += ["--use_chat_template", "--shard_samples", 2, "--batch_size", 2, "--device", "cpu", "--workers", 2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "extract", *map(str, flags)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FAULT": json.dumps({"folder": str(deaths), "shard": 99, "most": 0, "seconds": 1})},
        start_new_session=True,
    )  # fmt: skip
    while not list((path / "activations/journal").glob("[0-9]")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in errors
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert 0 < ActivationStore.open(path).n_committed_shards < 6
    Extraction(**inputs, output_path=path).run()
    assert tree(path) == whole


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", 0], "--workers 0 must be from 1 to"),
        (["--ray", "127.0.0.1:9"], "no Ray answers at --ray 127.0.0.1:9"),
        (["--workers", 2, "--device", "cuda:1"], "--device cuda:1 is one device of this machine"),
        (["--workers", 2, "--device", "auto", "--device_map", "auto"], "--device_map auto spreads one model"),
    ],
)
def test_workers_that_cannot_be_had_are_refused_at_once(flags, message, inputs, tmp_path):
    given = ["--model", inputs["model"], "--dataset_path", inputs["dataset_path"], "--output_path", tmp_path / "s.zarr"]
    done = run("extract", *given, "--use_chat_template", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "s.zarr").exists()


def test_more_workers_than_gpus_are_refused_before_the_model_is_loaded(inputs, tmp_path, monkeypatch):
    import probesweep_ray

    monkeypatch.setattr(probesweep_ray, "n_local_gpus", lambda: 1)
    extraction = Extraction(**{**inputs, "device": "auto"}, output_path=tmp_path / "s.zarr", workers=2)
    with (
        pytest.raises(ProbesweepError, match="workers=2 are too many: there are 1 GPU"),
        distributed.workers(extraction.machines, extraction._job.model_run, gpus=True),
    ):
        pass


def test_a_store_of_format_1_is_not_shared(inputs, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("activation_store.extraction.job.StoreSpec", partial(StoreSpec, version=1))
        Extraction(**inputs, output_path=tmp_path / "s.zarr").run()
    (tmp_path / "s.zarr/activations/c/0/0/0/0").unlink()
    with pytest.raises(InputError, match="is of store format 1, to which only one process can write"):
        Extraction(**inputs, output_path=tmp_path / "s.zarr", workers=2, repair=True).run()
