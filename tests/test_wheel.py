"""The wheel has everything: what it installs works away from the repository."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from probesweep import Experiment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = ("activation_store", "gpu_probes", "probesweep")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of a copy, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.py"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))):
        shutil.copy(file, source)
    build = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir")
    subprocess.run([sys.executable, "-m", *build, folder, source], check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder of packages with the wheel alone."""
    site = tmp_path_factory.mktemp("site")
    install = ("pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target")
    subprocess.run([sys.executable, "-m", *install, site, wheel], check=True, capture_output=True)
    return site


def test_the_wheel_has_every_file_of_the_packages(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert there
    assert there <= names
    assert {"cli.py", "probesweep_errors.py", "probesweep_ray.py"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "data"))]


def test_the_examples_are_those_of_the_repository():
    for file in (ROOT / "data").glob("*.parquet"):
        assert (ROOT / "probesweep/experiment/data" / file.name).read_bytes() == file.read_bytes()


def test_an_installed_wheel_writes_an_experiment_that_runs(installed, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "probesweep", "run", "--init", "new/experiment.toml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    written = json.loads(done.stdout)
    assert all((tmp_path / name).is_file() for name in [written["experiment"], *written["data"]])
    assert len(written["data"]) == 2
    # Everything but the weights is checked: rows, columns, folds.
    experiment = Experiment.load(tmp_path / written["experiment"])
    assert [len(experiment.extraction(split).dataset.questions) for split in ("train", "test")] == [330, 110]
    code = "import probesweep; print(probesweep.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(installed))
