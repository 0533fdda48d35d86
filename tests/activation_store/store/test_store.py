"""Written by us, read by us and by everyone else, bit for bit."""

import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tensorstore
import xarray
import zarr

from activation_store import (
    ActivationStore,
    CorruptStoreError,
    FingerprintMismatchError,
    InputError,
    MissingShardError,
    StoreLockedError,
    UnsupportedFormatError,
)
from activation_store.format.layout import Layout, balanced_shard_samples, with_checksum
from activation_store.store import reader
from activation_store.store.writer import StoreWriter
from tests.helpers.stores import (
    DTYPES,
    LAYERS,
    POSITIONS,
    damage,
    make_beside,
    make_spec,
    make_values,
    same_bits,
    tree,
    write_store,
)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_samples", "shard_samples"), [(11, 4), (8, 4), (3, 5), (1, 1)])
def test_every_reader_reads_the_same(dtype, n_samples, shard_samples, tmp_path):
    spec = make_spec(n_samples, dtype=dtype, shard_samples=shard_samples)
    values = make_values(spec)
    write_store(tmp_path / "s.zarr", spec, values, order=np.random.default_rng(1).permutation(n_samples))
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert store.shape == values.shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = zarr.open(tmp_path / "s.zarr", mode="r")["activations"]
        labelled = xarray.open_zarr(tmp_path / "s.zarr")
    driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "s.zarr/activations")}}
    theirs = tensorstore.open(driver, read=True, open=True).result()
    same_bits(plain[...], values)
    same_bits(theirs.read().result(), values)
    for layer_idx, layer in enumerate(LAYERS):
        for position_idx, position in enumerate(POSITIONS):
            expected = values[:, layer_idx, position_idx]
            same_bits(store.cell(layer, position), expected)
            same_bits(plain[:, layer_idx, position_idx], expected)
            same_bits(labelled.activations.sel(layer=layer, position=position).values, expected)
            blocks = list(store.cell_blocks(layer, position))
            same_bits(np.concatenate([block for _, block in blocks]), expected)
            assert [row for rows, _ in blocks for row in rows] == list(range(n_samples))


def test_labels_and_coordinates(tmp_path):
    spec, beside = make_spec(), make_beside(11)
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert list(store.labels.columns) == ["success_rate", "is right"]
    for name in ("n_tokens", "prompt_hash", "token_id", "success_rate", "is right"):
        same_bits(store.coordinate(name), beside[name])
    for name in ("question", "token"):
        assert store.coordinate(name).tolist() == beside[name].tolist()
    assert store.position_tokens == ["<a>", " é😀"]
    dataset = store.to_xarray()
    assert {"n_tokens", "success_rate", "question", "token_id", "token"} <= set(dataset.coords)
    assert dataset.activations.dims == store.dims == ("sample", "layer", "position", "feature")
    assert "sample: 11" in repr(store)
    assert "<tr><th>axes</th><td>11 samples x " in store._repr_html_()
    assert "&#x27;&lt;a&gt;&#x27;" in store._repr_html_()
    with pytest.raises(InputError, match="has no array 'nothing'; it has"):
        store.coordinate("nothing")


def test_slices_and_cells(tmp_path):
    spec = make_spec()
    values = make_values(spec)
    write_store(tmp_path / "s.zarr", spec, values)
    store = ActivationStore.open(tmp_path / "s.zarr")
    for rows in (slice(None), slice(3, 9), slice(4, 8), slice(-2, None), slice(5, 5), slice(9, 2), slice(0, 99)):
        same_bits(store[rows], values[rows])
    with pytest.raises(InputError, match=r"write store\[i:i\+1\] for one"):
        store[3]
    with pytest.raises(InputError, match="without a step"):
        store[::2]
    found = dict(store.cells())
    assert list(found) == [(layer, position) for layer in LAYERS for position in POSITIONS]
    same_bits(found[2, -1], values[:, 1, 1])


