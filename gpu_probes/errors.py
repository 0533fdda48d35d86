"""What can go wrong: misuse raises a `ProbeError`, bad data gets a `Status`."""

from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum

from probesweep_errors import ProbesweepError


class ProbeError(ProbesweepError, ValueError):
    """Bad input, in one line: what is wrong, where, and how to fix it."""


class LabelError(ProbeError):
    """Labels that are missing, not numeric, too many or few, or unsuitable for the task."""


class CellError(ProbeError):
    """Cells that do not have the shape or dtype they should, or that do not match between train and test."""


class FoldError(ProbeError):
    """Folds that the labels do not allow."""


class PenaltyError(ProbeError):
    """An alpha, or a grid of them, that no probe can be fitted with."""


class DeviceError(ProbeError):
    """A device that is not available, or cannot compute in float64."""


class BudgetError(ProbeError):
    """Less memory allowed than one cell takes."""


class MissingExtraError(ProbeError):
    """A part of the package whose libraries are not installed."""


@contextmanager
def extra(name: str, *modules: str) -> Generator[None]:
    """Say in one line which extra of the package is missing if one of its modules is not found."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in modules:
            raise
        raise MissingExtraError(f"{error.name} is not installed; pip install 'probesweep[{name}]'") from error


class ProbeWarning(UserWarning):
    """The sweep finished, but some cells need a second look."""


class Status(Enum):
    """Outcome of a cell; the value is the text that users read."""

    OK = "fitted and scored"
    CONSTANT_CELL = "every training row is identical here, so there is nothing to learn from"
    NON_FINITE = "the training features hold NaN or infinity, or numbers whose squares overflow"
    OUT_OF_RANGE = "features, labels or weights are so large or small that products leave float64's range; rescale them"
    CONSTANT_LABELS = "all training labels are equal, so there is nothing to tell apart"
    SINGULAR = "the solution is not unique at this alpha (to float64); use a larger alpha"
    CONSTANT_FOLD = "a held-out fold has one label value or lacks a class, so its score is undefined; use fewer folds"
    CONSTANT_PREDICTIONS = "the predictions do not differ by more than rounding error, so they have no ranking"
    TEST_CONSTANT_CELL = "every test row is identical here, so the test score is undefined"
    TEST_NON_FINITE = (
        "the test features hold NaN, infinity or numbers whose squares overflow, so the test score is undefined"
    )
    TEST_CONSTANT_LABELS = "the test labels hold only one value or lack a class, so the test score is undefined"
    TEST_CONSTANT_PREDICTIONS = "the test predictions do not differ by more than rounding error"
    NOT_CONVERGED = "the solver stopped before reaching its accuracy; scores are kept, see the certificate"
