"""Results in a folder and below an address; a folder stands in for the object store, which other tests use."""

import pytest

from activation_store import StoreLockedError
from activation_store.files.lock import WriterLock
from probesweep.experiment.mirror import Mirror


@pytest.fixture
def there(tmp_path):
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


def machine(there, name):
    """A mirror on a machine of that name."""
    return Mirror(str(there), there.parent / name)


def write(mirror, name, content):
    (mirror.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (mirror.folder / name).write_text(content)


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_another_machine_gets_what_was_sent(there):
    first = machine(there, "first")
    for name in ("probes/run.json", "probes/label/cells.parquet", "stages.json"):
        write(first, name, name)
    first.send()
    # Stores and whatever else is there stay where they are.
    (there / "train.zarr").mkdir()
    (there / "train.zarr/zarr.json").write_text("{}")
    (there / "notes.txt").write_text("of somebody")
    second = machine(there, "second")
    second.fetch()
    assert content(second.folder) == content(first.folder)
    write(second, "probes/run.json", "changed")
    (second.folder / "probes/label/cells.parquet").unlink()
    second.send()
    assert content(there) == {
        "probes/run.json": "changed", "stages.json": "stages.json", "train.zarr/zarr.json": "{}",
        "notes.txt": "of somebody",
    }  # fmt: skip
    first.fetch()
    assert (first.folder / "probes/run.json").read_text() == "changed"


def test_newer_results_of_this_machine_are_not_replaced_by_older_ones(there):
    """A run that was killed, or lost the network, between training and sending."""
    mirror = machine(there, "here")
    write(mirror, "probes/run.json", "old")
    mirror.send()
    write(mirror, "probes/run.json", "new")
    again = machine(there, "here")
    again.fetch()
    assert (again.folder / "probes/run.json").read_text() == "new"
    again.send()
    assert (there / "probes/run.json").read_text() == "new"


def test_what_says_what_is_complete_goes_last(there, monkeypatch):
    mirror = machine(there, "here")
    for name in ("stages.json", "probes/run.json", "probes/zzz.json", "probes/a.json", "report.html"):
        write(mirror, name, name)
    sent, replace = [], mirror._storage.replace
    monkeypatch.setattr(mirror._storage, "replace", lambda name, pieces: (sent.append(name), replace(name, pieces)))
    mirror.send()
    assert sent[-2:] == ["probes/run.json", "stages.json"]
    sent.clear()
    mirror.send()
    assert sent == []


def test_who_lost_the_lock_sends_nothing(there, monkeypatch):
    def lost(self):
        raise StoreLockedError("taken over")

    mirror = machine(there, "here")
    write(mirror, "stages.json", "3")
    with mirror.only_writer():
        monkeypatch.setattr(WriterLock, "check", lost)
        with pytest.raises(StoreLockedError, match="taken over"):
            mirror.send()
    assert content(there) == {"writer.lock": ""}
