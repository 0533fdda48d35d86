"""Stores made to harm whoever opens them: refused, with one line, before memory is taken or anything is run."""

import json
import os
import pickle
import shutil
import struct
import tracemalloc

import numpy as np
import pytest

from activation_store import ActivationStore, CorruptStoreError, StoreError, UnsupportedFormatError
from activation_store.format.journal import header_record, shard_record
from activation_store.format.layout import checksum_bytes
from activation_store.store.describe import inspect
from activation_store.store.writer import StoreWriter
from tests.helpers.stores import make_beside, make_spec, make_values, uncommit, write_store


@pytest.fixture(autouse=True)
def other_readers_agree():
    """Not on these: instead of the fixture of that name that all other tests have."""


@pytest.fixture(params=[(1, False), (2, False), (2, True)], ids=["format 1", "format 2", "format 2, finished"])
def store(request, tmp_path):
    version, finish = request.param
    spec = make_spec(version=version)
    write_store(tmp_path / "s.zarr", spec, make_values(spec), finish=finish)
    (tmp_path / "outside").mkdir()
    return tmp_path / "s.zarr"


def sign(store):
    """Write a journal that vouches for the files as they are now, as whoever made them would."""
    for name in ("journal", "journal/created", "journal/finished"):
        journal = store / "activations" / name
        if journal.is_file():
            header, *shards = journal.read_bytes().splitlines(keepends=True)
            names = json.loads(header[9:])["files"]
            journal.write_bytes(header_record({name: (store / name).read_bytes() for name in names}) + b"".join(shards))


def edit(store, name, change):
    """Change a metadata document and vouch for it."""
    document = json.loads((store / name).read_bytes())
    change(document)
    (store / name).write_bytes(json.dumps(document).encode())
    sign(store)


def use(path):
    """Everything that a user may do with a store."""
    store = ActivationStore.open(path)
    repr(store)
    problems = store.verify()
    if problems:
        raise problems[0]
    store.labels  # noqa: B018
    for name in ("sample", "layer", "position", *store.spec.coordinates):
        store.coordinate(name)
    store.cell(0, -1)
    store[:]
    store.to_xarray()
    inspect(store)


