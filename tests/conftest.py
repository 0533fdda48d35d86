"""Tiny random models with a real tokenizer and chat template, and small datasets."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _detect_agent

from benchmarks.shared.objects import Server, seaweedfs
from tests.helpers.hub import TOKEN, Hub
from tests.helpers.models import QUESTIONS, save_model
from tests.helpers.ray import machine_for_ray


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pages first: theirs is the longest file, which one of several workers runs alone."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random model of the given family."""
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = save_model(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder


@pytest.fixture(scope="session")
def object_server() -> Iterator[Server]:
    """An object store, started for the first test of this process that asks for it."""
    with seaweedfs() as server:
        yield server


@pytest.fixture(scope="module")
def starts_ray() -> Iterator[None]:
    """For all tests of a file that start Ray."""
    with machine_for_ray():
        yield


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Parquet file of eleven questions of mixed length with numeric labels."""
    path = tmp_path / "questions.parquet"
    labels = np.linspace(0, 1, len(QUESTIONS))
    pd.DataFrame({"question": QUESTIONS, "success_rate": labels, "name": "a"}).to_parquet(path)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, which the client is told to use."""
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    # The client would ask the hub what programs there are that write code.
    monkeypatch.setattr(_detect_agent, "_registry", _detect_agent._EMPTY_REGISTRY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


@pytest.fixture
def datasets_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The same hub, which the library datasets is told to use as well."""
    from datasets import config

    monkeypatch.setattr(config, "HF_ENDPOINT", hub.url)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS"):
        monkeypatch.setattr(config, name, False)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", tmp_path / "datasets_cache/downloads")
    return hub
