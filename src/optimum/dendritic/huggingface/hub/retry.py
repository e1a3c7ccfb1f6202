"""Doing something on the Hub again where that may help, and telling what failed for good, without the token."""

from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx2 or, in huggingface_hub 1, of httpx
    OfflineModeIsEnabled,
)
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from transformers.utils import logging

from ...errors import DendriticError, PushError, invalid

logger = logging.get_logger(__name__)

ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds, doubled after each attempt
LONGEST_OBEYED_WAIT = 300.0  # seconds that a Hub may ask for in Retry-After
PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}  # 409 and 412: someone else commits at the same time
FAILURES = (HTTPError, OSError, ValueError, RuntimeError)  # of huggingface_hub and its xet client
REMEDIES = {
    400: "See what the Hub says about the files, and push again.",
    401: "Log in with `hf auth login`, or pass a valid token=.",
    403: "Use a token that may write there, or push to a namespace of your own.",
    404: "Check the name and the revision, and that the token may see it.",
    409: "Someone else commits to it at the same time: push again.",
    412: "Someone else commits to it at the same time: push again.",
    429: "The Hub limits the rate: wait a while, then push again.",
}
AGAIN = "Push again later; what has arrived already is not sent or committed twice."
T = TypeVar("T")


def persist(action: Callable[[], T], repo_id: str, token: str | bool | None, state: Callable[[], str]) -> T:
    """Do something on the Hub; wait and do it again where that may help.

    Args:
        action: safe to do twice.
        state: what is on the Hub by now, for the error.

    Raises:
        PushError: it failed for good, or too often. The token is in no part of it.
    """

    def tell(attempt: RetryCallState) -> None:
        assert attempt.outcome is not None and attempt.next_action is not None
        reason = summary(attempt.outcome.exception(), token)
        logger.warning(f"{repo_id}: {reason}; trying again in {attempt.next_action.sleep:.0f} seconds.")

    patience = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=_pause,
        retry=retry_if_exception(_passes),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return patience(action)
    except DendriticError:
        raise
    except FAILURES as error:
        failure = invalid("repo_id", repo_id, f"{summary(error, token)}. {state()}", _remedy(error), PushError)
        raise failure from (None if _tells(error, token) else error)


def summary(error: BaseException | None, token: str | bool | None) -> str:
    """One line about an error and what caused it, without the token."""
    texts = []
    while error is not None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        status = f" {error.response.status_code}" if isinstance(error, HfHubHTTPError) else ""
        texts.append(f"{type(error).__name__}{status}: {' '.join(lines)}".rstrip(".: "))
        error = error.__cause__ if isinstance(error, RuntimeError) else None  # a failed thread tells its reason so
    return _redacted("; ".join(texts), token)


def _http_error(error: BaseException | None) -> HTTPError | None:
    """The error of the network, or of the answer, that an error is or was raised for."""
    while error is not None and not isinstance(error, HTTPError):
        error = error.__cause__
    return error


def _status(error: BaseException | None) -> int | None:
    error = _http_error(error)
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _passes(error: BaseException) -> bool:
    """Whether it may go better next time: a status that says so, or no answer at all."""
    status = _status(error)
    return _http_error(error) is not None if status is None else status in PASSING


def _pause(attempt: RetryCallState) -> float:
    """Seconds: doubling, or what the Hub asks for."""
    assert attempt.outcome is not None
    error, asked = _http_error(attempt.outcome.exception()), ""
    if isinstance(error, HfHubHTTPError):
        asked = error.response.headers.get("Retry-After", "")
    patient = wait_exponential_jitter(initial=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT)(attempt)
    return max(patient, min(float(asked), LONGEST_OBEYED_WAIT)) if asked.isdecimal() else patient


def _remedy(error: BaseException) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "Unset HF_HUB_OFFLINE to push."
    if _http_error(error) is None:
        return "See what it says, and push again."
    return REMEDIES.get(_status(error) or 0, AGAIN)


def _redacted(text: str, token: str | bool | None) -> str:
    secret = token if isinstance(token, str) else get_token()
    return text.replace(secret, "***") if secret else text


def _tells(error: BaseException | None, token: str | bool | None) -> bool:
    """Whether a traceback through an error would show the token."""
    if error is None:
        return False
    text = f"{error}{error!r}"
    return text != _redacted(text, token) or _tells(error.__cause__, token) or _tells(error.__context__, token)
