"""Errors of requests that concern both packages."""


class RequestError(ValueError):
    """Files or options that do not fit together; the message says what, where, and how to fix it."""
