"""Results that others will replace are kept under another name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_probes.results.files import fsync_folder
from gpu_probes.results.folder import RUN, Run, clear_results, drawn, has_results, hash_run


def put_aside(output_dir: Path) -> Path:
    """Keep a folder's results elsewhere, and only there: new ones below it would not be found beside them.

    Returns
    -------
    Path
        As `keep_results`.
    """
    kept = keep_results(output_dir, [output_dir])
    clear_results(output_dir)
    return kept


def keep_results(output_dir: Path, folders: Sequence[Path]) -> Path:
    """Copy results that others will replace; complete or not at all.

    Parameters
    ----------
    output_dir : Path
    folders : sequence of Path
        Result folders: itself, or in it. No other process may write to them.

    Returns
    -------
    Path
        The folder of the copies: ``results.1`` for ``results``, and so on.
    """
    output_dir = output_dir.absolute()
    number = next(n for n in range(1, 10_000) if not _numbered(output_dir, n).exists())
    if number > 1 and all(
        _is_same_run(folder, _numbered(output_dir, number - 1) / folder.absolute().relative_to(output_dir))
        for folder in folders
    ):
        # A process was killed after it made the copies, before it replaced anything.
        return _numbered(output_dir, number - 1)
    target = _numbered(output_dir, number)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as draft:
        copies = Path(draft, target.name)
        for folder in folders:
            _copy_results(folder, copies / folder.absolute().relative_to(output_dir))
        copies.rename(target)
    fsync_folder(target.parent)
    return target


def _numbered(folder: Path, number: int) -> Path:
    return folder.with_name(f"{folder.name}.{number}")


def _is_same_run(folder: Path, other: Path) -> bool:
    return has_results(other) and hash_run(other) == hash_run(folder)


def _copy_results(folder: Path, target: Path) -> None:
    """Copy a folder's results and what was drawn of them, ``run.json`` last."""
    files = [folder / name for name in Run.load(folder).files]
    for path in filter(Path.is_file, (*drawn(folder), *files, folder / RUN)):
        copied = target / path.relative_to(folder)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copied)
