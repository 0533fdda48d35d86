"""The warning about inexact fits; in a separate module, because scikit-learn takes a second to import."""

from sklearn.exceptions import ConvergenceWarning

from gpu_probes.errors import ProbeWarning


class NotConvergedWarning(ProbeWarning, ConvergenceWarning):
    """A fit missed its accuracy; also scikit-learn's own warning, so that its filters apply."""
