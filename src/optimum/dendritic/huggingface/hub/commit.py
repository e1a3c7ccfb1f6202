"""A folder becomes one commit on the Hub, or none.

Every attempt starts from the newest commit and names it as parent. So two commits never interleave, and where only the
answer to a commit was lost, the next attempt finds every file in place and commits nothing.
"""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo

from ...errors import invalid
from .retry import FAILURES, persist

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
        if self.revision is not None and not self.revision.startswith("refs/"):  # a pull request is there
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


def _additions(folder: Path) -> list[CommitOperationAdd]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]


def _deletions(folder: Path, head: ModelInfo) -> list[CommitOperationDelete]:
    """The end of files that describe another model, so that nobody ever loads half of each."""
    present = [sibling.rfilename for sibling in head.siblings or ()]
    stale = [path for path in present if any(fnmatch(path, pattern) for pattern in STALE)]
    return [CommitOperationDelete(path) for path in stale if not (folder / path).exists()]
