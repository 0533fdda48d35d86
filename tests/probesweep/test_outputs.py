"""One process writes to a place; what a thing was made from decides whether it is done; no input is overwritten."""

import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from activation_store import ActivationStore
from activation_store.files.durable import draft_of, write_output
from activation_store.pt.convert import export_pt, import_pt, is_exported
from gpu_probes.results.folder import Run
from probesweep import Training, training
from probesweep.errors import RequestError
from probesweep.outputs import check_file, check_room, writing
from probesweep.reporting import report_on
from tests.helpers.commands import run


def save_pt(path: Path, seed: int = 0, n_samples: int = 40) -> Path:
    values = np.random.default_rng(seed).standard_normal((n_samples, 2, 2, 6)).astype(np.float32)
    content = {"activations": torch.from_numpy(values), "labels": torch.from_numpy(values[:, 1, 1, 0].copy())}
    torch.save({**content, "layer_indices": [0, 1], "positions": [-2, -1], "model_name": "m"}, path)
    return path


@pytest.fixture
def asked(tmp_path: Path) -> Training:
    """A small training that was not run."""
    train, test = save_pt(tmp_path / "train.pt"), save_pt(tmp_path / "test.pt", 1)
    return Training(train, test, tmp_path / "out", k_fold=True)


@pytest.mark.slow
def test_the_second_writer_of_a_folder_is_refused_by_name_until_the_first_dies(tmp_path: Path, asked: Training):
    code = (
        "import sys; from pathlib import Path; from probesweep.outputs import writing\n"
        "with writing(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    asked.run()
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        said = f"{tmp_path / 'out'} is being written by process {holder.pid}; wait for it or stop it"
        for work in (replace(asked, alpha=5.0).run, lambda: report_on(tmp_path / "out")):
            with pytest.raises(RequestError, match=said):
                work()
        assert asked.run()  # already done: nothing is written
        holder.kill()
    report_on(tmp_path / "out")
    assert not (tmp_path / "out/.lock").exists()


def test_what_fails_in_a_folder_that_was_made_for_it_leaves_none(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a/b"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_each_write_their_own(tmp_path: Path):
    start = threading.Barrier(2)

    def write(content: bytes) -> None:
        for _ in range(50):
            start.wait()
            write_output(tmp_path / "file", [content] * 100)

    threads = [threading.Thread(target=write, args=[content]) for content in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in (b"a" * 100, b"b" * 100)
    assert len(list(tmp_path.iterdir())) == 1


def test_drafts_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path):
    (tmp_path / ".probesweep-0123456789abcdef.partial").write_bytes(b"of a process that was killed")
    with draft_of(tmp_path / "file") as draft:
        write_output(tmp_path / "other", [b"1"])
        assert draft.exists()
        assert draft.name.encode().__len__() <= 255
        draft.write_bytes(b"2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"2", "other": b"1"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path: Path, error):
    (tmp_path / "file").write_bytes(b"before")

    def fail_halfway() -> None:
        with draft_of(tmp_path / "file") as draft:
            draft.write_bytes(b"half")
            raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        fail_halfway()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"before"}


def test_files_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "input").write_bytes(b"")
    os.link(tmp_path / "input", tmp_path / "hard link")
    for name, target in {"dangling": "nowhere", "loop": "loop", "link": "input", "dangling folder": "no"}.items():
        (tmp_path / name).symlink_to(target)
    for name, said in {
        "folder": "is a folder",
        "dangling": "is a symbolic link",
        "loop": "is a symbolic link",
        "link": "is a symbolic link",
        "dangling folder/x": "is a broken link",
        "loop/x": "is a broken link",
        "input": "is an input",
        "hard link": "is an input",
        "folder/../input": "is an input",
        "input/x": "Not a directory",
        "x" * 256: "longer than the 255 bytes",
        "y" * 256 + "/x": "longer than the 255 bytes",
        "run.json": None,
    }.items():
        if said is None:
            check_file(tmp_path / name, "output_path", [tmp_path / "input"])
            continue
        with pytest.raises(RequestError, match=said):
            check_file(tmp_path / name, "output_path", [tmp_path / "input"])
    with pytest.raises(RequestError, match="device or a pipe"):
        check_file(Path("/dev/null"), "output_path")
    with pytest.raises(RequestError, match="GiB free"):
        check_room(tmp_path / "a/b", 2**60, "output_dir")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["performance.json", "run.json", "tracked.json", "report.html"])
