"""`train` with workers: the same bytes as in one process, whoever dies, and one line where it cannot be."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_probes import ArrayCellSource, SweepResult, sweep
from gpu_probes.search import distributed
from probesweep_ray import Machines, WorkerError, connected
from tests.helpers.commands import run
from tests.helpers.ray import DeadlyCells, three_nodes, write_stores
from tests.helpers.stores import damage, tree

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("starts_ray")]

BUDGET = ("--budget_gib", 0.5)
CV = ("--k_fold", "--n_folds", 3, "--alphas", "1,10")


@pytest.fixture(autouse=True)
def blocks_of_one_cell() -> Generator[None]:
    """A plan for six blocks at a time, a thread for each: six cells in as many tasks."""
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster() -> Generator[str]:
    with three_nodes() as address:
        yield address


@pytest.fixture(scope="module")
def joined(cluster) -> Generator[str]:
    """The same cluster, and this process stays connected: its workers need not import torch for every test."""
    with connected(Machines(ray=cluster), gpus=False):
        yield cluster


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores")
    write_stores(path)
    for split in ("train", "test"):
        done = run("export", path / f"{split}.zarr", path / f"{split}.pt")
        assert done.returncode == 0, done.stderr
    return path


def train(folder: Path, output: Path, *options: object, suffix: str = ".zarr"):
    return run(
        "train", "--train_activations", folder / f"train{suffix}", "--test_activations", folder / f"test{suffix}",
        "--output_dir", output, *BUDGET, *options,
    )  # fmt: skip


def assert_same_bytes(folder: Path, output: Path, where: tuple[object, ...], *options: object, suffix: str = ".zarr"):
    for name, given in {"one": (), "many": where}.items():
        done = train(folder, output / name, *options, *given, suffix=suffix)
        assert (done.returncode, done.stderr) == (0, "")
    found, expected = tree(output / "many"), tree(output / "one")
    assert expected
    assert {name for name in {*found, *expected} if found.get(name) != expected.get(name)} == set()


def test_workers_of_this_machine_write_the_bytes_of_one_process(folder, tmp_path):
    assert_same_bytes(folder, tmp_path, ("--workers", 2), *CV, "--label_column", "success_rate")


def test_a_cluster_writes_the_bytes_of_one_process(cluster, folder, tmp_path):
    assert_same_bytes(folder, tmp_path, ("--ray", cluster), *CV, "--permutations", 20)


@pytest.mark.parametrize(
    ("options", "suffix"),
    [
        ((*CV, "--join", "layers", "--label_column", "success_rate"), ".zarr"),
        ((*CV, "--no_nested_cv"), ".pt"),
        (("--standardize", "--fit_intercept"), ".zarr"),
    ],
    ids=["joined", "pt", "no folds"],
)
def test_so_it_does_whatever_is_asked_for(joined, folder, tmp_path, options, suffix):
    assert_same_bytes(folder, tmp_path, ("--ray", joined, "--workers", 2), *options, suffix=suffix)


def test_results_that_are_there_are_not_asked_for_again_wherever_they_were_made(folder, tmp_path):
    assert train(folder, tmp_path / "out").returncode == 0
    # Nobody is asked: there is no such cluster.
    done = train(folder, tmp_path / "out", "--ray", "127.0.0.1:1")
    assert (done.returncode, done.stderr) == (0, "")


def searched(source: object, **options: object) -> SweepResult:
    labels = np.random.default_rng(1).random(40)
    return sweep(source, labels, source, labels, k_fold=True, n_folds=3, budget_bytes=2**28, device="cpu", **options)


def test_a_worker_that_dies_is_replaced_and_one_that_dies_again_and_again_named(joined, tmp_path, monkeypatch):
    array = np.random.default_rng(0).standard_normal((40, 3, 2, 7))
    found, expected = searched(DeadlyCells(array, tmp_path, 1), ray=joined), searched(ArrayCellSource(array))
    assert len(list(tmp_path.iterdir())) == 1
    for name in ("cv_predictions", "coef", "test_score", "nested_decision"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()
    # Each death takes the seconds that it takes to import torch.
    monkeypatch.setattr(distributed, "_MOST_RETRIES", 1)
    with pytest.raises(WorkerError, match=r"died 2 times at the cells 1@-1 \(LAYER@POSITION\)"):
        searched(DeadlyCells(array, tmp_path, 9), ray=joined)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_worker_finds_wrong_is_said_in_a_line(joined, tmp_path):
    write_stores(tmp_path)
    shard = max(
        (path for path in (tmp_path / "train.zarr").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    damage(shard, 40)
    done = train(tmp_path, tmp_path / "out", *CV, "--ray", joined)
    here = train(tmp_path, tmp_path / "out", *CV)
    assert done.stderr == here.stderr
    assert (done.returncode, done.stderr.count("\n")) == (here.returncode, 1)


def test_more_workers_than_the_cluster_has_cpus_are_refused(joined, folder, tmp_path):
    done = train(folder, tmp_path / "out", "--ray", joined, "--workers", 4)
    assert done.stderr == "error: --workers 4 are too many: there are 3 CPUs in the cluster; use fewer\n"
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()
    done = train(folder, tmp_path / "out", "--ray", joined, "--device", "cuda")
    assert done.stderr == f"error: the Ray cluster --ray {joined} has no GPUs; use --device cpu\n"
    assert done.returncode == 2
