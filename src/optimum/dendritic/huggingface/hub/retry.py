"""Requests to the Hub, retried after a transient failure; the error of one that failed for good hides the token."""

from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx2 or, in huggingface_hub 1, of httpx
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from transformers.utils import logging

from ...errors import DendriticError, PushError, invalid

logger = logging.get_logger(__name__)

ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds, doubled after each attempt
LONGEST_OBEYED_WAIT = 300.0  # seconds that a Hub may ask for in Retry-After
TRANSIENT = {408, 409, 412, 425, 429, 500, 502, 503, 504}  # 409 and 412: someone else commits at the same time
# of an answer of another form than its reader expects, which huggingface_hub reads without looking
UNREADABLE = (LookupError, TypeError, AttributeError, AssertionError)
FAILURES = (HTTPError, OSError, ValueError, RuntimeError, *UNREADABLE)  # of huggingface_hub and its xet client
REMEDIES = {
    400: "Correct what the Hub says about the files, and push again.",
    401: "Log in with `hf auth login`, or pass a valid token=.",
    403: "Use a token that may write there, or push to a namespace of your own.",
    404: "Check the name and the revision, and that the token may see it.",
    409: "Someone else commits to it at the same time: push again.",
    412: "Someone else commits to it at the same time: push again.",
    429: "The Hub limits the rate: wait a while, then push again.",
}
AGAIN = "Push again later; what has arrived already is not sent or committed twice."
T = TypeVar("T")


def with_retries(action: Callable[[], T], repo_id: str, token: str | bool | None, state: Callable[[], str]) -> T:
    """Call `action`; after a transient failure wait, longer each time, and call it again.

    Args:
        action: makes requests to the Hub; calling it twice must be safe.
        repo_id: the repository that it pushes to, for the messages.
        token: the token of the requests, which is kept out of the messages.
        state: returns a sentence on what is on the Hub by now, for the error.

    Raises:
        PushError: `action` failed for good, or in all `ATTEMPTS`. The token is in no part of the error, nor of what it
            was caused by or raised while handling.
    """

    def warn(attempt: RetryCallState) -> None:
        assert attempt.outcome is not None and attempt.next_action is not None
        reason = summary(attempt.outcome.exception(), token)
        logger.warning(f"{repo_id}: {reason}; trying again in {attempt.next_action.sleep:.0f} seconds.")

    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=_wait,
        retry=retry_if_exception(_is_transient),
        before_sleep=warn,
        reraise=True,
    )
    try:
        return retrying(action)
    except DendriticError:
        raise
    except FAILURES as error:
        failure = _failure(error, repo_id, token, state())
        cause = None if _contains_token(error, token) else error
    raise failure from cause  # out here nothing is being handled, so that no context holds what the Hub said


def _failure(error: Exception, repo_id: str, token: str | bool | None, state: str) -> DendriticError:
    """The error for a user, of one that nothing more is tried after."""
    if isinstance(error, LocalTokenNotFoundError):
        remedy = "Log in with `hf auth login`, or set HF_TOKEN."
        return invalid("token", None, f"nobody is logged in. {state}", remedy, PushError)
    rule, status = f"{summary(error, token)}. {state}", _status(error)
    if isinstance(error, UNREADABLE):
        rule = f"the Hub gave an answer that cannot be read: {rule}"
    if status is None or status in TRANSIENT:  # nothing says that the repository's name is at fault
        failed = f"the push to {repo_id} did not get through: {rule}"
        return invalid("endpoint", constants.ENDPOINT, failed, _remedy(error), PushError)
    return invalid("repo_id", repo_id, rule, _remedy(error), PushError)


def summary(error: BaseException | None, token: str | bool | None) -> str:
    """One line about an error and what caused it, without the token."""
    texts = []
    while error is not None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        status = f" {error.response.status_code}" if isinstance(error, HfHubHTTPError) else ""
        texts.append(f"{type(error).__name__}{status}: {' '.join(lines)}".rstrip(".: "))
        error = (
            error.__cause__ if isinstance(error, RuntimeError) else None
        )  # the error of a failed thread names its reason so
    return _redacted("; ".join(texts), token)


def _http_error(error: BaseException | None) -> HTTPError | None:
    """The HTTP error among an error and its causes; None if there is not one."""
    while error is not None and not isinstance(error, HTTPError):
        error = error.__cause__
    return error


def _status(error: BaseException | None) -> int | None:
    error = _http_error(error)
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the Hub answered with such a status, or did not answer."""
    status = _status(error)
    return _http_error(error) is not None if status is None else status in TRANSIENT


def _wait(attempt: RetryCallState) -> float:
    """The seconds to wait: doubled after each attempt, or as many as the Hub asks for."""
    assert attempt.outcome is not None
    error, asked = _http_error(attempt.outcome.exception()), ""
    if isinstance(error, HfHubHTTPError):
        asked = error.response.headers.get("Retry-After", "")
    doubled = wait_exponential_jitter(initial=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT)(attempt)
    return max(doubled, min(float(asked), LONGEST_OBEYED_WAIT)) if asked.isdecimal() else doubled


def _remedy(error: BaseException) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "Unset HF_HUB_OFFLINE to push."
    if _http_error(error) is None and not isinstance(error, UNREADABLE):
        return "Correct what the message names, and push again."
    return REMEDIES.get(_status(error) or 0, AGAIN)


def _redacted(text: str, token: str | bool | None) -> str:
    secret = token if isinstance(token, str) else get_token()
    return text.replace(secret, "***") if secret else text


def _contains_token(error: BaseException | None, token: str | bool | None) -> bool:
    """Whether a traceback through an error would show the token."""
    if error is None:
        return False
    text = f"{error}{error!r}"
    return (
        text != _redacted(text, token)
        or _contains_token(error.__cause__, token)
        or _contains_token(error.__context__, token)
    )
