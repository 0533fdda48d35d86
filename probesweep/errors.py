"""What can be wrong with a request that concerns both packages."""


class RequestError(ValueError):
    """Files or options that do not go together; the message says what, where, and how to mend it."""
