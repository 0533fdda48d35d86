"""The attempts that are done, in SQLite: a transaction for each batch, so that a killed run loses one batch at most."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probesweep.errors import OtherLabelsError, RequestError
from probesweep.labelling.columns import Attempt
from probesweep.labelling.engines.engine import Batch

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS questions (row INTEGER PRIMARY KEY, attempts TEXT NOT NULL)",
)


# What decides how answers are judged, and not what they are.
JUDGING = {"verifier", "truncated", "verify_errors"}
Judge = Callable[[int, Attempt], Attempt]


@dataclass(frozen=True)
class Progress:
    """What is done of one labelling. Open with `Progress.open`."""

    path: Path
    connection: sqlite3.Connection

    @classmethod
    @contextmanager
    def open(cls, path: Path, fingerprint: Mapping[str, Any], judge: Judge) -> Generator[Progress]:
        """Go on with what there is, or begin.

        Parameters
        ----------
        path : Path
        fingerprint : mapping
            What decides the attempts, as JSON.
        judge : callable
            Row and attempt -> the same attempt, judged. What is there is judged again if nothing else has changed.

        Raises
        ------
        OtherLabelsError
            The file is of a labelling with other inputs; names the fields that differ.
        RequestError
            It is no such file.
        """
        connection = None
        try:
            connection = sqlite3.connect(path, isolation_level=None)
            progress = cls(path, connection)
            progress._begin(fingerprint, judge)
            yield progress
        except sqlite3.OperationalError as error:
            raise OSError(errno.EIO, f"{error}; run the same command again when that is mended", str(path)) from error
        except sqlite3.DatabaseError as error:
            raise RequestError(
                f"{path}, which keeps the attempts that are done, cannot be used ({error}); remove it to begin anew"
            ) from error
        finally:
            if connection is not None:
                connection.close()
            if is_empty(path):
                # A failed attempt leaves nothing behind.
                path.unlink()

    @classmethod
    def write(cls, path: Path, fingerprint: Mapping[str, Any], attempts: Iterable[Sequence[Attempt]]) -> None:
        """Begin a file with attempts that are there, those at each question in the order of the rows."""
        with cls.open(path, fingerprint, lambda _, attempt: attempt) as progress:
            of_rows = list(attempts)
            progress.add(tuple(range(len(of_rows))), of_rows)

    def _begin(self, fingerprint: Mapping[str, Any], judge: Judge) -> None:
        with self._transaction():
            for statement in _SCHEMA:
                self.connection.execute(statement)
            if not self.done:
                # Of whatever was begun here before, nothing is done.
                self.connection.execute("DELETE FROM about")
                self._tell("fingerprint", fingerprint)
        found = self._told("fingerprint")
        changed = differences(found, fingerprint)
        if not changed <= JUDGING:
            check_same(self.path, found, fingerprint, "remove it to begin anew")
        if not changed:
            return
        with self._transaction():
            judged = [
                (json.dumps([asdict(judge(row, attempt)) for attempt in attempts]), row)
                for row, attempts in zip(sorted(self.done), self.attempts(), strict=True)
            ]
            self.connection.executemany("UPDATE questions SET attempts = ? WHERE row = ?", judged)
            self.connection.execute("DELETE FROM about WHERE name = 'fingerprint'")
            self._tell("fingerprint", fingerprint)

    @property
    def plan(self) -> list[Batch] | None:
        """The batches that were planned; None before they are."""
        told = self._told("plan")
        return None if told is None else [tuple(batch) for batch in told]

    def begin(self, plan: Sequence[Batch]) -> None:
        """Keep a plan: after a kill the same batches are run."""
        with self._transaction():
            self._tell("plan", plan)

    @property
    def done(self) -> set[int]:
        """Rows whose attempts are there."""
        return {row for (row,) in self.connection.execute("SELECT row FROM questions")}

    def add(self, batch: Batch, attempts: Sequence[Sequence[Attempt]]) -> None:
        """Keep the attempts at the questions of a batch: all of them or none."""
        entries = [
            (row, json.dumps([asdict(attempt) for attempt in of_row]))
            for row, of_row in zip(batch, attempts, strict=True)
        ]
        with self._transaction():
            self.connection.executemany("INSERT INTO questions VALUES (?, ?)", entries)

    def attempts(self, first: int = 0, n_rows: int = -1) -> Iterator[list[Attempt]]:
        """The attempts at each question, in the order of the rows."""
        query = "SELECT attempts FROM questions WHERE row >= ? ORDER BY row LIMIT ?"
        for (text,) in self.connection.execute(query, (first, n_rows)):
            yield [Attempt(**attempt) for attempt in json.loads(text)]

    @contextmanager
    def _transaction(self) -> Generator[None]:
        # Durable when it returns: SQLite's default is to fsync.
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        _commit(self.connection)

    def _tell(self, name: str, value: Any) -> None:
        self.connection.execute("INSERT INTO about VALUES (?, ?)", (name, json.dumps(value)))

    def _told(self, name: str) -> Any:
        found = self.connection.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])


def is_empty(path: Path) -> bool:
    """Whether a file that may be there keeps no attempts."""
    if not path.is_file():
        return False
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT count(*) FROM questions").fetchone() == (0,)
    except sqlite3.OperationalError:
        # Killed before it had a table.
        return path.stat().st_size == 0
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()


def _commit(connection: sqlite3.Connection) -> None:
    """Of its own, so that tests can interrupt it."""
    connection.execute("COMMIT")


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[str]:
    """Names of the fields in which two fingerprints differ; the one that is found came through JSON."""
    wanted = json.loads(json.dumps(wanted))
    return {name for name in {**found, **wanted} if found.get(name) != wanted.get(name)}


def check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], way_out: str) -> None:
    """Raise `OtherLabelsError` with the fields that differ.

    Parameters
    ----------
    path : Path
        What was made with `found`.
    found, wanted : mapping
        Fingerprints.
    way_out : str
    """
    names = differences(found, wanted)
    if names:
        shown = ", ".join(
            f"{name} {_short(found.get(name))}, now {_short(wanted.get(name))}"
            for name in {**found, **wanted}
            if name in names
        )
        raise OtherLabelsError(
            f"{path} was made with other inputs ({shown}); give another output_path=..., or {way_out}",
            argument="output_path",
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
