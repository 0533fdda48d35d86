"""Errors of requests that concern both packages."""

from probesweep_errors import ProbesweepError


class RequestError(ProbesweepError, ValueError):
    """Files or options that do not fit together; the message says what, where, and how to fix it."""


class OtherLabelsError(RequestError):
    """A file holds attempts that were made with other inputs."""


class VerifierError(RequestError):
    """A verifier failed on an answer, or said what is no verdict; the message says which and why."""