def refused(path, match, kind=StoreError):
    tracemalloc.start()
    with pytest.raises(kind, match=match) as caught:
        use(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20
    assert "\n" not in str(caught.value)


def test_an_honest_store_is_let_through(store):
    sign(store)
    use(store)


def with_array(**changes):
    return lambda store: edit(store, "activations/zarr.json", lambda document: document.update(changes))


def with_attributes(**changes):
    return lambda store: edit(store, "zarr.json", lambda document: document["attributes"].update(changes))


def with_name_above(kind):
    """An array that lies outside the store, told in both places."""

    def change(store):
        edit(store, "zarr.json", lambda document: document["attributes"][kind].append("../../outside"))
        names = json.loads((store / "zarr.json").read_bytes())["attributes"]
        place = ["place"] * (names["probesweep_format"] > 1)
        told = " ".join(name for name in place + names["coordinates"] + names["label_columns"] if " " not in name)
        edit(store, "activations/zarr.json", lambda document: document["attributes"].update(coordinates=told))

    return change


def with_ring(name):
    def change(store):
        (store / name).unlink()
        (store / name).symlink_to(store / name)

    return change


def with_name(name):
    def change(store):
        edit(store, "zarr.json", lambda document: document["attributes"]["label_columns"].append(name))
        edit(
            store,
            "activations/zarr.json",
            lambda document: document["attributes"].update(
                coordinates=f"{document['attributes']['coordinates']} {name}"
            ),
        )

    return change


def with_shape(axis, length):
    """The same lie in every place where the shape is told."""

    def change(document):
        document["shape"][axis] = length
        if axis == 3:
            document["chunk_grid"]["configuration"]["chunk_shape"][3] = length
            document["codecs"][0]["configuration"]["chunk_shape"][3] = length

    return lambda store: edit(store, "activations/zarr.json", change)


def with_shard_samples(length):
    def change(document):
        document["chunk_grid"]["configuration"]["chunk_shape"][0] = length
        document["codecs"][0]["configuration"]["chunk_shape"][0] = length

    return lambda store: edit(store, "activations/zarr.json", change)


def with_inner_codec(codec):
    def change(document):
        document["codecs"][0]["configuration"]["codecs"].append(codec)

    return lambda store: edit(store, "activations/zarr.json", change)


def with_coordinate(name, **changes):
    return lambda store: edit(store, f"{name}/zarr.json", lambda document: document.update(changes))


def journal_file(store, shard):
    """Where the record of a shard is read."""
    journal = store / "activations/journal"
    whole = [path for path in (journal / "finished", journal) if path.is_file()]
    return whole[0] if whole else journal / str(shard)


def with_journal(shard, record):
    def change(store):
        file = journal_file(store, shard)
        file.write_bytes((file.read_bytes() if file.name != str(shard) else b"") + record)

    return change


def with_long_journal(store):
    with journal_file(store, 1).open("rb+") as file:
        file.truncate(2**40)


def with_text(chunk):
    def change(store):
        (store / "question/c/0").write_bytes(chunk + checksum_bytes(chunk))
        sign(store)

    return change


def with_file(name, content):
    def change(store):
        (store / name).write_bytes(content)
        sign(store)

    return change


def with_sparse(name, n_bytes):
    def change(store):
        os.truncate(store / name, n_bytes)

    return change


def with_link(name):
    """Put a file or folder of the store outside it and link to it."""

    def change(store):
        outside = store.parent / "outside" / "moved"
        shutil.move(store / name, outside)
        (store / name).symlink_to(outside)

    return change


def with_pipe(name):
    def change(store):
        (store / name).unlink()
        os.mkfifo(store / name)

    return change


def with_v2_pickle(store):
    """An array of Zarr v2 whose filter unpickles objects."""
    (store / "question/zarr.json").unlink()
    metadata = {"zarr_format": 2, "shape": [11], "chunks": [11], "dtype": "|O", "compressor": None, "order": "C"}
    (store / "question/.zarray").write_text(
        json.dumps({**metadata, "fill_value": None, "filters": [{"id": "pickle", "protocol": 5}]})
    )
    (store / "question/0").write_bytes(pickle.dumps(np.array(["x"] * 11, dtype=object)))


UNFINISHED = [(1, False), (2, False)]
CORPUS = {
    "many samples": (with_shape(0, 2**60), "says 1152921504606846976 samples, but sample/c/0 is 92 bytes long"),
    "more samples": (with_shape(0, 12), "says 12 samples"),
    "many features": (with_shape(3, 2**50), "bytes long, committed with"),
    "other features": (with_shape(3, 8), "bytes long, committed with"),
    "more layers": (with_shape(1, 4), "shape is not of this format"),
    "huge shards": (with_shard_samples(2**60), "does not belong to this store|bytes long, committed with"),
    "no features": (with_shape(3, 0), "shape is not of this format"),
    "negative": (with_shape(0, -1), "shape is not of this format"),
    "bool": (with_shape(0, True), "garbles an integer: True"),
    "fraction": (with_shape(0, 11.0), "garbles an integer: 11.0"),
    "rank": (with_array(shape=[11]), "lacks or garbles"),
    "shape text": (with_array(shape="abcd"), "garbles an integer"),
    "other dtype": (with_array(data_type="float16"), "bytes long, committed with"),
    "dtype": (with_array(data_type="object"), "data type 'object' is none of"),
    "structured dtype": (with_array(data_type={"name": "struct"}), "is none of"),
    "fill value": (with_array(fill_value=0), "fill_value is not of this format"),
    "grid": (with_array(chunk_grid=7), "lacks or garbles"),
    "inner codec": (with_inner_codec({"name": "zstd"}), "codecs is not of this format"),
    "outer codec": (with_array(codecs=[{"name": "blosc"}]), "codecs is not of this format"),
    "unknown codec": (with_array(codecs=[{"name": "run-me", "configuration": {}}]), "codecs is not of this format"),
    "transformer": (with_array(storage_transformers=[{"name": "x"}]), "storage_transformers is not of this format"),
    "keys": (with_array(chunk_key_encoding={"name": "v2"}), "chunk_key_encoding is not of this format"),
    "layers text": (with_attributes(layers="012"), "garbles an integer"),
    "no layers": (with_attributes(layers=[]), "shape, .*is not of this format|shape is not of this format"),
    "labels": (with_attributes(label_columns=[7]), "garbles a text: 7"),
    "fingerprint": (with_attributes(fingerprint=None), "lacks or garbles"),
    "attributes": (lambda store: edit(store, "zarr.json", lambda d: d.update(attributes=[1])), "no probesweep_format"),
    "label above": (with_name_above("label_columns"), "leads out of"),
    "coordinate above": (with_name_above("coordinates"), "leads out of"),
    "coordinate codec": (with_coordinate("n_tokens", codecs=[{"name": "blosc"}]), "codecs is not of this format"),
    "coordinate pickle": (
        with_coordinate("question", codecs=[{"name": "numcodecs.pickle"}, {"name": "crc32c"}]),
        "codecs is not of this format",
    ),
    "coordinate shape": (with_coordinate("n_tokens", shape=[2**60]), "shape is not of this format"),
    "coordinate chunk": (
        with_coordinate("n_tokens", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [2**60]}}),
        "chunk_grid is not of this format",
    ),
    "coordinate dtype": (with_coordinate("n_tokens", data_type="complex128"), "data_type is not of this format"),
    "coordinate width": (with_coordinate("n_tokens", data_type="int64"), "does not hold 11 values"),
    "coordinate format": (with_coordinate("n_tokens", zarr_format=2), "zarr_format is not of this format"),
    "coordinate kind": (with_coordinate("n_tokens", node_type="group"), "node_type is not of this format"),
    "text count": (with_text(struct.pack("<I", 2**32 - 1) + b"x" * 8), "does not hold 11 values"),
    "text length": (with_text(struct.pack("<I", 11) + struct.pack("<I", 2**31) + b"x" * 8), "cannot be decoded"),
    "text cut": (with_text(struct.pack("<I", 11)), "cannot be decoded"),
    "text no unicode": (with_text(struct.pack("<I", 11) + (struct.pack("<I", 1) + b"\xff") * 11), "cannot be decoded"),
    "v2 pickle": (with_v2_pickle, "question/zarr.json is missing"),
    "nested group": (with_file("zarr.json", b'{"attributes":' + b"[" * 200_000), "zarr.json is not readable JSON"),
    "nested array": (with_file("activations/zarr.json", b"[" * 200_000), "zarr.json is not readable JSON"),
    "nested coordinate": (
        with_file("n_tokens/zarr.json", b'{"a":' * 200_000),
        "n_tokens/zarr.json is not readable JSON",
    ),
    "list": (with_file("activations/zarr.json", b"[]"), "is not a JSON object"),
    "no text": (with_file("zarr.json", b"\xff\xfe\x00"), "zarr.json is not readable JSON"),
    "long number": (with_file("zarr.json", b'{"a": 1' + b"0" * 10_000 + b"}"), "zarr.json is not readable JSON"),
    "empty": (with_file("zarr.json", b""), "zarr.json is not readable JSON"),
    "long metadata": (with_sparse("zarr.json", 2**40), "1099511627776 bytes long, at most"),
    "long coordinate": (with_sparse("n_tokens/c/0", 2**40), "1099511627776 bytes long, at most"),
    "long text": (with_sparse("question/c/0", 2**40), "1099511627776 bytes long, at most"),
    "long journal": (with_long_journal, "1099511627776 bytes long, at most"),
    "long shard": (with_sparse("activations/c/0/0/0/0", 2**40), "1099511627776 bytes long, committed with"),
    "shard beyond": (with_journal(3, shard_record(3, b"abcd" * 6)), "shard 3 does not belong to this store"),
    "shard far beyond": (with_journal(2**70, shard_record(2**70, b"abcd" * 6)), "does not belong to this store"),
    "ring of links": (with_ring("n_tokens/c/0"), "cannot be resolved|leads out of|is missing"),
    "zero in a name": (with_name("a\0b"), "cannot be resolved"),
    "half a character": (with_name("a\ud800"), "cannot be resolved"),
    "few checksums": (with_journal(1, shard_record(1, b"abcd")), "shard 1 does not belong to this store"),
    "nested record": (
        with_journal(1, checksum_bytes(b"[" * 200_000).hex().encode() + b" " + b"[" * 200_000 + b"\n"),
        r"not (a record )?of this format|bytes long, at most",
    ),
    "linked shard": (with_link("activations/c/1/0/0/0"), "leads out of"),
    "linked shards": (with_link("activations/c"), "leads out of"),
    "linked array": (with_link("activations"), "leads out of"),
    "linked journal": (with_link("activations/journal"), "leads out of"),
    "linked lock": (with_link("activations/writer.lock"), "leads out of"),
    "linked metadata": (with_link("zarr.json"), "leads out of"),
    "linked label": (with_link("success_rate/c/0"), "leads out of"),
    "pipe for metadata": (with_pipe("zarr.json"), "zarr.json is missing"),
    "pipe for a label": (with_pipe("success_rate/c/0"), "success_rate/c/0 is missing"),
    "pipe for a shard": (with_pipe("activations/c/1/0/0/0"), "its file is gone"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CORPUS)
