"""Where results go: unusable places are refused before the work, and one process at a time writes to a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from activation_store import StoreLockedError
from activation_store.files.durable import LONGEST_NAME, make_folder
from activation_store.files.lock import WriterLock
from activation_store.files.storage import Location, is_address
from activation_store.store.documents import is_store
from gpu_probes.results.folder import PAGE, RESULT_FILES, RUN, has_results
from probesweep.errors import RequestError

_LOCK = ".lock"
# Those of result folders and of experiments.
_NAMES = (*RESULT_FILES, RUN, PAGE, "tracked.json", "stages.json", "seeds.json")


def check_on_disk(location: str | Path, argument: str) -> None:
    """Refuse an address of an object store.

    Raises
    ------
    RequestError
        It is one.
    """
    if is_address(location):
        raise RequestError(
            f"{location}: results are written to a disk, only stores to an object store; give a path as {argument}=...",
            argument=argument,
        )


def check_folder(folder: Path, argument: str) -> None:
    """Make sure that files can be written to a folder, which need not exist yet.

    Raises
    ------
    RequestError
        They cannot, or the folder is a store or inside one.
    """
    above = (folder.absolute(), *folder.absolute().parents)
    _check_names(folder.absolute().parts, argument)
    for each in above:
        if each.is_symlink() and not each.exists():
            raise RequestError(
                f"{folder}: {each} is a broken link; fix it or give another {argument}=...", argument=argument
            )
    for each in filter(is_store, above):
        raise RequestError(
            f"{each} is a store, which holds nothing else; give another {argument}=...", argument=argument
        )
    nearest = next(each for each in above if each.exists())
    try:
        # Permissions are not the only thing that can fail.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise RequestError(
            f"cannot write to {folder}: {nearest}: {error.strerror}; give another {argument}=...", argument=argument
        ) from error


def check_file(path: Path, argument: str, inputs: Iterable[Location] = ()) -> None:
    """Make sure that a file can be written; as `check_folder`.

    Parameters
    ----------
    path : Path
    argument : str
        That which names the file, for errors.
    inputs : iterable of Path or str
        What the same command reads, which the output must not replace; an address cannot be.
    """
    _check_names([path.name], argument)
    check_folder(path.parent, argument)
    if path.is_dir():
        raise RequestError(f"{path} is a folder; give the name of a file as {argument}=...", argument=argument)
    if path.is_symlink():
        raise RequestError(
            f"{path} is a symbolic link, which is not followed; give the file it points to as {argument}=...",
            argument=argument,
        )
    if path.exists() and not path.is_file():
        raise RequestError(
            f"{path} is a device or a pipe; give the name of a file as {argument}=...", argument=argument
        )
    target = path.resolve()
    for each in (each for each in inputs if isinstance(each, Path)):
        if target == each.resolve() or _is_same(path, each):
            raise RequestError(
                f"{path} is an input, and would be overwritten; give another {argument}=...", argument=argument
            )
        if each.is_dir() and not has_results(each) and target.is_relative_to(each.resolve()):
            raise RequestError(
                f"{path} is in {each}, which is an input; give another {argument}=...", argument=argument
            )
    if path.name in _NAMES and (path.exists() or has_results(path.parent)):
        raise RequestError(f"{path} is the name of a result file; give another {argument}=...", argument=argument)


def check_room(folder: Path, n_bytes: int, argument: str) -> None:
    """Refuse output that does not fit on its disk.

    Raises
    ------
    RequestError
        Says what is needed and what is free.
    """
    nearest = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(nearest).free
    if n_bytes > free:
        raise RequestError(
            f"{folder} needs about {n_bytes / 2**30:.2f} GiB and its disk has {free / 2**30:.2f} GiB free; give "
            f"another {argument}=...",
            argument=argument,
        )


@contextmanager
def writing(*folders: Path) -> Generator[None]:
    """Be the only process that writes results to some folders, creating them; the lock dies with its process.

    Raises
    ------
    RequestError
        Another process is; names it.
    """
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(_locked(folder))
        yield


@contextmanager
def only_writer(lock_file: Path, what: Path) -> Generator[None]:
    """Be the only process that writes `what`; the lock file is removed at the end.

    Raises
    ------
    RequestError
        Another process is; names it.
    """
    try:
        lock = WriterLock.acquire(lock_file, what)
    except StoreLockedError as error:
        raise RequestError(str(error), argument=error.argument) from error
    try:
        yield
    finally:
        lock.remove()


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    make_folder(folder)
    try:
        with only_writer(folder / _LOCK, folder):
            yield
    finally:
        # A failed attempt leaves nothing behind.
        with suppress(OSError):
            for each in made:
                each.rmdir()


def _is_same(path: Path, other: Path) -> bool:
    """Whether two names are the same file, as hard links are."""
    return path.exists() and other.exists() and path.samefile(other)


def _check_names(names: Iterable[str], argument: str) -> None:
    for name in names:
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise RequestError(
                f"{name[:40]}... is longer than the {LONGEST_NAME} bytes that a name can have; give another "
                f"{argument}=...",
                argument=argument,
            )
