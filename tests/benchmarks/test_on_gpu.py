"""The script for a machine with a card, as far as a machine without one can run it."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.shared import card

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/on_gpu.sh"
# What its tests and benchmarks import beyond what the project depends on, some of it only in a conftest.py; and what
# installs the project.
BESIDE = ("pytest", "beartype", "hypothesis", "obstore", "himalaya", "setuptools")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def with_all_that_they_need(names: Iterable[str]) -> set[str]:
    """Names of packages and of everything below them, as they are installed here."""
    found: set[str] = set()
    todo = list(map(Requirement, names))
    while todo:
        name = canonicalize_name(todo.pop().name)
        if name not in found:
            found.add(name)
            below = map(Requirement, requires(name) or ())
            todo += [one for one in below if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def test_wheels_are_all_that_torch_and_transformers_do_not_bring() -> None:
    lines = run("--wheels").stdout.splitlines()
    assert len(lines) > 20
    assert {*lines} <= {*(ROOT / "constraints.txt").read_text().splitlines()}
    named = {canonicalize_name(line.partition("==")[0]) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = with_all_that_they_need([*project, *BESIDE])
    brought = with_all_that_they_need(["torch", "transformers"])
    assert {"torch", "transformers", "numpy", "tokenizers"} <= brought
    assert needed - brought <= named <= needed - {"torch", "transformers", "numpy", "tokenizers"}


def test_the_limits_make_less_than_nine_minutes() -> None:
    text = SCRIPT.read_text()
    limits = {name: int(seconds) for name, seconds in re.findall(r"(?m)^  \[(\w+)\]=(\d+)$", text)}
    (grace,) = re.findall(r"(?m)^grace=(\d+)$", text)
    assert list(limits) == ["device", "install", "tests", "job", "extract"]
    assert sum(limits.values()) + len(limits) * int(grace) < 540
    assert text.count("timeout --kill-after=$grace") == 2
    assert text.count("timeout ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quik"], "--quik is unknown; there are --wheels, --quick,"),
        (["--out"], "--out needs a value"),
        (["--parts", "job,tets"], "--parts tets: there are tests, job and extract"),
        (["--parts", ""], "--parts names none"),
        (["--parts", ","], "--parts names none"),
        (["--find-links", "/nowhere"], "--find-links /nowhere: there is no such folder"),
        (["--python", "no-such-python"], "--python no-such-python: there is no such program"),
        (["--python", sys.executable, "--out", "/proc/1/out"], "--out /proc/1/out: no folder that can be written to"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"on_gpu.sh: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_machine_without_a_card_is_told_so(tmp_path: Path) -> None:
    done = run("--python", sys.executable, "--out", tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"on_gpu.sh: device cuda cannot be used: .*\n", done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dry_run_does_everything(tmp_path: Path) -> None:
    done = run("--quick", "--python", sys.executable, "--out", tmp_path / "new/out")
    assert done.returncode == 0, done.stdout
    names = ["extract-cpu-quick.json", "job-cpu-quick.json", "on-gpu-cpu-quick.log"]
    assert sorted(path.name for path in (tmp_path / "new/out").iterdir()) == names
    assert (tmp_path / "new/out" / names[2]).read_text() == done.stdout
    for name in names[:2]:
        figures = json.loads((tmp_path / "new/out" / name).read_text())
        assert figures["hardware"]["cpu"]
        assert figures["setting"]["device"] == "cpu"
    assert re.findall(r"(?m)^(\w+): done, \d+ s$", done.stdout) == ["tests", "job", "extract"]


@pytest.mark.slow
def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "job-cpu-quick.json").mkdir()
    done = run("--quick", "--python", sys.executable, "--out", tmp_path, "--parts", "job,tests")
    assert done.returncode == 1
    assert re.findall(r"(?m)^(\w+): (.+), \d+ s$", done.stdout) == [("job", "failed with 2"), ("tests", "done")]


def test_the_peak_of_a_card_is_known_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = card.bf16_peak("cpu")
    assert 1e8 < measured.per_s < 1e14
    assert measured.origin == "measured, a product of matrices of 512 x 512"
    monkeypatch.setattr(card, "device_name", lambda _: "NVIDIA H200")
    assert card.bf16_peak("cpu") == card.Peak(989e12, "data sheet")
