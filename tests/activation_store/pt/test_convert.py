"""The original .pt schema, both ways."""

import os
import pickle
import re

import numpy as np
import pytest
import torch

from activation_store import ActivationStore, FingerprintMismatchError, InputError, MissingShardError
from activation_store.opening import open_activations
from activation_store.pt.activations import PtActivations
from activation_store.pt.convert import export_pt, import_pt
from activation_store.store.writer import StoreWriter
from tests.helpers.stores import (
    DTYPES,
    LAYERS,
    POSITIONS,
    make_beside,
    make_spec,
    make_values,
    same_bits,
    tree,
    write_store,
)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(dtype, tmp_path):
    spec = make_spec(dtype=dtype)
    values = make_values(spec)
    write_store(tmp_path / "s.zarr", spec, values)
    export_pt(ActivationStore.open(tmp_path / "s.zarr"), tmp_path / "s.pt")
    content = torch.load(tmp_path / "s.pt", weights_only=True)
    assert list(content) == [
        "activations", "labels", "layer_indices", "positions", "n_eoi_tokens", "d_model", "model_name",
    ]  # fmt: skip
    assert torch.equal(content["activations"].double(), torch.from_numpy(values.astype(np.float64)))
    assert str(content["activations"].dtype) == f"torch.{dtype}"
    np.testing.assert_array_equal(content["labels"].numpy(), np.linspace(0, 1, 11, dtype=np.float32))
    assert (content["layer_indices"], content["positions"]) == (list(LAYERS), list(POSITIONS))
    assert (content["n_eoi_tokens"], content["d_model"], content["model_name"]) == (2, 7, "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.pt", "s.zarr"]
    back = import_pt(tmp_path / "s.pt", tmp_path / "back.zarr", shard_samples=3)
    same_bits(back[:], values)
    same_bits(back.labels["label"].to_numpy(), np.linspace(0, 1, 11, dtype=np.float32))
    mapped = open_activations(tmp_path / "s.pt")
    assert isinstance(mapped, PtActivations)
    assert mapped.shape == back.shape
    for layer in LAYERS:
        for position in POSITIONS:
            same_bits(mapped.cell(layer, position), back.cell(layer, position))


def test_an_unfinished_store_is_not_exported(tmp_path):
    spec = make_spec()
    with StoreWriter.create(tmp_path / "s.zarr", spec, make_beside(11)) as writer:
        writer.add(np.arange(6), make_values(spec)[:6])
    with pytest.raises(MissingShardError, match="4 of 11"):
        export_pt(ActivationStore.open(tmp_path / "s.zarr"), tmp_path / "s.pt")
    with pytest.raises(MissingShardError, match="4 of 11"):
        open_activations(tmp_path / "s.zarr")
    assert not (tmp_path / "s.pt").exists()


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (eval, ("open('sprung', 'w')",))


def test_what_is_not_such_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = {"activations": torch.zeros(4, 3, 2, 5), "labels": torch.zeros(4), "layer_indices": [0, 1, 2]}
    good["positions"] = [-2, -1]
    for name, content, message in [
        ("keys", {"activations": good["activations"]}, "lacks labels, layer_indices, positions"),
        ("list", [1, 2], "lacks activations"),
        ("rank", good | {"activations": torch.zeros(4, 3)}, r"must be \[sample, layer, .* shape \[4, 3\]"),
        ("kind", good | {"activations": torch.zeros(4, 3, 2, 5, dtype=torch.int64)}, "bfloat16, not int64 of shape"),
        ("rows", good | {"labels": torch.zeros(5)}, r"shape \[4, 3, 2, 5\], but there are 5 labels"),
        ("twice", good | {"layer_indices": [0, 1, 1]}, "has a value twice"),
        ("kinds", good | {"positions": ["a", "b"]}, "positions must be a list of integers"),
        ("words", good | {"labels": ["a"] * 4}, "labels must be numbers"),
        ("table", good | {"labels": torch.zeros(4, 2)}, r"one per sample, not float32 of shape \[4, 2\]"),
        ("empty", good | {"activations": torch.zeros(4, 3, 2, 0)}, r"shape \[4, 3, 2, 0\]"),
        ("wide", good | {"activations": torch.zeros(1).expand(4, 3, 2, 5)}, "share values"),
        ("trap", {"activations": Trap()}, "cannot be read as a .pt"),
    ]:
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(InputError, match=message) as caught:
            PtActivations.open(tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Trap()))
    torch.save(good, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-300])
    for name in ("pickle", "cut", "none"):
        with pytest.raises(InputError, match=r"cannot be read as a \.pt|no such file"):
            PtActivations.open(tmp_path / f"{name}.pt")
    assert not (tmp_path / "sprung").exists()


