"""A label column, and the classes of one that is words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


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


@dataclass(frozen=True, eq=False)
class LabelColumn:
    """Labels of rows.

    Attributes
    ----------
    values : ndarray [sample]
        Numbers or booleans; of words the places of their classes.
    classes : LabelClasses or None
        None where labels are no words.
    """

    values: np.ndarray
    classes: LabelClasses | None = None

    def of_rows(self, rows: np.ndarray) -> LabelColumn:
        """Those of some rows."""
        return replace(self, values=self.values[rows])

    @property
    def words(self) -> list[str]:
        """The class of each row; empty where labels are no words."""
        return [] if self.classes is None else [self.classes.names[place] for place in self.values.tolist()]

    @property
    def column(self) -> Any:
        """The values as pandas has them: words as a categorical."""
        import pandas as pd

        if self.classes is None:
            return self.values
        return pd.Categorical.from_codes(self.values, list(self.classes.names), ordered=self.classes.ordered)