def test_hostile_stores_are_refused(kind, store):
    change, message = CORPUS[kind]
    change(store)
    refused(store, message)


@pytest.mark.parametrize(
    "read",
    [lambda store: store.cell(0, -1), lambda store: store[:], lambda store: store[10:11]],
    ids=["cell", "all", "slice"],
)
def test_no_memory_is_taken_for_what_is_not_there(read, store):
    CORPUS["many features"][0](store)
    opened = ActivationStore.open(store)
    with pytest.raises(CorruptStoreError, match="bytes long, committed with"):
        read(opened)


@pytest.mark.parametrize("take_up", [StoreWriter.resume, lambda *a: StoreWriter.repair(*a, make_beside(11))])
def test_no_store_is_taken_up_whose_length_is_not_true(take_up, store):
    CORPUS["many samples"][0](store)
    with pytest.raises(CorruptStoreError, match=r"says \d+ samples, but (sample/c/0 is|n_tokens has)"):
        take_up(store, make_spec().fingerprint)


@pytest.mark.parametrize("store", UNFINISHED, ids=["format 1", "format 2"], indirect=True)
def test_nothing_is_written_through_a_link(store):
    spec = make_spec()
    for name in ("activations/c", "activations/writer.lock", "activations/journal"):
        copy = store.with_name("copy.zarr")
        shutil.copytree(store, copy)
        uncommit(copy, 2)
        with_link(name)(copy)
        outside = store.parent / "outside"
        before = {file: file.read_bytes() for file in outside.rglob("*") if file.is_file()}
        values = make_values(spec)
        with (
            pytest.raises(CorruptStoreError, match="leads out of"),
            StoreWriter.resume(copy, spec.fingerprint) as writer,
        ):
            writer.add(np.arange(8, 11), values[8:])
        assert {file: file.read_bytes() for file in outside.rglob("*") if file.is_file()} == before
        shutil.rmtree(copy)
        shutil.rmtree(outside)
        outside.mkdir()


