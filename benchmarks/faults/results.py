"""Result folders: kills at every step of new results taking the place of old ones, and two processes at once.

The old and the new results are of two trainings of the same two ``.pt`` files. Who reads must find all of the one or
all of the other, whoever was killed or stopped where.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from activation_store import ActivationStore
from activation_store.files.durable import write_output
from activation_store.pt.convert import export_pt, import_pt, is_exported
from benchmarks.faults.counts import Counts
from gpu_probes import ProbeError
from gpu_probes.report import SavedResults
from gpu_probes.results import folder
from gpu_probes.results.folder import RESULT_FILES, RUN, Run
from probesweep import Training
from probesweep.reporting import report_on
from probesweep_errors import ProbesweepError

_STEPS = ("open", "replace", "rename", "mkdir", "unlink", "rmdir", "fsync")
_SPLITS = {"old": "train", "new": "test"}
Work = Callable[[], object]


@contextmanager
def folders() -> Generator[tuple[Path, dict[str, dict[str, bytes]]]]:
    """A root with two ``.pt`` files, and the files of the old and the new results."""
    with tempfile.TemporaryDirectory(prefix="results-") as name:
        root = Path(name)
        for split, content in _inputs().items():
            (root / f"{split}.pt").write_bytes(content)
        wanted: dict[str, dict[str, bytes]] = {}
        for age in ("old", "new"):
            training(root, age, root / age).run()
            wanted[age] = _files(root / age)
            shutil.rmtree(root / age)
        yield root, wanted


def training(root: Path, age: str, output_dir: Path) -> Training:
    """The old or the new training, which differ in the penalty and in whether there is a best probe."""
    return Training(
        train_activations=root / "train.pt",
        test_activations=root / "test.pt",
        output_dir=output_dir,
        alpha={"old": 1.0, "new": 1000.0, "third": 5.0}[age],
        k_fold=age == "old",
        device="cpu",
        budget_gib=1.0,
    )


def killed(every: int) -> Counts:
    """Kill the new training before each of its steps on the folder that holds the old results."""
    counts = Counts()
    with folders() as (root, wanted):
        out = root / "out"
        new = partial(_train, root, "new")
        for n in range(1, _count(new, out), every):
            _fill(out, wanted["old"])
            os.waitpid(_forked(new, out, n, signal.SIGKILL), 0)
            counts.fired += 1
            counts += _look(out, wanted, f"killed before step {n}")
            new()
            counts.reruns += 1
            counts.identical += _everything(out) == wanted["new"]
            counts.expect(_everything(out) == wanted["new"], f"killed before step {n}: another end after a rerun")
    return counts


def together(every: int) -> Counts:
    """Stop the new training before each of its steps; meanwhile others train, report and read; then it goes on."""
    counts = Counts()
    with folders() as (root, wanted), patch.object(folder, "PATIENCE_S", 0.1):
        out = root / "out"
        new = partial(_train, root, "new")
        for n in range(1, _count(new, out), every):
            _fill(out, wanted["old"])
            stopped = _forked(new, out, n, signal.SIGSTOP)
            if not _has_stopped(stopped):
                # It has fewer steps than were counted.
                break
            what = f"stopped before step {n}"
            for other in (partial(_train, root, "third"), partial(report_on, out)):
                _expect_refused(counts, other, out, what)
            counts += _look(out, wanted, what)
            os.kill(stopped, signal.SIGCONT)
            _, status = os.waitpid(stopped, 0)
            counts.expect(status == 0 and _everything(out) == wanted["new"], f"{what}: another end than alone")
            counts.fired += 1
    return counts


def one_file(every: int) -> Counts:
    """Stop a process before each step of writing a file; another writes another content there; then it goes on."""
    counts = Counts()
    with folders() as (root, _):
        stores = {age: import_pt(root / f"{split}.pt", root / f"{age}.zarr") for age, split in _SPLITS.items()}
        target = root / "o/x"
        exports = {age: partial(export_pt, store, target) for age, store in stores.items()}
        scores = {age: partial(write_output, target, [age.encode()]) for age in stores}
        for works in (exports, scores):
            holds = partial(_holds, target, stores if works is exports else None)
            for n in range(1, _count(works["old"], target.parent), every):
                first = _forked(works["old"], target.parent, n, signal.SIGSTOP)
                if not _has_stopped(first):
                    break
                os.waitpid(_forked(works["new"], target.parent, 0, signal.SIGSTOP), 0)
                counts.expect(holds("new"), f"step {n}: the second did not write what it said")
                os.kill(first, signal.SIGCONT)
                _, status = os.waitpid(first, 0)
                counts.expect(status == 0 and (holds("old") or holds("new")), f"step {n}: a mixture, or a failure")
                counts.expect(len(list(target.parent.iterdir())) == 1, f"step {n}: something is left")
                counts.fired += 1
                counts.cases += 1
    return counts


def _holds(target: Path, stores: Mapping[str, ActivationStore] | None, age: str) -> bool:
    """Whether a file holds one process's content: an export's or, without stores, a text."""
    return target.read_bytes() == age.encode() if stores is None else is_exported(stores[age], target)


def _train(root: Path, age: str) -> None:
    training(root, age, root / "out").run()


@cache
def _inputs() -> dict[str, bytes]:
    """Bytes of the two ``.pt`` files."""
    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as name:
        for seed, split in enumerate(_SPLITS.values()):
            values = np.random.default_rng(seed).standard_normal((40, 2, 2, 6)).astype(np.float32)
            content = {
                "activations": torch.from_numpy(values),
                "labels": torch.from_numpy(values[:, 1, 1, 0] + 0.3 * values[:, 0, 0, 1]),
                "layer_indices": [0, 1],
                "positions": [-2, -1],
                "model_name": "m",
            }
            torch.save(content, Path(name) / split)
            found[split] = (Path(name) / split).read_bytes()
    return found


def _fill(out: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name, content in files.items():
        (out / name).write_bytes(content)


def _files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in (*RESULT_FILES, RUN) if (out / name).exists()}


def _everything(out: Path) -> dict[str, bytes]:
    """All files but the lock file of one that was killed, which locks nothing."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def _look(out: Path, wanted: dict[str, dict[str, bytes]], what: str) -> Counts:
    """Read as a stranger, who opens files by their names, and as this program does."""
    counts = Counts(cases=1)
    seen = {age for name, content in _files(out).items() for age in wanted if wanted[age].get(name) != content}
    counts.expect(len(seen) < 2, f"{what}: files of both")
    try:
        results, run = SavedResults.load(out), Run.load(out)
    except ProbeError as error:
        counts.refused += 1
        counts.expect(_is_stuck(error, out), f"{what}: {error}")
        return counts
    ages = [age for age in wanted if run.is_whole(out) and _files(out) == wanted[age]]
    counts.right += len(ages) == 1
    counts.wrong += len(ages) != 1
    counts.expect(len(ages) == 1 and (results.best is None) == (ages == ["new"]), f"{what}: neither old nor new")
    return counts


