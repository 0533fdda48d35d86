"""What is damaged can be written anew, to the last byte as it was."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from activation_store import ActivationStore, CorruptStoreError, Extraction, FingerprintMismatchError, InputError
from activation_store.errors import StoreError
from activation_store.store.writer import StoreWriter
from tests.helpers.stores import HEALTH, damage, make_beside, make_spec, make_values, same_bits, tree, write_store


def repair(path, spec, values, *, finish=False):
    """Mend a store; returns what was wrong and the shards written."""
    with StoreWriter.repair(path, spec.fingerprint, make_beside(spec.n_samples)) as writer:
        pending = writer.pending_shards
        for shard in pending:
            rows = np.array(spec.layout.rows(shard))
            writer.add(rows, values[rows])
        if finish:
            writer.finish(HEALTH)
    return [str(problem) for problem in writer.damage], pending


def drop_line(journal, number):
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number][:9] + b"x" + lines[number][10:]
    journal.write_bytes(b"".join(lines))


DAMAGES = {
    "nothing": (lambda store: None, []),
    "a value": (lambda store: damage(store / "activations/c/1/0/0/0", 17), [1]),
    "a checksum": (lambda store: damage(store / "activations/c/1/0/0/0", 4 * 7 * 4 + 1), [1]),
    "an index": (lambda store: damage(store / "activations/c/2/0/0/0", -3), [2]),
    "a missing file": (lambda store: (store / "activations/c/0/0/0/0").unlink(), [0]),
    "a cut file": (lambda store: (store / "activations/c/0/0/0/0").write_bytes(b"short"), [0]),
    "a coordinate": (lambda store: damage(store / "question/c/0", 9), []),
    "a missing label": (lambda store: (store / "is right/c/0").unlink(), []),
    "the sample numbers": (lambda store: (store / "sample/c/0").write_bytes(b"short"), []),
    "a label's metadata": (lambda store: damage(store / "success_rate/zarr.json", 40), []),
}
LINES = {
    "a journal line": (lambda store: drop_line(store / "activations/journal", 2), [1]),
    "the last journal line": (lambda store: damage(store / "activations/journal", -5), [2]),
}
RECORDS = {
    "a record": (lambda store: damage(store / "activations/journal/1", 20), [1]),
    "a cut record": (lambda store: (store / "activations/journal/2").write_bytes(b""), [2]),
    "another shard's record": (
        lambda store: shutil.copy(store / "activations/journal/0", store / "activations/journal/1"),
        [1],
    ),
}


def cut_line_by_line(n_lines: int) -> Callable[[Path], None]:
    """Cut the last file where a line ends, so that each line that is left is whole."""

    def cut(store: Path) -> None:
        path = store / "activations/journal/finished"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-n_lines]))

    return cut


FINISHED = {
    "the last file": (lambda store: damage(store / "activations/journal/finished", 20), []),
    "the last file without its last line": (cut_line_by_line(1), []),
    "the last file without two lines": (cut_line_by_line(2), []),
    "a record": (lambda store: damage(store / "activations/journal/1", 20), []),
    "a missing record": (lambda store: (store / "activations/journal/1").unlink(), []),
    "the first record": (lambda store: damage(store / "activations/journal/created", 20), []),
    "no first record": (lambda store: (store / "activations/journal/created").unlink(), []),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "version", "finish"),
    [(kind, 1, False) for kind in DAMAGES | LINES]
    + [(kind, 2, False) for kind in DAMAGES | RECORDS]
    + [(kind, 2, True) for kind in DAMAGES | FINISHED],
)
def test_repair_restores_every_byte(kind, version, finish, tmp_path):
    spec = make_spec(version=version)
    values = make_values(spec)
    path = tmp_path / "s.zarr"
    write_store(path, spec, values, finish=finish)
    whole = tree(path)
    do, expected = (DAMAGES | LINES | RECORDS | (FINISHED if finish else {}))[kind]
    do(path)
    assert (tree(path) == whole) == (kind == "nothing")
    problems, pending = repair(path, spec, values, finish=finish)
    assert pending == expected
    assert len(problems) == (kind != "nothing")
    assert ActivationStore.open(path).verify() == []
    restored = tree(path)
    if kind == "a journal line":
        # Shards are independent: the line comes back behind the others.
        sort = {"activations/journal": sorted(restored["activations/journal"].splitlines())}
        assert {**restored, **sort} == {
            **whole,
            "activations/journal": sorted(whole["activations/journal"].splitlines()),
        }
    else:
        assert restored == whole


def test_values_that_come_out_otherwise_are_committed_and_reported(tmp_path):
    spec = make_spec()
    values = make_values(spec)
    write_store(tmp_path / "s.zarr", spec, values)
    damage(tmp_path / "s.zarr/activations/c/1/0/0/0", 17)
    with StoreWriter.repair(tmp_path / "s.zarr", spec.fingerprint, make_beside(11)) as writer:
        writer.add(np.arange(4, 8), -values[4:8])
        assert writer.changed_shards == [1]
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert store.verify() == []
    same_bits(store[4:8], -values[4:8])


@pytest.mark.parametrize("name", ["zarr.json", "activations/zarr.json"])
def test_what_the_inputs_do_not_give_again_is_refused(name, tmp_path):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    damage(tmp_path / "s.zarr" / name, -2)
    with pytest.raises(CorruptStoreError, match=name):
        StoreWriter.repair(tmp_path / "s.zarr", spec.fingerprint, make_beside(11))


def test_other_inputs_change_nothing(tmp_path):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    damage(tmp_path / "s.zarr/activations/journal/1", 20)
    before = tree(tmp_path / "s.zarr")
    with pytest.raises(FingerprintMismatchError):
        StoreWriter.repair(tmp_path / "s.zarr", {**spec.fingerprint, "dataset": "e"}, make_beside(11))
    assert tree(tmp_path / "s.zarr") == before


def test_other_labels_do_not_replace_damaged_ones(tmp_path):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    damage(tmp_path / "s.zarr/success_rate/c/0", 3)
    before = tree(tmp_path / "s.zarr")
    other = make_beside(11)
    other["success_rate"] = other["success_rate"] / 2
    with pytest.raises(CorruptStoreError, match="do not reproduce it"):
        StoreWriter.repair(tmp_path / "s.zarr", spec.fingerprint, other)
    assert tree(tmp_path / "s.zarr") == before


def test_a_damaged_first_journal_line_is_beyond_repair(tmp_path):
    spec = make_spec()
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    damage(tmp_path / "s.zarr/activations/journal/created", 30)
    with pytest.raises(CorruptStoreError, match="names all other files"):
        StoreWriter.repair(tmp_path / "s.zarr", spec.fingerprint, make_beside(11))


def test_extract_repairs(tiny_model, dataset, tmp_path, caplog):
    def run(**options):
        return Extraction(
            str(tiny_model("llama")), dataset, tmp_path / "s.zarr", use_chat_template=True, shard_samples=4,
            device="cpu", **options,
        ).run()  # fmt: skip

    with pytest.raises(InputError, match="no store to repair"):
        run(repair=True)
    run()
    whole = tree(tmp_path / "s.zarr")
    damage(tmp_path / "s.zarr/activations/c/1/0/0/0", 5)
    damage(tmp_path / "s.zarr/token/c/0/0", 5)
    with pytest.raises(StoreError, match="repair=True"):
        ActivationStore.open(tmp_path / "s.zarr")[:]
    with pytest.raises(FingerprintMismatchError, match="layers"):
        run(repair=True, layers="0")
    run(repair=True)
    assert tree(tmp_path / "s.zarr") == whole
    assert [record.getMessage().rsplit("/", 1)[-1] for record in caplog.records][-1] == (
        "s.zarr: 1 of 3 shards will be extracted"
    )
    assert any("rows 4-7" in record.getMessage() for record in caplog.records)