def test_nothing_is_restored_through_a_link(store):
    with_link("success_rate/c")(store)
    outside = store.parent / "outside/moved/0"
    outside.write_bytes(b"damaged")
    with pytest.raises(CorruptStoreError, match="leads out of"):
        StoreWriter.repair(store, make_spec().fingerprint, make_beside(11))
    assert outside.read_bytes() == b"damaged"


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("activations/c/2/0/0/.0.partial", UNFINISHED[0]),
        ("activations/.journal.partial", UNFINISHED[0]),
        ("activations/c/2/0/0/.0.partial", UNFINISHED[1]),
        ("activations/journal/.1.partial", UNFINISHED[1]),
    ],
    indirect=["store"],
)
def test_a_link_in_place_of_a_temporary_file_is_not_followed(name, store):
    spec = make_spec()
    uncommit(store, 2)
    victim = store.parent / "outside/victim"
    victim.write_bytes(b"kept")
    (store / name).symlink_to(victim)
    with pytest.raises(OSError, match=name), StoreWriter.resume(store, spec.fingerprint) as writer:
        writer.add(np.arange(8, 11), make_values(spec)[8:])
    assert victim.read_bytes() == b"kept"


def test_a_link_below_a_draft_is_not_followed(store):
    draft = store.parent / ".new.zarr.creating"
    draft.mkdir()
    (draft / "question").symlink_to(store.parent / "outside")
    StoreWriter.create(store.parent / "new.zarr", make_spec(), make_beside(11)).__exit__(None, None, None)
    assert list((store.parent / "outside").iterdir()) == []
    assert not (store.parent / "new.zarr/question").is_symlink()


