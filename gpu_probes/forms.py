"""The form of documents: strict values, and one sentence about what is wrong with one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AllowInfNan, Discriminator, Field, Strict, Tag, TypeAdapter, ValidationError

from gpu_probes.display.wording import one_line
from gpu_probes.errors import ProbeError

Json = Any
_REMEDY = "run the same training again"
Form = TypeVar("Form")

# Correlations and areas may exceed 1 in the last digits.
_ROUNDING = 1e-9


def _without_nan(value: Json) -> Json:
    """Refuse NaN and infinity wherever they stand: JSON has none."""
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _without_nan(one)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and infinity are not JSON")
    return value


Text = Annotated[str, Strict()]
Sha256 = Annotated[str, Strict(), Field(pattern="^[0-9a-f]{64}$")]
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Share = Annotated[float, Strict(), AllowInfNan(False), Field(ge=-_ROUNDING, le=1 + _ROUNDING)]
Penalty = Annotated[float, Strict(), AllowInfNan(False), Field(ge=0)]
Score = Annotated[float, Strict(), AllowInfNan(False), Field(ge=-1 - _ROUNDING, le=1 + _ROUNDING)]
Place = Whole | Text
"""A layer or a position: a number, or the name of joined ones."""
Anything = Annotated[Any, AfterValidator(_without_nan)]
"""JSON of any form."""


def _columns(value: Json) -> str:
    return "several" if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)) else "one"


Columns = Annotated[
    Annotated[tuple[Number, ...], Tag("one")] | Annotated[tuple[tuple[Number, ...], ...], Tag("several")],
    Discriminator(_columns),
]
"""A number for each row or, beyond two classes, one for each row and class."""


# Of a field that a document leaves out where it is None.
OMITTED = {"omitted": True}


def plain(value: Any) -> Json:
    """A document as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        held = {one.name: (getattr(value, one.name), "omitted" in one.metadata) for one in fields(value)}
        return {name: plain(one) for name, (one, may_lack) in held.items() if not (may_lack and one is None)}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def read_form(
    kind: type[Form], document: Json, path: Path, *, within: Sequence[str] = (), remedy: str = _REMEDY
) -> Form:
    """Read a document as a dataclass; what stands deeper in a file says where (`within`).

    Raises
    ------
    ProbeError
        Where it is none.
    """
    try:
        return _adapter(kind).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = [*within, *_where(document, first["loc"])]
        raise damaged(path, first["msg"], place, remedy=remedy) from error


@cache
def _adapter(kind: type) -> Any:
    return TypeAdapter(kind)


def damaged(path: Path, what: str, where: Sequence[object] = (), *, remedy: str = _REMEDY) -> ProbeError:
    """What is wrong in a file of a result folder, and where in it."""
    place = f" ({one_line('.'.join(map(str, where)))})" if where else ""
    return ProbeError(f"{path}: {what[:1].lower()}{what[1:]}{place}; {remedy}")


def _where(document: Json, steps: Sequence[int | str]) -> list[int | str]:
    """The keys that lead to a place, the last of which may be missing; other steps are names of forms."""
    place: list[int | str] = []
    for index, step in enumerate(steps):
        try:
            document = document[step]
        except (LookupError, TypeError):
            if index < len(steps) - 1 or not isinstance(document, dict):
                continue
        place.append(step)
    return place
