"""Push and pull against a hub that is a folder: what comes back is what was sent, or nothing."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub.utils import HFValidationError, OfflineModeIsEnabled, filter_repo_objects

from activation_store import ActivationStore, MissingShardError
from probesweep import Probe, RequestError, sharing
from tests.activation_store.test_store import tree
from tests.test_cli import run


class FolderHub:
    """Those of the client's calls that are used, on folders, with its own rules for patterns."""

    root: Path
    private: dict[tuple[str, str], bool]

    def _repo(self, repo_id, repo_type):
        return self.root / repo_type / repo_id

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert exist_ok
        self._repo(repo_id, repo_type).mkdir(parents=True, exist_ok=True)
        self.private.setdefault((repo_type, repo_id), private)
        return f"https://hub.example/{repo_type}/{repo_id}"

    def repo_exists(self, repo_id, *, repo_type):
        return self._repo(repo_id, repo_type).exists()

    def file_exists(self, repo_id, filename, *, repo_type, revision):
        return (self._repo(repo_id, repo_type) / filename).exists()

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, repo_type, revision, commit_message):
        (self._repo(repo_id, repo_type) / path_in_repo).write_bytes(path_or_fileobj)

    def upload_folder(
        self, *, repo_id, folder_path, repo_type, revision, allow_patterns, delete_patterns, commit_message
    ):
        repo = self._repo(repo_id, repo_type)
        for name in filter_repo_objects(names(repo), allow_patterns=delete_patterns):
            (repo / name).unlink()
        for name in filter_repo_objects(names(folder_path), allow_patterns=allow_patterns):
            (repo / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path) / name, repo / name)

    def snapshot_download(self, repo_id, *, repo_type, revision, local_dir, allow_patterns):
        repo = self._repo(repo_id, repo_type)
        (Path(local_dir) / ".cache/huggingface").mkdir(parents=True)
        for name in filter_repo_objects(names(repo), allow_patterns=allow_patterns):
            (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo / name, Path(local_dir) / name)


def names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(Path(folder).rglob("*")) if path.is_file()]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> type[FolderHub]:
    monkeypatch.setattr(FolderHub, "root", tmp_path / "hub", raising=False)
    monkeypatch.setattr(FolderHub, "private", {}, raising=False)
    monkeypatch.setattr(sharing, "HfApi", FolderHub)
    return FolderHub


def test_a_store_comes_back_byte_for_byte(trained, tmp_path, hub):
    done = run("push", trained / "train.zarr", "me/states")
    assert done.returncode == 0, done.stderr
    assert "33 samples" in done.stdout
    assert "with the prompts" in done.stdout
    assert hub.private == {("dataset", "me/states"): True}
    card = (hub.root / "dataset/me/states/README.md").read_text()
    assert card.startswith("---\nlibrary_name: probesweep")
    assert "layers (`hidden_states` indices): 0, 1" in card
    done = run("pull", "me/states", tmp_path / "new/states.zarr")
    assert done.returncode == 0, done.stderr
    sent, taken = (tree(path) for path in (trained / "train.zarr", tmp_path / "new/states.zarr"))
    assert {name: data for name, data in sent.items() if "writer.lock" not in name} == taken
    assert ActivationStore.open(tmp_path / "new/states.zarr").verify() == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["states.zarr"]


def test_probes_come_back_and_work(trained, tmp_path, hub):
    results = shutil.copytree(trained / "results", tmp_path / "results")
    (results / "report.html").write_text("<p>prompts</p>")
    assert "probes of success_rate" in sharing.push(results, "me/probes", public=True)
    assert hub.private == {("model", "me/probes"): False}
    assert not (hub.root / "model/me/probes/report.html").exists()
    sharing.pull("me/probes", tmp_path / "probes")
    assert (Probe.load(tmp_path / "probes").coef == Probe.load(results).coef).all()
    for name in ("performance.json", "inference.json", "cells.parquet", "run.json"):
        assert (tmp_path / "probes" / name).read_bytes() == (results / name).read_bytes()


