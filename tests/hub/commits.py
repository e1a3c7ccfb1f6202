"""What a commit request does to a repository of the local Hub: all of it, or nothing."""

import base64
from pathlib import Path
from typing import Any

from hub.cards import faults_of_card
from hub.repository import Commit, File, Refused, Repository
from hub.storage import Blobs, xet_hash


def commit(
    repository: Repository, branch: str, lines: list[dict[str, Any]], user: str, blobs: Blobs, xet: Path | None
) -> Commit:
    """Apply the lines of a commit request: a header, then one operation each.

    Raises:
        Refused: the branch has moved on, a large file has not been uploaded, or the card's metadata is bad.
    """
    header, base = lines[0]["value"], repository.at(branch)
    if branch not in repository.branches:
        raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    if header.get("parentCommit") not in (None, base.sha):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(base.files)
    for line in lines[1:]:
        value = line["value"]
        match line["key"]:
            case "file":
                files[value["path"]] = _small(value)
            case "lfsFile":
                files[value["path"]] = _large(value, blobs, xet)
            case "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
    return repository.add(branch, files, header["summary"], user)


def _small(value: dict[str, Any]) -> File:
    content = base64.b64decode(value["content"])
    faults = faults_of_card(content.decode()) if value["path"] == "README.md" else []
    if faults:
        raise Refused(400, "Invalid metadata in README.md.\n" + "\n".join(faults))
    return File(content)


def _large(value: dict[str, Any], blobs: Blobs, xet: Path | None) -> File:
    sha256 = value["oid"]
    if sha256 in blobs.whole:
        return File(sha256=sha256, lfs_size=len(blobs.whole[sha256]))
    stored = None if xet is None else xet_hash(xet, sha256)
    if stored is None:
        raise Refused(422, f"Your push was rejected: an LFS pointer points to no file: {value['path']}")
    return File(sha256=sha256, lfs_size=value["size"], xet_hash=stored)
