"""Paths and addresses are told apart."""

from pathlib import Path

import pytest

from activation_store import ActivationStore, InputError
from activation_store.files.storage import is_address, locate


@pytest.mark.parametrize(
    "address", ["s3://bucket/a.zarr", "gs://b", "az://c/d", "abfss://c@account.dfs.core.windows.net/d"]
)
def test_addresses_stay_text(address):
    assert is_address(address)
    assert locate(address + "/") == address


@pytest.mark.parametrize("path", ["a.zarr", "/a/b:c", "C:/a", "./s3:/b", "a:b", Path("runs/s3:x")])
def test_paths_are_paths(path):
    assert locate(path) == Path(path)


@pytest.mark.parametrize(
    "given", ["gcs://b/a.zarr", "https://b/a.zarr", "file:///a.zarr", "s3:/b/a.zarr", Path("s3://b/a.zarr")]
)
def test_what_looks_like_an_address_does_not_become_a_folder(given):
    for take in (locate, ActivationStore.open):
        with pytest.raises(InputError, match="is not an address of an object store"):
            take(given)
