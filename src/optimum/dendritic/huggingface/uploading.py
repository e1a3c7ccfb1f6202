"""A folder becomes one commit on the Hub, or none: patient where the network is not, and silent about the token.

Every attempt starts from the newest commit and names it as parent. So two commits never interleave, and where only the
answer to a commit was lost, the next attempt finds every file in place and commits nothing.
"""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from transformers.utils import logging

from ..errors import DendriticError, PushError, invalid

logger = logging.get_logger(__name__)

ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds, doubled after each attempt
LONGEST_OBEYED_WAIT = 300.0  # seconds that a Hub may ask for in Retry-After
PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}  # 409 and 412: someone else commits at the same time
FAILURES = (HTTPError, OSError, ValueError, RuntimeError)  # of huggingface_hub and its xet client
# what describes a model that was here before and would contradict the new one
STALE = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "adapter_config.json",
    "adapter_model.*",
    "loading_dendritic.py",
    "efficiency.json",
    "figures/*.png",
)
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


class Upload:
    """One push to one branch of one repository.

    Args:
        repo_id: "name" or "user/name".
        token: as everywhere in huggingface_hub; None takes the one of `hf auth login` or HF_TOKEN.
        revision: the branch; made if it is not there.
    """

    def __init__(self, repo_id: str, *, token: str | bool | None = None, revision: str | None = None) -> None:
        self.api = HfApi(token=token, library_name="optimum-dendritic")
        self.repo_id, self.revision = repo_id, revision
        self.state = "Nothing was pushed"

    def name(self) -> str:
        """The id with its user, which the Hub knows where `repo_id` does not say it. Raises `PushError`."""
        if "/" not in self.repo_id:
            self.repo_id = f"{self._persist(self.api.whoami)['name']}/{self.repo_id}"
        return self.repo_id

    def open(self, private: bool | None) -> None:
        """Make the repository and the branch where they are not there yet.

        Raises:
            PushError: that cannot be done, or what is to be private is public.
        """
        self._persist(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True))
        if self.revision is not None:
            branch = self.revision
            self._persist(lambda: self.api.create_branch(self.repo_id, branch=branch, exist_ok=True))
        info = self._persist(self._head)
        self.state = f"Nothing was pushed; {self.repo_id} is as it was, at commit {info.sha}"
        if private and not info.private:
            remedy = "Make it private on its settings page, or push to another name."
            raise invalid("private", private, f"{self.repo_id} is there already and public. {self.state}", remedy)

    def send(self, folder: Path, message: str) -> CommitInfo:
        """Commit every file of the folder, and the end of what it replaces, at once.

        Raises:
            PushError: it did not get there; says what did.
        """

        def commit() -> CommitInfo:
            head = self._head()
            assert head.sha is not None
            operations = [*_additions(folder), *_deletions(folder, head)]
            self.state = f"It is unknown whether a commit after {head.sha} arrived at {self.repo_id}"
            try:
                return self._commit(operations, message, head.sha)
            except FAILURES:
                self.state = self._outcome(head.sha)
                raise

        return self._persist(commit)

    def _commit(self, operations: list[Any], message: str, parent: str) -> CommitInfo:
        return self.api.create_commit(
            self.repo_id, operations, commit_message=message, revision=self.revision, parent_commit=parent
        )

    def _head(self) -> ModelInfo:
        return self.api.model_info(self.repo_id, revision=self.revision)

    def _outcome(self, parent: str) -> str:
        """What is on the Hub after a commit that failed."""
        try:
            now = self._head().sha
        except FAILURES:
            return f"Whether the commit arrived is unknown; before it {self.repo_id} was at {parent}"
        if now == parent:
            return f"Nothing was pushed; {self.repo_id} is as it was, at commit {parent}"
        return f"{self.repo_id} has moved from {parent} to {now}: the commit may have arrived, whole"

    def _persist(self, action: Callable[[], T]) -> T:
        return persist(action, self.repo_id, self.api.token, lambda: self.state)


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


def _additions(folder: Path) -> list[CommitOperationAdd]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]


def _deletions(folder: Path, head: ModelInfo) -> list[CommitOperationDelete]:
    """The end of files that describe another model, so that nobody ever loads half of each."""
    present = [sibling.rfilename for sibling in head.siblings or ()]
    stale = [path for path in present if any(fnmatch(path, pattern) for pattern in STALE)]
    return [CommitOperationDelete(path) for path in stale if not (folder / path).exists()]


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
