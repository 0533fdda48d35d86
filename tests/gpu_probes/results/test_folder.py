"""New results take the place of old ones as one thing, whoever is killed where."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_probes import ProbeError
from gpu_probes.report.figures import FIGURES
from gpu_probes.results.files import commit_file
from gpu_probes.results.folder import FIGURE_NAMES, RESULT_FILES, RUN, has_results, remove_drawn, replacing

OLD = {"performance.json": b"old", "best_probe_predictions.json": b"old", "cells.parquet": b"old"}
NEW = {"performance.json": b"new", "cells.parquet": b"new", "probes.safetensors": b"new"}
STEPS = ("open", "replace", "rename", "mkdir", "unlink", "rmdir", "fsync")


def with_run(files: dict[str, bytes]) -> dict[str, bytes]:
    return files | {RUN: json.dumps({"files": dict.fromkeys(files, "hash")}).encode()}


def put(folder: Path, files: dict[str, bytes]) -> None:
    with replacing(folder) as draft:
        for name, content in with_run(files).items():
            commit_file(draft / name, content)


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def killed_before(step: int, work: Callable[[], None]) -> bool:
    """Work in a forked process that is killed before its n-th change of files; whether it came to that."""
    pid = os.fork()
    if not pid:
        n = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def function(*args: Any, **options: Any) -> Any:
                nonlocal n
                n += 1
                if n == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return function

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_old_results_or_the_new(tmp_path: Path):
    step, seen = 0, set()
    while True:
        step += 1
        folder = tmp_path / str(step)
        put(folder, OLD)
        (folder / "notes.txt").write_bytes(b"the user's")
        if not killed_before(step, lambda folder=folder: put(folder, NEW)):
            break
        as_strangers_see = set(held(folder).values()) & {b"old", b"new"}
        assert len(as_strangers_see) < 2, step
        assert has_results(folder)
        found = held(folder)
        assert found.pop("notes.txt") == b"the user's"
        assert found in (with_run(OLD), with_run(NEW)), step
        seen.add(found["performance.json"])
        put(folder, NEW)
        assert {path.name for path in folder.iterdir()} == {*with_run(NEW), "notes.txt"}
    assert step > 30
    assert seen == {b"old", b"new"}


def test_what_fails_leaves_the_old_results_and_names_the_file(tmp_path: Path):
    put(tmp_path, OLD)

    def fail_in_the_middle() -> None:
        with replacing(tmp_path) as draft:
            commit_file(draft / "performance.json", b"new")
            raise OSError(28, "No space left on device", str(draft / "cells.parquet"))

    with pytest.raises(OSError, match="No space left") as caught:
        fail_in_the_middle()
    assert caught.value.filename == str(tmp_path / "cells.parquet")
    assert held(tmp_path) == with_run(OLD)


def test_new_results_that_are_not_whole_are_an_error_not_a_fault(tmp_path: Path):
    put(tmp_path, OLD)
    (tmp_path / ".new").mkdir()
    (tmp_path / ".new" / RUN).write_bytes(b'{"files"')
    with pytest.raises(ProbeError, match=r"run\.json is damaged"):
        has_results(tmp_path)


def test_names_that_lead_out_of_the_folder_are_not_moved(tmp_path: Path):
    folder, victim = tmp_path / "results", tmp_path / "victim"
    (folder / ".new").mkdir(parents=True)
    victim.write_bytes(b"kept")
    (folder / ".new" / RUN).write_bytes(json.dumps({"files": {"../victim": "", "../../victim": ""}}).encode())
    assert has_results(folder)
    assert victim.read_bytes() == b"kept"


def test_the_page_and_the_figures_go_and_nothing_else(tmp_path: Path):
    figures = [f"figures/{name}" for name in ("heatmap.svg", "heatmap.png", "heatmap.pdf", "mine.png")]
    for name in ("report.html", "performance.json", *figures):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    remove_drawn(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"performance.json", "figures", "mine.png"}
    assert set(FIGURE_NAMES) == {make.__name__ for make in FIGURES}
    assert "performance.json" in RESULT_FILES


def test_a_file_of_255_bytes_is_written_and_a_link_is_not_written_through(tmp_path: Path):
    longest = tmp_path / ("x" * 255)
    commit_file(longest, b"1")
    assert longest.read_bytes() == b"1"
    link = tmp_path / "link"
    link.symlink_to(longest)
    with pytest.raises(OSError, match="is a symbolic link, which is not followed"):
        commit_file(link, b"2")
    assert longest.read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 2
