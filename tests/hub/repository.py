"""What the local Hub keeps of a model repository: commits, each a whole tree of files, and branches that name them."""

import base64
import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png", ".onnx", ".npz", ".parquet")


class Refused(Exception):
    """An answer that is not a success: a status, a message, and the code that the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class File:
    """One file of a tree: the bytes of a small one, or where those of a large one are."""

    content: bytes = b""
    sha256: str | None = None  # of a large file, which `Hub.blobs` or the xet storage holds under this name
    lfs_size: int = 0
    xet_hash: str | None = None

    @property
    def oid(self) -> str:
        """As git names it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.lfs_size}\n"
        content = self.content if self.sha256 is None else pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def describe(self, path: str) -> dict[str, Any]:
        """The entry of a listing."""
        if self.sha256 is None:
            return {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        lfs = {"oid": self.sha256, "size": self.lfs_size, "pointerSize": 134}
        entry = {"type": "file", "path": path, "oid": self.oid, "size": self.lfs_size, "lfs": lfs}
        return entry if self.xet_hash is None else entry | {"xetHash": self.xet_hash}


@dataclass(frozen=True)
class Commit:
    """A tree, and how it came about."""

    sha: str
    parent: str | None
    title: str
    author: str
    date: str
    files: Mapping[str, File]

    def describe(self) -> dict[str, Any]:
        """The entry of a history."""
        authors = [{"user": self.author}]
        return {"id": self.sha, "title": self.title, "message": "", "date": self.date, "authors": authors}


@dataclass
class Repository:
    """A model repository. `id` is "user/name"."""

    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add("main", {".gitattributes": File(b"*.safetensors filter=lfs\n")}, "initial commit", "system")

    def add(self, branch: str, files: Mapping[str, File], title: str, author: str) -> Commit:
        """Commit a tree."""
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        sha = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
        self.commits[sha] = Commit(sha, self.branches.get(branch), title, author, date, dict(files))
        self.branches[branch] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit:
        """The commit that a branch or a sha names."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def history(self, revision: str = "main") -> list[Commit]:
        """Newest first."""
        commits, commit = [], self.at(revision)
        while True:
            commits.append(commit)
            if commit.parent is None:
                return commits
            commit = self.commits[commit.parent]

    def preupload(self, revision: str, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Which way each file is to come, and what is there under its name already."""
        present = self.at(revision).files
        answers = []
        for path, sample in ((file["path"], base64.b64decode(file["sample"])) for file in files):
            large = path.endswith(LFS_SUFFIXES) or b"\0" in sample
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if path in present:
                answer["oid"] = present[path].sha256 or present[path].oid
            answers.append(answer)
        return answers

    def describe(self, revision: str) -> dict[str, Any]:
        """What the client calls a model's info."""
        commit = self.at(revision)
        config = json.loads(commit.files["config.json"].content) if "config.json" in commit.files else {}
        return {
            "id": self.id,
            "modelId": self.id,
            "author": self.id.split("/")[0],
            "sha": commit.sha,
            "lastModified": commit.date,
            "private": self.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "config": {key: config[key] for key in ("architectures", "model_type") if key in config},
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }

    def tree(self, revision: str, below: str) -> list[dict[str, Any]]:
        """Every file, or those of a folder."""
        prefix = f"{below.strip('/')}/" if below else ""
        files = self.at(revision).files
        entries = [file.describe(path) for path, file in sorted(files.items()) if path.startswith(prefix)]
        if prefix and not entries:
            raise Refused(404, f"{below} does not exist on {revision}", "EntryNotFound")
        return entries
