from pathlib import Path

import pytest

from activation_store.errors import CorruptStoreError
from activation_store.files.disk import Disk


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "OUTSIDE", "link", "folder/outside"])
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
