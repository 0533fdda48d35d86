"""Activations sent to another process: their path goes, and what should be there."""

import pickle

import numpy as np
import pytest
import torch

from activation_store import ActivationStore, InputError
from activation_store.pt.activations import PtActivations
from tests.helpers.stores import make_spec, make_values, write_store


def test_a_store_is_opened_again_by_its_path_and_another_one_refused(tmp_path, monkeypatch):
    spec = make_spec()
    values = make_values(spec)
    write_store(tmp_path / "a.zarr", spec, values)
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(ActivationStore.open("a.zarr", verify=False))
    assert len(sent) < 1000
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(pickle.loads(sent)[:], values)
    (tmp_path / "a.zarr").rename(tmp_path / "b.zarr")
    write_store(tmp_path / "a.zarr", spec, values + 1)
    with pytest.raises(InputError, match=r"a\.zarr is not the same for all processes: it was replaced"):
        pickle.loads(sent)


def test_so_is_a_pt_file(tmp_path):
    content = {"activations": torch.ones(2, 1, 1, 3), "labels": [0.0, 1.0], "layer_indices": [0], "positions": [-1]}
    torch.save(content, tmp_path / "a.pt")
    sent = pickle.dumps(PtActivations.open(tmp_path / "a.pt"))
    np.testing.assert_array_equal(pickle.loads(sent).cell(0, -1), np.ones((2, 3)))
    torch.save({**content, "labels": [1.0, 0.0]}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt is not the same for all processes"):
        pickle.loads(sent)