def test_no_output_takes_the_place_of_a_result(trained: Path, name: str):
    done = run("transfer", trained / "results", trained / "test.zarr", "--output_path", trained / "results" / name)
    assert done.returncode == 2
    assert "is the name of a result file" in done.stderr


@pytest.mark.slow
def test_no_output_takes_the_place_of_an_input(tmp_path: Path, asked: Training):
    asked.run()
    before = (tmp_path / "test.pt").read_bytes()
    for path in ("test.pt", "out/../test.pt"):
        done = run("transfer", tmp_path / "out", tmp_path / "test.pt", "--output_path", tmp_path / path)
        assert (done.returncode, "is an input" in done.stderr) == (2, True)
    assert (tmp_path / "test.pt").read_bytes() == before


@pytest.mark.slow
def test_a_new_training_takes_the_page_and_the_figures_of_the_old_one(tmp_path: Path, asked: Training):
    asked.run()
    report_on(tmp_path / "out", figures=tmp_path / "out/figures")
    replace(asked, alpha=1000.0).run()
    assert not (tmp_path / "out/report.html").exists()
    assert not (tmp_path / "out/figures").exists()


@pytest.mark.slow
def test_the_same_file_with_another_time_is_the_same_and_another_with_the_same_time_is_not(
    tmp_path: Path, asked: Training
):
    asked.run()
    os.utime(tmp_path / "train.pt", (1, 1))
    assert replace(asked).is_finished()
    status = (tmp_path / "test.pt").stat()
    save_pt(tmp_path / "test.pt", 5)
    os.utime(tmp_path / "test.pt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (tmp_path / "test.pt").stat().st_size == status.st_size
    assert not replace(asked).is_finished()


@pytest.mark.slow
def test_activations_that_are_replaced_during_the_training_are_an_error(
    tmp_path: Path, asked: Training, monkeypatch: pytest.MonkeyPatch
):
    real = training.infer

    def replaced_meanwhile(*args, **options):
        save_pt(tmp_path / "test.pt", 7)
        return real(*args, **options)

    monkeypatch.setattr(training, "infer", replaced_meanwhile)
    with pytest.raises(RequestError, match=r"test\.pt was replaced in the meantime"):
        asked.run()
    assert not (tmp_path / "out").exists()


def test_an_export_is_done_when_it_holds_what_would_be_written(tmp_path: Path):
    store = import_pt(save_pt(tmp_path / "a.pt"), tmp_path / "a.zarr", shard_samples=7)
    other = import_pt(save_pt(tmp_path / "b.pt", 3), tmp_path / "b.zarr")
    target = tmp_path / "o.pt"
    assert not is_exported(store, target)
    export_pt(store, target)
    os.utime(target, (1, 1))
    assert is_exported(store, target)
    assert not is_exported(other, target)
    for strange in ({}, [1], {"activations": 1}, torch.load(target, weights_only=True) | {"d_model": torch.ones(3)}):
        torch.save(strange, target)
        assert not is_exported(store, target)
    content = torch.load(save_pt(target), weights_only=True)
    content["labels"][3] = torch.nan
    torch.save(content, target)
    assert not is_exported(store, target)
    target.write_bytes(b"no zip")
    assert not is_exported(store, target)


@pytest.mark.slow
def test_extract_writes_a_pt_again_that_is_of_other_rows_though_it_is_newer(tmp_path: Path, tiny_model):
    for name in ("a", "b"):
        rows = "\n".join(json.dumps({"question": f"{name} {row}", "success_rate": row / 9}) for row in range(9))
        (tmp_path / f"{name}.jsonl").write_text(rows)

    def extract(name: str):
        return run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", tmp_path / f"{name}.jsonl", "--output_path",
            tmp_path / f"{name}.pt", "--use_chat_template", "--layers", "1",
        )  # fmt: skip

    for name in ("a", "b"):
        done = extract(name)
        assert done.returncode == 0, done.stderr
    right = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes((tmp_path / "b.pt").read_bytes())
    assert extract("a").returncode == 0
    assert is_exported(ActivationStore.open(tmp_path / "a.zarr"), tmp_path / "a.pt")
    assert len((tmp_path / "a.pt").read_bytes()) == len(right)


@pytest.mark.slow
def test_run_json_names_the_content_of_the_pt(tmp_path: Path, asked: Training):
    asked.run()
    assert len(Run.load(tmp_path / "out").request.train.content) == 64
