"""The classes of a label that is words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LabelClasses:
    """The classes of a label of words, which its array holds as their places in `names`.

    Attributes
    ----------
    names : tuple of str
        In order: that of the column where it is ordered, else sorted by code points.
    ordered : bool
        Whether the column had an order of its own: an ordered categorical.
    """

    names: tuple[str, ...]
    ordered: bool = False

    def to_json(self) -> dict[str, Any]:
        """As in the attributes of a store."""
        return {"names": list(self.names), "ordered": self.ordered}