PLAIN = {
    "activations": torch.arange(24.0).reshape(4, 3, 1, 2), "labels": torch.arange(4.0), "layer_indices": [0, 1, 2],
    "positions": [-1], "model_name": "m",
}  # fmt: skip
NUMBERS = torch.arange(4.0)
VALUES = PLAIN["activations"]
PLACES = torch.arange(3)
OBJECTS = "cannot be read as a .pt of tensors: it holds objects that only code could restore ("


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": NUMBERS.numpy()}, f"{OBJECTS}numpy._core.multiarray._reconstruct, numpy.dtype, numpy.ndarray)"),
        ({"positions": [np.int64(-1)]}, f"{OBJECTS}numpy._core.multiarray.scalar, numpy.dtype)"),
        ({"layer_indices": range(3)}, f"{OBJECTS}builtins.range)"),
        ({"note": os.getcwd}, f"{OBJECTS}posix.getcwd)"),
        ({"note": torch.nn.Linear(2, 2)}, f"{OBJECTS}torch.nn.modules.linear.Linear)"),
        (
            {"labels": NUMBERS.to_sparse()},
            "labels must be a plain tensor, and this one is sparse; save tensor.to_dense()",
        ),
        ({"labels": torch.eye(4).to_sparse_csr()}, "labels must be a plain tensor, and this one is sparse"),
        (
            {"activations": VALUES.to_sparse()},
            "activations must be a plain tensor, and this one is sparse",
        ),
        ({"labels": NUMBERS.to("meta")}, "labels must be a plain tensor, and this one is on the meta device"),
        (
            {"activations": VALUES.to("meta")},
            "activations must be a plain tensor, and this one is on the meta",
        ),
        (
            {"layer_indices": PLACES.to("meta")},
            "layer_indices must be a plain tensor, and this one is on the meta",
        ),
        (
            {"layer_indices": PLACES.to_sparse()},
            "layer_indices must be a plain tensor, and this one is sparse",
        ),
        ({"labels": torch.quantize_per_tensor(NUMBERS, 1.0, 0, torch.qint8)}, "this one is quantized; save"),
        ({"activations": torch.quantize_per_tensor(VALUES, 1.0, 0, torch.qint8)}, "bfloat16, not qint8"),
        ({"labels": torch.nested.nested_tensor([NUMBERS, NUMBERS])}, "this one is nested; save one padded tensor"),
        ({"activations": torch.nested.nested_tensor([NUMBERS, NUMBERS])}, "bfloat16, not a nested tensor"),
        ({"labels": NUMBERS.to(torch.complex64).conj()}, "one per sample, not complex64 of shape [4]"),
        ({"activations": VALUES.to(torch.float8_e4m3fn)}, "bfloat16, not float8_e4m3fn of shape [4, 3,"),
        ({"activations": VALUES.double()}, "bfloat16, not float64 of shape [4, 3, 1, 2]"),
        ({"activations": [VALUES]}, "bfloat16, not a list of Tensor"),
        ({"activations": VALUES[:0], "labels": NUMBERS[:0]}, "of shape [0, 3, 1, 2] hold nothing"),
        ({"labels": [1, None, 2, 3]}, "one per sample, not a list of NoneType and int"),
        ({"labels": ["a", "b", "c", "d"]}, "one per sample, not a list of str"),
        ({"labels": [[1], [2, 3]]}, "one per sample, not a list of list"),
        ({"labels": {"a": 1}}, "one per sample, not a dict"),
        ({"layer_indices": [0, 1, 2**70]}, "holds numbers that no model has"),
        ({"model_name": NUMBERS}, "model_name must be a string, not float32 of shape [4]"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[-40:],
)
def test_tensors_of_other_kinds_are_refused_in_a_sentence(tmp_path, changed: dict, message: str):
    torch.save(PLAIN | changed, tmp_path / "s.pt")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        PtActivations.open(tmp_path / "s.pt")
    assert str(caught.value).startswith(str(tmp_path / "s.pt"))
    assert "weights_only" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit)")