@pytest.mark.parametrize("name", ["new", "feature"])
def test_folders_that_are_not_of_the_store_are_not_shown_to_zarr(name, store):
    (store / name).mkdir()
    (store / name / "zarr.json").write_bytes(b"[" * 200_000)
    with pytest.raises(CorruptStoreError, match=rf"holds \['{name}'\], which does not belong to the store"):
        ActivationStore.open(store).to_xarray()


def test_xarray_is_not_given_another_shards_rows(tmp_path):
    spec = make_spec(8)
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    first, second = (tmp_path / "s.zarr/activations" / spec.layout.shard_key(shard) for shard in range(2))
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    with pytest.raises(CorruptStoreError, match=r"rows 0-3\): the checksums in the file are not those committed"):
        ActivationStore.open(tmp_path / "s.zarr").to_xarray()


@pytest.mark.parametrize("name", [".new.zarr.creating", ".new.zarr.creating/activations"])
def test_nothing_is_cleared_through_a_link(name, store):
    kept = store.parent / "outside/activations/kept"
    kept.parent.mkdir()
    kept.write_bytes(b"kept")
    link = store.parent / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(kept.parent.parent if name.endswith("creating") else kept.parent)
    with pytest.raises(StoreError, match=r"leads out of|is a symbolic link"):
        StoreWriter.create(store.parent / "new.zarr", make_spec(), make_beside(11))
    assert kept.read_bytes() == b"kept"


def test_a_store_may_be_reached_through_a_link(store):
    link = store.with_name("link.zarr")
    link.symlink_to(store)
    use(link)


def test_text_in_a_notebook_is_escaped(tmp_path):
    spec = make_spec(model="<script>alert(1)</script>")
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    assert "<script>" not in ActivationStore.open(tmp_path / "s.zarr")._repr_html_()


@pytest.mark.parametrize(
    ("provenance", "needed"),
    [
        ({"versions": {"probesweep": "3.1"}}, "install probesweep 3.1 or newer"),
        ({"versions": 7}, "in the version that wrote it"),
        (None, "in the version that wrote it"),
    ],
)
def test_a_newer_format_says_which_version_it_needs(provenance, needed, store):
    # All that is certain of a format to come is where its number stands.
    (store / "zarr.json").write_text(
        json.dumps({"attributes": {"probesweep_format": 3, "provenance": provenance}, "zarr_format": 3})
    )
    journal_file(store, 1).write_bytes(b"written otherwise")
    refused(store, f"has store format 3, this probesweep reads formats 1 to 2: .*{needed}", UnsupportedFormatError)
    with pytest.raises(UnsupportedFormatError):
        StoreWriter.repair(store, {}, make_beside(11))
