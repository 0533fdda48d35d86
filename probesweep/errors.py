"""Errors of requests that concern both packages."""

from probesweep_errors import ProbesweepError


class RequestError(ProbesweepError, ValueError):
    """Files or options that do not fit together; the message says what, where, and how to fix it."""
