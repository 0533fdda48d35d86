"""What a disk may hold when the power fails, from the calls that were made until then.

A file's data is on disk once the file was fsynced after it was written; a name (of a new file or folder, its new name,
its removal) once the folder that holds it was fsynced. What is neither is *pending*: of every pending change on its own
it is not known whether the disk has it, and of pending data the disk may have something else. That is less than what
ext4 or XFS promise, and what POSIX does.

A failed fsync is worse than none: the kernel drops the pages that it could not write, so that the data can still be
read until the power fails, and a second fsync reports success without having written it. Such data is *doomed*.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePosixPath

from benchmarks.faults.calls import Call

# Path -> content; None is a folder.
Tree = dict[str, bytes | None]


class Fate(Enum):
    """What becomes of one pending change."""

    APPLIED = "on disk"
    DROPPED = "lost"
    ZEROS = "zeros in its place"
    GARBLED = "garbage in its place"
    CUT = "half on disk"


@dataclass(eq=False)
class Change:
    """One change to a file's data or a folder's names.

    Parameters
    ----------
    number : int
        Of the call that made it.
    what : str
        Said in messages.
    data, offset : bytes, int
        Of a write.
    length : int, optional
        Of a truncation.
    name, node : str, Node
        A name and what it now stands for; None if it is gone.
    old_name : str
        The name that it had, of a rename.
    doomed : bool
        An fsync of it failed.
    """

    number: int
    what: str
    data: bytes = b""
    offset: int = 0
    length: int | None = None
    name: str = ""
    node: Node | None = None
    old_name: str = ""
    doomed: bool = False

    @property
    def is_name(self) -> bool:
        return bool(self.name)

    @property
    def is_write(self) -> bool:
        return bool(self.data)


Fates = Mapping[Change, Fate]


@dataclass(eq=False)
class FileNode:
    """A file: what is certainly on disk, and what was changed since."""

    durable: bytes = b""
    pending: list[Change] = field(default_factory=list)

    def content(self, fates: Fates) -> bytes:
        """Content if the pending changes have these fates; those that are not named are applied."""
        data = bytearray(self.durable)
        for change in self.pending:
            _apply(data, change, fates.get(change, Fate.APPLIED))
        return bytes(data)

    def synced(self, *, failed: bool) -> None:
        """Fsync: what is pending is on disk, or doomed if it failed."""
        if failed:
            for change in self.pending:
                change.doomed = change.doomed or change.is_write
            return
        self.durable = self.content({change: Fate.DROPPED for change in self.pending if change.doomed})
        self.pending = []


@dataclass(eq=False)
class FolderNode:
    """A folder: the names that are certainly on disk, and what was changed since."""

    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def names(self, fates: Fates) -> dict[str, Node]:
        """Names if the pending changes have these fates; those that are not named are applied."""
        names = dict(self.durable)
        for change in self.pending:
            if fates.get(change, Fate.APPLIED) is Fate.DROPPED:
                continue
            if change.old_name and names.get(change.old_name) is change.node:
                del names[change.old_name]
            if change.node is None:
                names.pop(change.name, None)
            else:
                names[change.name] = change.node
        return names

    def synced(self, *, failed: bool) -> None:
        """Fsync: what is pending is on disk, unless it failed."""
        if not failed:
            self.durable, self.pending = self.names({}), []


Node = FileNode | FolderNode


class Disk:
    """A disk behind a page cache, to which recorded calls are applied one by one.

    Parameters
    ----------
    tree : dict of str to bytes
        What is certainly on it at first.
    """

    def __init__(self, tree: Tree | None = None) -> None:
        self._root = FolderNode()
        self._n_calls = 0
        self._handles: dict[int, Node] = {}
        self._offsets: dict[int, int] = {}
        for path, content in sorted((tree or {}).items()):
            folder = self._folder(PurePosixPath(path).parent)
            folder.durable[PurePosixPath(path).name] = FolderNode() if content is None else FileNode(content)

    def apply(self, call: Call) -> None:
        """Do to this disk what the call did; only an fsync does something when it fails."""
        self._n_calls += 1
        if call.kind == "fsync":
            self._handles[call.handle].synced(failed=call.failed)
        elif not call.failed:
            getattr(self, f"_{call.kind}")(call)

    def new_process(self) -> None:
        """Forget what was open: handles are counted from scratch."""
        self._handles, self._offsets = {}, {}

    def tree(self, fates: Fates | None = None) -> Tree:
        """What is found after a power loss with these fates; what processes see now if none are given."""
        return dict(sorted(_walk(self._root, "", fates or {})))

    def pending(self) -> list[Change]:
        """Every change that may be lost."""
        nodes: dict[int, Node] = {}
        _collect(self._root, nodes)
        return sorted((change for node in nodes.values() for change in node.pending), key=lambda change: change.number)

    def doomed(self) -> list[Change]:
        """Changes of which an fsync failed: not on disk, whatever a later fsync says."""
        return [change for change in self.pending() if change.doomed]

    def _folder(self, path: PurePosixPath) -> FolderNode:
        node: Node = self._root
        for name in path.parts:
            assert isinstance(node, FolderNode)
            node = node.names({})[name]
        assert isinstance(node, FolderNode)
        return node

    def _change_name(self, path: str, node: Node | None, what: str, old_name: str = "") -> None:
        place = PurePosixPath(path)
        change = Change(self._n_calls, what, name=place.name, node=node, old_name=old_name)
        self._folder(place.parent).pending.append(change)

    def _open(self, call: Call) -> None:
        place = PurePosixPath(call.path)
        if call.path == ".":
            node: Node | None = self._root
        else:
            node = self._folder(place.parent).names({}).get(place.name)
        if node is None:
            node = FileNode()
            self._change_name(call.path, node, f"new file {call.path}")
        elif call.number & os.O_TRUNC:
            node.pending.append(Change(self._n_calls, f"truncation of {call.path}", length=0))
        self._handles[call.handle], self._offsets[call.handle] = node, 0

    def _write(self, call: Call) -> None:
        offset = self._offsets[call.handle]
        what = f"{len(call.data)} bytes at {offset} of {call.path}"
        self._handles[call.handle].pending.append(Change(self._n_calls, what, data=call.data, offset=offset))
        self._offsets[call.handle] += len(call.data)

    def _ftruncate(self, call: Call) -> None:
        what = f"truncation of {call.path} to {call.number} bytes"
        self._handles[call.handle].pending.append(Change(self._n_calls, what, length=call.number))

    def _lseek(self, call: Call) -> None:
        self._offsets[call.handle] = call.number

    def _close(self, call: Call) -> None:
        del self._handles[call.handle]

    def _mkdir(self, call: Call) -> None:
        self._change_name(call.path, FolderNode(), f"new folder {call.path}")

    def _unlink(self, call: Call) -> None:
        self._change_name(call.path, None, f"removal of {call.path}")

    _rmdir = _unlink

    def _replace(self, call: Call) -> None:
        source = PurePosixPath(call.path)
        assert source.parent == PurePosixPath(call.target).parent, "a rename between folders is two names"
        node = self._folder(source.parent).names({})[source.name]
        self._change_name(call.target, node, f"rename of {call.path} to {call.target}", source.name)


def replayed(calls: Iterable[Call], start: Tree | None = None) -> Tree:
    """Tree that the calls leave behind."""
    disk = Disk(start)
    for call in calls:
        disk.apply(call)
    return disk.tree()


def _apply(data: bytearray, change: Change, fate: Fate) -> None:
    if fate is Fate.DROPPED:
        return
    if change.length is not None:
        _resize(data, change.length)
        return
    written = change.data[: len(change.data) // 2] if fate is Fate.CUT else change.data
    if fate is Fate.ZEROS:
        written = bytes(len(written))
    elif fate is Fate.GARBLED:
        written = random.Random(change.number).randbytes(len(written))
    _resize(data, max(len(data), change.offset))
    data[change.offset : change.offset + len(written)] = written


def _resize(data: bytearray, length: int) -> None:
    del data[length:]
    data.extend(bytes(length - len(data)))


def _walk(folder: FolderNode, prefix: str, fates: Fates) -> Iterator[tuple[str, bytes | None]]:
    for name, node in folder.names(fates).items():
        path = f"{prefix}{name}"
        if isinstance(node, FileNode):
            yield path, node.content(fates)
        else:
            yield path, None
            yield from _walk(node, f"{path}/", fates)


def _collect(node: Node, nodes: dict[int, Node]) -> None:
    """Every node that a name, durable or pending, leads to."""
    if id(node) in nodes:
        return
    nodes[id(node)] = node
    if isinstance(node, FolderNode):
        named = [change.node for change in node.pending if change.node is not None]
        for child in (*node.durable.values(), *named):
            _collect(child, nodes)
