"""A folder becomes one commit on the Hub, or none.

Every attempt starts from the newest commit and names it as parent. So two commits never interleave, and where only the
answer to a commit was lost, the next attempt finds every file in place and commits nothing.
"""

import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo

from ...errors import PushError, invalid
from .retry import FAILURES, with_retries

# files of a model that was pushed before, which would contradict the new one
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
# what else describes another model, and stays where only the weights are new
OTHERS = (
    "tf_model*.h5",
    "flax_model*.msgpack",
    "*.onnx",
    "*.gguf",
    "generation_config.json",
    "*tokenizer*.json",
    "*tokenizer*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "*processor_config.json",
    "chat_template*",
    "additional_chat_templates/*",
    "modeling_*.py",
    "configuration_*.py",
    "tokenization_*.py",
    "processing_*.py",
)
IDENTITY = ("model_type", "vocab_size", "image_size", "num_channels")  # of a config: what those files depend on
T = TypeVar("T")


class Upload:
    """One push to one branch of one repository.

    Args:
        repo_id: "name" or "user/name".
        token: as in all of huggingface_hub; None takes that of `hf auth login` or HF_TOKEN.
        revision: the branch, which is created if it does not exist; None for main.
    """

    def __init__(self, repo_id: str, *, token: str | bool | None = None, revision: str | None = None) -> None:
        self.api = HfApi(token=token, library_name="optimum-dendritic")
        self.repo_id, self.revision = repo_id, revision
        self.state = "Nothing was pushed"

    def name(self) -> str:
        """The id with its user; the Hub is asked for the user if `repo_id` does not contain it. Raises `PushError`."""
        if "/" not in self.repo_id:
            user = self._retried(lambda: self.api.whoami()["name"])
            self.repo_id = f"{user}/{self.repo_id}"
        return self.repo_id

    def ask(self) -> None:
        """See that the Hub answers and knows who pushes, and change nothing there.

        Raises:
            PushError: it does not, or the token may only read.
        """
        user = self._retried(self.api.whoami)
        token = (user.get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            rule = f"the token of {user['name']} may only read. {self.state}"
            raise invalid("token", "***", rule, "Log in with one that may write.", PushError)

    def open(self, private: bool | None) -> None:
        """Create the repository and the branch if they do not exist.

        Raises:
            PushError: they cannot be created.
            DendriticError: `private` is asked for, and the repository exists and is public.
        """
        self._retried(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True))
        if self.revision is not None and not self.revision.startswith("refs/"):  # a pull request exists already
            branch = self.revision
            self._retried(lambda: self.api.create_branch(self.repo_id, branch=branch, exist_ok=True))
        info = self._retried(self._head)
        self.state = f"Nothing was pushed; {self.repo_id} is as it was, at commit {info.sha}"
        if private and not info.private:
            remedy = "Make it private on its settings page, or push to another name."
            raise invalid("private", private, f"{self.repo_id} exists already and is public. {self.state}", remedy)

    def send(self, folder: Path, message: str) -> CommitInfo:
        """Commit every file of the folder, and the deletion of the stale ones, at once.

        Raises:
            PushError: the commit did not arrive, or it is unknown whether it did; the message says what is on the Hub.
        """

        def commit() -> CommitInfo:
            head = self._head()
            assert head.sha is not None
            operations = [*_additions(folder), *_deletions(folder, head, self._is_of_another(folder, head))]
            self.state = f"It is unknown whether a commit after {head.sha} arrived at {self.repo_id}"
            try:
                return self._commit(operations, message, head.sha)
            except FAILURES:
                self.state = self._outcome(head.sha)
                raise

        return self._retried(commit)

    def _commit(self, operations: list[Any], message: str, parent: str) -> CommitInfo:
        return self.api.create_commit(
            self.repo_id, operations, commit_message=message, revision=self.revision, parent_commit=parent
        )

    def _head(self) -> ModelInfo:
        return self.api.model_info(self.repo_id, revision=self.revision)

    def _is_of_another(self, folder: Path, head: ModelInfo) -> bool:
        """Whether the repository holds another model than one that these files could be a state of: its config says so,
        or does not say what it is. Without a config there is no model yet, but perhaps a tokenizer."""
        if "config.json" not in [sibling.rfilename for sibling in head.siblings or ()]:
            return False
        with TemporaryDirectory() as place:
            file = self.api.hf_hub_download(self.repo_id, "config.json", revision=head.sha, local_dir=place)
            was, now = _identity(Path(file)), _identity(folder / "config.json")
        return was != now

    def _outcome(self, parent: str) -> str:
        """What is on the Hub after a commit that failed."""
        try:
            now = self._head().sha
        except FAILURES:
            return f"Whether the commit arrived is unknown; before it {self.repo_id} was at {parent}"
        if now == parent:
            return f"Nothing was pushed; {self.repo_id} is as it was, at commit {parent}"
        return f"{self.repo_id} has moved from {parent} to {now}: the commit may have arrived, whole"

    def _retried(self, action: Callable[[], T]) -> T:
        return with_retries(action, self.repo_id, self.api.token, lambda: self.state)


def _additions(folder: Path) -> list[CommitOperationAdd]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]


def _identity(config: Path) -> dict[str, Any] | None:
    """What no compression changes of a model; None where its config cannot be read."""
    try:
        content = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return {name: content.get(name) for name in IDENTITY} if isinstance(content, dict) else None


def _deletions(folder: Path, head: ModelInfo, of_another: bool) -> list[CommitOperationDelete]:
    """Deletions of the files that describe another model, so that nobody ever loads parts of both.

    Args:
        of_another: whether that model has another type, so that its tokenizer and its code go, too.
    """
    present = [sibling.rfilename for sibling in head.siblings or ()]
    patterns = (*STALE, *OTHERS) if of_another else STALE
    stale = [path for path in present if any(fnmatch(path, pattern) for pattern in patterns)]
    return [CommitOperationDelete(path) for path in stale if not (folder / path).exists()]