def test_files_that_are_no_archives_of_torch_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "s.pt"
    torch.save(PLAIN, path)
    whole = path.read_bytes()
    torch.save(PLAIN, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    for content in (
        path.read_bytes(),
        old,
        old[:200],
        whole[:-300],
        b"",
        b"text",
        whole[:300] + bytes(60) + whole[360:],
    ):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"cannot be read as a \.pt of tensors: it is (truncated|damaged)"
        ) as caught:
            PtActivations.open(path)
        assert str(caught.value).isprintable()


def test_tensors_of_other_kinds_that_hold_their_numbers_are_read(tmp_path):
    path = tmp_path / "s.pt"
    for labels in (torch._neg_view(-NUMBERS), NUMBERS.to(torch.complex64).conj().real, NUMBERS.to(torch.float8_e5m2)):
        torch.save(PLAIN | {"labels": labels}, path)
        assert open_activations(path).labels["label"].tolist() == [0, 1, 2, 3]
    torch.save(PLAIN | {"labels": [16777217, 0.1, 0, 1], "model_name": None}, path)
    found = PtActivations.open(path)
    assert (found.labels["label"].tolist(), found.model_name) == ([16777217, 0.1, 0, 1], "")
    for dtype in (torch.float32, torch.bfloat16):
        expected = VALUES.to(dtype)
        torch.save(PLAIN | {"activations": torch._neg_view(-expected)}, path)
        found = open_activations(path)
        np.testing.assert_array_equal(found.cell(1, -1).astype(float), expected[:, 1, 0].double().numpy())
        np.testing.assert_array_equal(
            next(found.cell_blocks(1, -1))[1].astype(float), expected[:, 1, 0].double().numpy()
        )
        store = import_pt(path, tmp_path / f"{dtype}.zarr")
        np.testing.assert_array_equal(store[:].astype(float), expected.double().numpy())


def test_labels_in_other_forms(tmp_path):
    good = {"activations": torch.rand(4, 1, 2, 5, requires_grad=True), "layer_indices": torch.tensor([3])}
    good |= {"positions": (-2, -1), "labels": [0, 1, 1, 0]}
    torch.save(good, tmp_path / "s.pt")
    found = open_activations(tmp_path / "s.pt")
    assert found.labels["label"].tolist() == [0, 1, 1, 0]
    assert found.layers == (3,)
    same_bits(found.cell(3, -1), good["activations"].detach().numpy()[:, 0, 1])
    same_bits(import_pt(tmp_path / "s.pt", tmp_path / "s.zarr")[:], good["activations"].detach().numpy())


@pytest.mark.slow
def test_an_interrupted_import_is_taken_up(tmp_path, monkeypatch):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    export_pt(ActivationStore.open(tmp_path / "s.zarr"), tmp_path / "s.pt")
    import_pt(tmp_path / "s.pt", tmp_path / "whole.zarr", shard_samples=3)
    add, calls = StoreWriter.add, []

    def interrupted(self, rows, block):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, rows, block)

    monkeypatch.setattr(StoreWriter, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_pt(tmp_path / "s.pt", tmp_path / "cut.zarr", shard_samples=3)
    assert ActivationStore.open(tmp_path / "cut.zarr").n_committed == 6
    # Shards of another size are asked for now; the store's own stay.
    assert import_pt(tmp_path / "s.pt", tmp_path / "cut.zarr", shard_samples=5).n_committed == 11
    assert tree(tmp_path / "cut.zarr") == tree(tmp_path / "whole.zarr")
    torch.save(torch.load(tmp_path / "s.pt", weights_only=True), tmp_path / "s.pt")
    with pytest.raises(FingerprintMismatchError, match="content"):
        import_pt(tmp_path / "s.pt", tmp_path / "cut.zarr")


def test_an_export_to_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def no_space(*_arguments):
        raise OSError(28, "No space left on device")

    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(OSError, match="No space left"):
        export_pt(ActivationStore.open(tmp_path / "s.zarr"), tmp_path / "s.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_labels_in_bfloat16(tmp_path):
    content = {"activations": torch.rand(4, 1, 2, 5), "layer_indices": [3], "positions": [-2, -1]}
    torch.save(content | {"labels": torch.tensor([0, 0.5, 1, 0], dtype=torch.bfloat16)}, tmp_path / "s.pt")
    assert open_activations(tmp_path / "s.pt").labels["label"].tolist() == [0, 0.5, 1, 0]