def test_bfloat16_is_read_by_zarr_without_our_import(tmp_path):
    spec = make_spec(dtype="bfloat16")
    values = make_values(spec)
    write_store(tmp_path / "s.zarr", spec, values)
    code = (
        "import sys, zarr; a = zarr.open(sys.argv[1], mode='r')['activations'][...]; "
        "print(a.dtype, a.astype('float64').sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s.zarr")], capture_output=True, text=True, check=True, cwd="/"
    )
    name, total = done.stdout.split()
    assert name == "bfloat16"
    assert float(total) == values.astype(np.float64).sum()


@pytest.mark.slow
@pytest.mark.parametrize("torn", [b"", b'0123abcd {"shard":1,', b"garbage\n" * 200])
@pytest.mark.parametrize("version", [1, 2])
def test_interrupted_and_resumed_is_byte_identical(version, torn, tmp_path):
    spec = make_spec(version=version)
    values = make_values(spec)
    write_store(tmp_path / "whole.zarr", spec, values)
    with StoreWriter.create(tmp_path / "cut.zarr", spec, make_beside(11)) as writer:
        writer.add(np.arange(6), values[:6])
    cut = ActivationStore.open(tmp_path / "cut.zarr")
    assert cut.n_committed == 4
    with pytest.raises(MissingShardError, match=r"rows 4-7\) was never committed; run the same extract again"):
        cut.cell(0, -1)
    with pytest.raises(MissingShardError, match="4 of 11 samples are committed"):
        cut.require_complete()
    # A record torn by a power failure counts as never written.
    with (tmp_path / "cut.zarr/activations" / ("journal" if version == 1 else "journal/.1.partial")).open("ab") as file:
        file.write(torn)
    with StoreWriter.resume(tmp_path / "cut.zarr", dict(spec.fingerprint)) as writer:
        assert writer.pending_shards == [1, 2]
        writer.add(np.arange(4, 11), values[4:])
    assert tree(tmp_path / "cut.zarr") == tree(tmp_path / "whole.zarr")


def test_other_inputs_are_refused(tmp_path):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    with pytest.raises(FingerprintMismatchError, match=r"dataset: 'd' in the store, 'e' now") as caught:
        StoreWriter.resume(tmp_path / "s.zarr", {**spec.fingerprint, "dataset": "e"})
    assert "model" not in str(caught.value)


def test_second_writer_is_refused(tmp_path):
    spec = make_spec()
    code = (
        "import sys; from activation_store.files.lock import WriterLock; from pathlib import Path\n"
        "held = WriterLock.acquire(Path(sys.argv[1]), Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    lock = tmp_path / "s.zarr/activations/writer.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLockedError, match=f"written by process {holder.pid}"):
            StoreWriter.resume(tmp_path / "s.zarr", dict(spec.fingerprint))
        holder.stdin.close()
    StoreWriter.resume(tmp_path / "s.zarr", dict(spec.fingerprint)).__exit__(None, None, None)
    assert lock.read_bytes() == b""  # although the holder left its pid there


@pytest.mark.slow
def test_no_flipped_byte_of_a_shard_is_read_as_whole(tmp_path):
    spec = make_spec(2, dtype="bfloat16", shard_samples=2)
    values = make_values(spec)
    write_store(tmp_path / "s.zarr", spec, values)
    shard = tmp_path / "s.zarr/activations/c/0/0/0/0"
    cells = [(layer, position) for layer in LAYERS for position in POSITIONS]
    for offset in range(shard.stat().st_size):
        damage(shard, offset)
        store = ActivationStore.open(tmp_path / "s.zarr")
        assert len(store.verify()) == 1
        store = ActivationStore.open(tmp_path / "s.zarr")
        caught = 0
        for layer, position in cells:
            try:
                found = store.cell(layer, position)
            except CorruptStoreError as error:
                caught += "rows 0-1" in str(error)
            else:
                same_bits(found, values[:, LAYERS.index(layer), POSITIONS.index(position)])
        # The values are compared with the journal: a damaged checksum beside them does them no harm.
        in_index = offset >= spec.layout.index_offset
        in_values = not in_index and offset % spec.layout.chunk_nbytes < spec.layout.values_nbytes
        assert caught == (len(cells) if in_index else in_values)
        damage(shard, offset)
    ActivationStore.open(tmp_path / "s.zarr").cell(0, -1)


