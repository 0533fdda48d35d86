"""The warning of fits that are less exact than they should be; apart, because scikit-learn takes a second to import."""

from sklearn.exceptions import ConvergenceWarning

from gpu_probes.errors import ProbeWarning


class NotConvergedWarning(ProbeWarning, ConvergenceWarning):
    """A fit is less exact than it should be; also scikit-learn's own warning, so that its filters apply."""
