"""A user's own verifier: a function of a Python file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from probesweep.errors import RequestError, VerifierError
from probesweep.labelling.verdict import Verdict, shown

Judge = Callable[[str, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class FunctionVerifier:
    """Judges by a user's function of the text and the row: true or false, a share in [0, 1], or None.

    It may also return a pair: the verdict, and the answer that it found in the text.

    Parameters
    ----------
    name : str
        Of the file and of the function, and a hash of the file: another content judges in another way.
    function : callable
    """

    name: str
    function: Judge

    @classmethod
    def load(cls, place: str) -> FunctionVerifier:
        """Run a file and take a function of it, given as ``FILE:FUNCTION``.

        Raises
        ------
        RequestError
            There is no such file or function, or the file cannot be run.
        """
        file, _, name = place.rpartition(":")
        path = Path(file)
        where = f"verifier 'python:{place}'"
        if not file or not name.isidentifier():
            raise RequestError(f"{where}: give the file and the function as python:FILE:FUNCTION")
        if not path.is_file():
            raise RequestError(f"{where}: there is no file {path}")
        content = path.read_bytes()
        try:
            module = _run(path)
        except (Exception, SystemExit) as error:
            raise RequestError(f"{where}: {path} cannot be run: {_in_one_line(error)}") from error
        function = getattr(module, name, None)
        if not callable(function):
            raise RequestError(f"{where}: {path} has no function {name}")
        return cls(f"python:{path.name}:{name} sha256:{hashlib.sha256(content).hexdigest()}", function)

    def judge(self, text: str, answer: Any, row: Mapping[str, Any]) -> Verdict:
        """Judge one answer."""
        del answer
        try:
            returned = self.function(text, row)
        except (Exception, SystemExit) as error:
            raise VerifierError(f"{self._called} raised {_in_one_line(error)}") from error
        value, extracted = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        return Verdict(None if extracted is None else str(extracted), self._share(value))

    def why_unusable(self, answer: Any) -> str | None:
        """Nothing: the function reads what it wants of the row."""
        del answer

    @property
    def _called(self) -> str:
        return self.name.partition(" ")[0]

    def _share(self, value: Any) -> float | None:
        if value is None:
            return None
        # NumPy's true and false are no numbers.
        is_number = isinstance(value, Real) or (hasattr(value, "dtype") and not value.shape)
        number = float(value) if is_number else None
        if number is None or not 0 <= number <= 1:
            raise VerifierError(
                f"{self._called} returned {shown(value)}; return true or false, a share in [0, 1], or None"
            )
        return number


def _run(path: Path) -> Any:
    """A file as a module; it can import what stands beside it."""
    name = f"verifier_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("its name does not end in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look for their module there.
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