def test_a_second_push_replaces_and_keeps_the_card(trained, tmp_path, hub):
    sharing.push(trained / "train.zarr", "me/states")
    card = hub.root / "dataset/me/states/README.md"
    card.write_text("mine")
    sharing.push(trained / "test.zarr", "me/states")
    assert card.read_text() == "mine"
    sharing.pull("me/states", tmp_path / "s.zarr")
    assert len(ActivationStore.open(tmp_path / "s.zarr")) == 22


def test_what_is_not_whole_is_not_sent(trained, tmp_path, hub):
    shutil.copytree(trained / "train.zarr", tmp_path / "damaged.zarr")
    shard = next((tmp_path / "damaged.zarr/activations/c").rglob("0/0/0/0"))
    shard.write_bytes(shard.read_bytes()[:-9] + b"damaged!!")
    with pytest.raises(RequestError, match="is damaged"):
        sharing.push(tmp_path / "damaged.zarr", "me/states")
    shutil.copytree(trained / "train.zarr", tmp_path / "unfinished.zarr")
    journal = tmp_path / "unfinished.zarr/activations/journal"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises((MissingShardError, ValueError), match="committed"):
        sharing.push(tmp_path / "unfinished.zarr", "me/states")
    shutil.copytree(trained / "results", tmp_path / "results")
    (tmp_path / "results/cells.parquet").unlink()
    with pytest.raises(RequestError, match=r"cells.parquet is missing"):
        sharing.push(tmp_path / "results", "me/probes")
    assert run("push", tmp_path, "me/nothing").returncode == 2
    assert not hub.root.exists()


def test_what_is_not_whole_is_not_taken(trained, tmp_path, hub):
    sharing.push(trained / "train.zarr", "me/states")
    shard = next((hub.root / "dataset/me/states/activations/c").rglob("0/0/0/0"))
    shard.write_bytes(shard.read_bytes()[:-9] + b"damaged!!")
    with pytest.raises(RequestError, match="me/states holds nothing that can be used"):
        sharing.pull("me/states", tmp_path / "taken/s.zarr")
    assert list((tmp_path / "taken").iterdir()) == []
    (hub.root / "model/me/empty").mkdir(parents=True)
    with pytest.raises(RequestError, match="me/empty holds no finished training"):
        sharing.pull("me/empty", tmp_path / "taken/e")


def test_only_files_of_the_formats_are_taken(trained, tmp_path, hub):
    sharing.push(trained / "results", "me/probes")
    for name in ("evil.pkl", "pytorch_model.bin", "run.py"):
        (hub.root / "model/me/probes" / name).write_bytes(b"\x80")
    sharing.pull("me/probes", tmp_path / "probes")
    assert {path.suffix for path in (tmp_path / "probes").iterdir()} == {".json", ".parquet", ".safetensors"}


def test_a_folder_that_is_there_is_left_alone(trained, tmp_path, hub):
    sharing.push(trained / "results", "me/probes")
    (tmp_path / "mine").mkdir()
    done = run("pull", "me/probes", tmp_path / "mine")
    assert done.returncode == 2
    assert "is there already" in done.stderr


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (HFValidationError("Repo id must be"), "write it as name/repository"),
        (OfflineModeIsEnabled("offline"), "unset it"),
        (ConnectionError("no route to host"), "check network and disk"),
    ],
)
def test_errors_of_the_hub_are_one_line(error, way_out, trained, tmp_path, hub, monkeypatch):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(FolderHub, "create_repo", fail)
    monkeypatch.setattr(FolderHub, "repo_exists", fail)
    for command in (("push", trained / "results", "me/x"), ("pull", "me/x", tmp_path / "x")):
        done = run(*command)
        assert done.returncode == 2
        assert way_out in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_the_real_client_without_a_network(trained, tmp_path):
    done = run("push", trained / "results", "me/x")
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE" in done.stderr