def _expect_refused(counts: Counts, work: Work, out: Path, what: str) -> None:
    if not (out / ".lock").exists():
        return
    try:
        work()
        counts.expect(False, f"{what}: a second process was let in")
    except ProbesweepError as error:
        counts.refused += 1
        known = "is being written by process" in str(error) or _is_stuck(error, out)
        counts.expect(known, f"{what}: {error}")


def _is_stuck(error: Exception, out: Path) -> bool:
    """Whether an error says that the process which moves files into place has stopped, and nothing else."""
    return str(error).startswith(f"{out}: another process started to put new results there and is stuck")


def _count(work: Work, out: Path) -> int:
    """One more than the steps of some work on a folder."""
    out.mkdir(exist_ok=True)
    steps = _Steps(out, 0, signal.SIGKILL)
    with steps:
        work()
    shutil.rmtree(out)
    out.mkdir()
    return steps.n + 1


def _has_stopped(process: int) -> bool:
    """Wait until a process stops or ends; whether it stopped."""
    return os.WIFSTOPPED(os.waitpid(process, os.WUNTRACED)[1])


def _forked(work: Work, out: Path, n: int, signalled: signal.Signals) -> int:
    """Work in a forked process, which signals itself before its n-th step on the folder."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with _Steps(out, n, signalled):
            work()
        code = 0
    finally:
        os._exit(code)


class _Steps:
    """Counts calls that change files below a folder; a signal comes before one of them."""

    def __init__(self, out: Path, n: int, signalled: signal.Signals) -> None:
        self.n = 0
        self._folder, self._at, self._signal = str(out), n, signalled
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _STEPS}

    def __enter__(self) -> None:
        for name in _STEPS:
            setattr(os, name, self._counted(name))

    def __exit__(self, *exception: object) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)

    def _counted(self, name: str) -> Callable[..., Any]:
        def function(*args: Any, **options: Any) -> Any:
            if name == "fsync" or str(args[0]).startswith(self._folder):
                self.n += 1
                if self.n == self._at:
                    os.kill(os.getpid(), self._signal)
            return self._real[name](*args, **options)

        return function
