"""A store under everything at once: a hypothesis state machine against a model of what is committed and damaged."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from activation_store.errors import StoreError
from activation_store.files.lock import WriterLock
from activation_store.format.spec import ARRAY
from activation_store.store.writer import StoreWriter
from benchmarks.faults.calls import Effect, Fault, Watch
from benchmarks.faults.damage import is_reported, read_everything
from benchmarks.faults.job import STORE, Job, small_job, tree
from benchmarks.faults.scenarios import CREATED_PATH, JOURNAL_PATH, shard_path

JOBS = {dtype: small_job(dtype) for dtype in ("float32", "bfloat16")}
SAYS_WHAT_IT_IS = {f"{STORE}/zarr.json", f"{STORE}/{ARRAY}/zarr.json"}
# The number of samples is held against the length of this one.
LENGTH = f"{STORE}/sample/c/0"


class StoreMachine(RuleBasedStateMachine):
    """Write, kill, fail, resume, corrupt, verify, repair and read, in any order.

    The model: the shards that were acknowledged, the rows that the writer was given of others, and which records of the
    journal were damaged, after which the store is refused until it is repaired. Which other files are damaged is seen
    from the files: every one of them has but one right content.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folders = ExitStack()
        self.job = small_job()
        self.writer: StoreWriter | None = None
        self.committed: set[int] = set()
        self.given: dict[int, set[int]] = {}
        self.damaged_records: set[str] = set()

    @initialize(dtype=st.sampled_from(sorted(JOBS)))
    def begin(self, dtype: str) -> None:
        """Start with an empty folder."""
        self.job = JOBS[dtype]
        self.root = self._folders.enter_context(self.job.begun())

    @property
    def exists(self) -> bool:
        return (self.root / CREATED_PATH).exists()

    @property
    def broken_files(self) -> set[str]:
        """Files that are not as they should be, the journal left out; a shard's only if it is committed."""
        expected = {path: data for path, data in self.job.reference.items() if data is not None}
        uncommitted = {shard_path(self.job, shard) for shard in set(range(self.job.n_shards)) - self.committed}
        records = {path for path in expected if path.startswith(JOURNAL_PATH)}
        looked_at = set(expected) - uncommitted - records - {f"{STORE}/{ARRAY}/writer.lock"}
        found = tree(self.root)
        return {path for path in looked_at if found.get(path) != expected[path]}

    @property
    def beyond_repair(self) -> bool:
        """What the store is may not be known: it can be refused, whatever else is whole."""
        return bool(self.broken_files & SAYS_WHAT_IT_IS) or CREATED_PATH in self.damaged_records

    @property
    def may_be_refused(self) -> bool:
        return self.beyond_repair or bool(self.damaged_records) or LENGTH in self.broken_files

    @precondition(lambda self: self.writer is None)
    @rule(fault=st.none() | st.integers(1, 200))
    def take_up(self, fault: int | None) -> None:
        """Create the store or resume it; a call may fail on the way."""
        self._take_up(self.job, fault)

    @precondition(lambda self: self.writer is None and self.exists)
    @rule(fault=st.none() | st.integers(1, 40))
    def repair(self, fault: int | None) -> None:
        """Open the store for repair; a call may fail on the way."""
        self._take_up(replace(self.job, repairing=True), fault)

    def _take_up(self, job: Job, fault: int | None) -> None:
        failing = None if fault is None else Fault(Effect.FAIL, fault, errno=errno.EIO)
        with Watch(self.root, failing) as watch:
            try:
                self.writer = job.writer(self.root)
            except OSError:
                assert watch.fired
                if job.repairing:
                    self._note_what_is_taken_back()
                return
            except StoreError:
                assert self.beyond_repair if job.repairing else self.may_be_refused
                return
        self._agree_on_pending(job.repairing)

    def _agree_on_pending(self, repairing: bool) -> None:
        """The writer wants what was not acknowledged, and in a repair what is damaged; else only the journal's loss."""
        assert self.writer is not None
        self.committed -= {shard for shard in self.committed if f"{JOURNAL_PATH}/{shard}" in self.damaged_records}
        self.damaged_records = set()
        broken = self.broken_files
        damaged = {shard for shard in self.committed if shard_path(self.job, shard) in broken} if repairing else set()
        assert not repairing or broken == {shard_path(self.job, shard) for shard in damaged}, (
            "the rest is mended at once"
        )
        # Their records are taken back: they are as if never committed.
        self.committed -= damaged
        assert set(self.writer.pending_shards) == set(range(self.job.n_shards)) - self.committed
        self.given = {}

    def _note_what_is_taken_back(self) -> None:
        """A repair that failed has removed some records of damaged shards, and damaged records, or none."""
        gone = {shard for shard in self.committed if not (self.root / JOURNAL_PATH / str(shard)).exists()}
        damaged = {shard for shard in self.committed if shard_path(self.job, shard) in self.broken_files}
        assert gone <= damaged | {shard for shard in gone if f"{JOURNAL_PATH}/{shard}" in self.damaged_records}
        self.committed -= gone
        self.damaged_records = {path for path in self.damaged_records if (self.root / path).exists()}

    @precondition(lambda self: self.writer is not None and self.writer.pending_shards)
    @rule(data=st.data(), fault=st.none() | st.integers(1, 30))
    def add_rows(self, data: st.DataObject, fault: int | None) -> None:
        """Give the writer some rows of one shard, in any order; a call may fail while it commits them."""
        assert self.writer is not None
        shard = data.draw(st.sampled_from(self.writer.pending_shards))
        given = self.given.setdefault(shard, set())
        left = [row for row in self.job.spec.layout.rows(shard) if row not in given]
        rows = data.draw(st.permutations(left))[: data.draw(st.integers(1, len(left)))]
        failing = None if fault is None else Fault(Effect.FAIL, fault, errno=errno.ENOSPC)
        with Watch(self.root, failing) as watch:
            try:
                self.writer.add(np.array(rows), self.job.values[rows])
            except OSError:
                assert watch.fired
                self._writer_failed(np.array(rows))
                return
        given.update(rows)
        if len(rows) == len(left):
            self.committed.add(shard)

    def _writer_failed(self, rows: np.ndarray) -> None:
        assert self.writer is not None
        try:
            self.writer.add(rows, self.job.values[rows])
        except StoreError:
            self.close()
        else:
            raise AssertionError("a writer went on after a write had failed")

    @precondition(lambda self: self.writer is not None)
    @rule()
    def close(self) -> None:
        """Leave the writer; what it was given of unfinished shards is forgotten."""
        assert self.writer is not None
        self.writer.__exit__(None, None, None)
        self.writer = None

    @precondition(lambda self: self.writer is not None)
    @rule()
    def kill(self) -> None:
        """Leave the writer as a killed process does: only its descriptors are closed."""
        assert self.writer is not None
        lock = self.writer._lock  # pyright: ignore[reportPrivateUsage]
        assert isinstance(lock, WriterLock)
        os.close(lock._descriptor)  # pyright: ignore[reportPrivateUsage]
        self.writer = None

    @precondition(lambda self: self.writer is None and self.exists)
    @rule(data=st.data(), mask=st.integers(1, 255))
    def flip(self, data: st.DataObject, mask: int) -> None:
        """Change one byte of one file."""
        path, content = self._drawn_file(data)
        if content:
            offset = data.draw(st.integers(0, len(content) - 1))
            self._damage(path, content[:offset] + bytes([content[offset] ^ mask]) + content[offset + 1 :])

    @precondition(lambda self: self.writer is None and self.exists)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        """Cut one file off."""
        path, content = self._drawn_file(data)
        self._damage(path, content[: data.draw(st.integers(0, len(content)))])

    @precondition(lambda self: self.writer is None and self.exists)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Remove one file, but not of the journal: what has no record was never committed."""
        path, _ = self._drawn_file(data)
        if not path.startswith(JOURNAL_PATH):
            (self.root / path).unlink()

    def _drawn_file(self, data: st.DataObject) -> tuple[str, bytes]:
        content = {path: found for path, found in tree(self.root).items() if found is not None}
        path = data.draw(st.sampled_from(sorted(content)))
        return path, content[path]

    def _damage(self, path: str, content: bytes) -> None:
        changed = (self.root / path).read_bytes() != content
        (self.root / path).write_bytes(content)
        # Drafts of a killed process are nothing.
        if changed and path.startswith(JOURNAL_PATH) and not path.endswith(".partial"):
            self.damaged_records.add(path)

    @precondition(lambda self: self.exists)
    @rule()
    def verify(self) -> None:
        """It reports something just if something is missing or damaged."""
        if not self.damaged_records:
            unfinished = len(self.committed) < self.job.n_shards
            assert is_reported(self.root / STORE) == (unfinished or bool(self.broken_files))

    @rule()
    def read(self) -> None:
        """What is committed and whole is there; nothing that is read is wrong."""
        damaged = {shard for shard in self.committed if shard_path(self.job, shard) in self.broken_files}
        whole = set() if self.may_be_refused else self.committed - damaged
        counts = self.job.look(self.root, whole, "read")
        assert not counts.broken, counts.broken

    @precondition(lambda self: self.exists)
    @rule()
    def read_all(self) -> None:
        """Cells, slices, coordinates and labels: right, or refused if something is missing or damaged."""
        outcome = read_everything(self.job, self.root / STORE)
        unfinished = len(self.committed) < self.job.n_shards
        assert outcome == "right" or (
            outcome == "refused" and (unfinished or self.damaged_records or self.broken_files)
        )

    def teardown(self) -> None:
        """Mend and finish the store: every file is as ever."""
        try:
            if self.writer is not None:
                self.close()
            if hasattr(self, "root") and not (self.exists and self.beyond_repair):
                replace(self.job, repairing=True).run(self.root)
                assert tree(self.root) == self.job.reference
        finally:
            self._folders.close()
