from pathlib import Path

import pytest

from activation_store.errors import CorruptStoreError
from activation_store.files.disk import Disk


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "OUTSIDE", "/outside", "link", "folder/outside"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str):
    store, outside = tmp_path / "store", tmp_path / "outside"
    (store / "a").mkdir(parents=True)
    outside.write_bytes(b"secret")
    (store / "link").symlink_to(outside)
    (store / "folder").symlink_to(tmp_path)
    name = str(outside) if name == "OUTSIDE" else name
    for ask in (Disk(store).n_bytes, Disk(store).open, Disk(store).read):
        with pytest.raises(CorruptStoreError, match="leads out of"):
            ask(name)


def test_a_link_to_the_folder_is_followed(tmp_path: Path):
    store, link = tmp_path / "store", tmp_path / "link"
    (store / "a").mkdir(parents=True)
    (store / "a" / "file").write_bytes(b"inside")
    (store / "b").symlink_to(store / "a")
    link.symlink_to(store)
    for name in ("a/file", "b/file"):
        assert Disk(link).n_bytes(name) == 6
        assert Disk(link).open(name).part(0, 6) == b"inside"


def test_what_was_not_there_is_looked_at_again(tmp_path: Path):
    (outside := tmp_path / "outside").mkdir()
    (outside / "file").write_bytes(b"secret")
    (store := tmp_path / "store").mkdir()
    disk = Disk(store)
    assert disk.n_bytes("a/file") is None
    (store / "a").symlink_to(outside)
    with pytest.raises(CorruptStoreError, match="leads out of"):
        disk.n_bytes("a/file")
