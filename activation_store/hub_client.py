"""What the Hugging Face hub's client raises, as one reason that says how to go on."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

OFFLINE = "HF_HUB_OFFLINE is set, so the hub cannot be used; unset it"


def reason_of(error: BaseException, repo_id: str, what: str = "dataset or model") -> str:
    """Why the hub could not be used for a repository.

    Parameters
    ----------
    error : BaseException
        What the client raised, or a library that uses it: errors behind it are looked at, too.
    repo_id : str
        Such as ``name/repository``.
    what : str
        What was looked for there.
    """
    for one in _behind(error):
        if isinstance(one, GatedRepoError):
            return f"{repo_id} is gated: request access on its page, then run `hf auth login`"
        if isinstance(one, RepositoryNotFoundError):
            return no_visible(repo_id, what)
        if isinstance(one, RevisionNotFoundError):
            return f"{repo_id} has no such branch, tag or commit; name another"
        if isinstance(one, HfHubHTTPError):
            return _answered(one, repo_id)
        if isinstance(one, OfflineModeIsEnabled):
            return OFFLINE
    return f"the hub could not be used for {repo_id}: {first_cause(error)}; check network and disk, and try again"


def is_of_hub(error: BaseException) -> bool:
    """Whether the hub or the way there is behind an error that another library raised."""
    kinds = (HfHubHTTPError, ConnectionError, LocalEntryNotFoundError, TimeoutError)
    return any(isinstance(one, kinds) or type(one).__module__.startswith("httpx") for one in _behind(error))


def first_cause(error: BaseException) -> str:
    """One line of what happened: those that were raised from it say what could not be done for it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def no_visible(repo_id: str, what: str = "dataset or model") -> str:
    """What is said of a repository that the hub does not show."""
    return (
        f"the hub has no visible {what} {repo_id}; check its name, and if it is private run `hf auth login` "
        "(or set HF_TOKEN)"
    )


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _answered(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    if status in (401, 403):
        return (
            f"the hub refused access to {repo_id} ({status}); give `hf auth login` or HF_TOKEN a token that has access"
        )
    reason = error.server_message or error.response.reason_phrase
    return f"the hub answered {status} for {repo_id}: {reason}; try again later"