def read_everything_beside(path):
    store = ActivationStore.open(path)
    store.require_complete()
    names = ["sample", "layer", "position", "place", "n_tokens", "token_id", "prompt_hash", "question", "token"]
    return [store.coordinate(name) for name in names], store.labels


def test_damaged_metadata_is_refused(tmp_path):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    untouched = tree(tmp_path / "s.zarr")
    for name in untouched:
        if name.startswith("activations/c/") or name.endswith("writer.lock"):
            continue
        file = tmp_path / "s.zarr" / name
        damage(file, len(untouched[name]) // 2)
        with pytest.raises((CorruptStoreError, MissingShardError)):
            read_everything_beside(tmp_path / "s.zarr")
        file.write_bytes(untouched[name])
    (tmp_path / "s.zarr/activations/zarr.json").unlink()
    with pytest.raises(CorruptStoreError, match="is missing"):
        ActivationStore.open(tmp_path / "s.zarr")


def edit(file, old, new):
    assert file.read_bytes().count(old) == 1
    file.write_bytes(file.read_bytes().replace(old, new))


def test_edits_that_keep_to_the_format_are_refused(tmp_path):
    """Good JSON with other contents, and values with their right crc32c: only the journal's hashes tell."""
    path, spec = tmp_path / "s.zarr", make_spec()
    write_store(path, spec, make_values(spec))
    untouched = tree(path)
    edit(path / "zarr.json", b'"d"', b'"e"')
    with pytest.raises(CorruptStoreError, match=r"zarr\.json is not what was written when the store was created"):
        ActivationStore.open(path)
    (path / "zarr.json").write_bytes(untouched["zarr.json"])
    edit(path / "activations/zarr.json", b'"node_type": ', b'"node_type":  ')
    with pytest.raises(CorruptStoreError, match=r"activations/zarr\.json is not what was written"):
        ActivationStore.open(path)
    (path / "activations/zarr.json").write_bytes(untouched["activations/zarr.json"])
    lengths = path / "n_tokens/c/0"
    lengths.write_bytes(with_checksum(b"\7" + lengths.read_bytes()[1:-4]))
    with pytest.raises(CorruptStoreError, match="n_tokens/c/0 is not what was written"):
        ActivationStore.open(path).coordinate("n_tokens")
    shutil.rmtree(path / "activations/journal")
    with pytest.raises(CorruptStoreError, match="journal is missing, so it is unknown what is committed"):
        ActivationStore.open(path)


def test_a_shard_in_the_wrong_place_is_refused(tmp_path):
    spec = make_spec(8)
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    first, second = (tmp_path / "s.zarr/activations" / spec.layout.shard_key(shard) for shard in range(2))
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    with pytest.raises(CorruptStoreError, match=r"rows 0-3\): the values of .* are not those that were committed"):
        ActivationStore.open(tmp_path / "s.zarr").cell(0, -1)


def test_a_committed_shard_is_never_written_again(tmp_path):
    spec = make_spec()
    values = make_values(spec)
    write_store(tmp_path / "s.zarr", spec, values)
    with StoreWriter.resume(tmp_path / "s.zarr", dict(spec.fingerprint)) as writer:
        with pytest.raises(InputError, match="shard 0 is committed"):
            writer.add(np.arange(4), values[:4])
        with pytest.raises(InputError, match="holds float32, the values are float64"):
            writer.add(np.arange(4), values[:4].astype(np.float64))
    same_bits(ActivationStore.open(tmp_path / "s.zarr")[:], values)


def test_verify_lists_everything_that_is_wrong(tmp_path):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    write_store(tmp_path / "other.zarr", spec, -make_values(spec))
    assert ActivationStore.open(tmp_path / "s.zarr").verify() == []
    shards = [tmp_path / "s.zarr" / "activations" / spec.layout.shard_key(shard) for shard in range(3)]
    damage(shards[0], spec.layout.chunk_offset(1, 1))
    shards[1].unlink()
    # A shard that is whole in itself, but another store's.
    shards[2].write_bytes((tmp_path / "other.zarr" / "activations" / spec.layout.shard_key(2)).read_bytes())
    damage(tmp_path / "s.zarr/question/c/0", 3)
    messages = [str(problem) for problem in ActivationStore.open(tmp_path / "s.zarr").verify()]
    assert len(messages) == 4
    for part in ("question/c/0", r"rows 0-3", "rows 4-7", "rows 8-10): the values"):
        assert sum(part in message for message in messages) == 1


def test_truncated_or_missing_shard_names_file_and_rows(tmp_path):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    shard = tmp_path / "s.zarr/activations/c/1/0/0/0"
    whole = shard.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(CorruptStoreError, match=r"c/1/0/0/0 \(rows 4-7\): \d+ bytes long"):
            ActivationStore.open(tmp_path / "s.zarr").cell(0, -1)
    shard.unlink()
    with pytest.raises(MissingShardError, match=r"c/1/0/0/0 \(rows 4-7\): .* its file is gone"):
        ActivationStore.open(tmp_path / "s.zarr").cell(0, -1)


def test_what_is_not_a_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such store"):
        ActivationStore.open(tmp_path / "none.zarr")
    zarr.create_group(tmp_path / "plain.zarr")
    with pytest.raises(UnsupportedFormatError, match="is not a probesweep store"):
        ActivationStore.open(tmp_path / "plain.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"")
    with pytest.raises(InputError, match="exists and is not a store"):
        StoreWriter.create(tmp_path / "folder", make_spec(), make_beside(11))
    with pytest.raises(InputError, match="is not a probesweep store"):
        StoreWriter.create(tmp_path / "plain.zarr", make_spec(), make_beside(11))


def test_newer_format_names_itself(tmp_path):
    from activation_store.format.spec import parse_spec

    spec = make_spec()
    group = {"attributes": {**spec.attributes(), "probesweep_format": 3}}
    with pytest.raises(UnsupportedFormatError, match="store format 3, this probesweep reads formats 1 to 2"):
        parse_spec(group, spec.array_metadata(), "s.zarr")
    changed = json.loads(json.dumps(spec.array_metadata()))
    changed["codecs"][0]["configuration"]["codecs"].append({"name": "zstd"})
    with pytest.raises(CorruptStoreError, match="codecs is not of this format"):
        parse_spec({"attributes": spec.attributes()}, changed, "s.zarr")


def test_more_shards_than_are_kept_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_MAPPED_SHARDS", 3)
    spec = make_spec(11, shard_samples=1)
    values = make_values(spec)
    write_store(tmp_path / "s.zarr", spec, values)
    store = ActivationStore.open(tmp_path / "s.zarr")
    same_bits(store.cell(0, -1), values[:, 0, 1])
    same_bits(store[:], values)
    assert len(store._shards) == 3
    assert sum(verified.sum() for verified in store._verified.values()) == 11 * 6


def test_unknown_layer_or_position(tmp_path):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    store = ActivationStore.open(tmp_path / "s.zarr")
    with pytest.raises(InputError, match="layer 1 is not in the store; it holds 0, 2, 5"):
        store.cell(1, -1)
    with pytest.raises(InputError, match="position 0 is not in the store"):
        store.cell(0, 0)


def test_shards_are_balanced_and_bounded():
    for n_samples in (1, 330, 10_000, 123_457):
        for sample_nbytes in (1, 428_544, 300 * 2**20):
            size = balanced_shard_samples(n_samples, sample_nbytes)
            n_shards = -(-n_samples // size)
            assert size == 1 or size * sample_nbytes <= 256 * 2**20
            assert n_shards * size - n_samples < n_shards


def test_offsets_are_multiples_of_the_item_size():
    for itemsize in (2, 4):
        layout = Layout(10, 3, 2, 7, itemsize, 5)
        offsets = [layout.chunk_offset(layer, position) for layer in range(3) for position in range(2)]
        assert all(offset % itemsize == 0 for offset in offsets)
        assert offsets == sorted(set(offsets))
