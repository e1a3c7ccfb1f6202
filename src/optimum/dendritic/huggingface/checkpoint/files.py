"""Files that are replaced in one step."""

import os
from pathlib import Path


def replace(file: Path, content: bytes | str) -> None:
    """Put `content` in the place of `file`, in one step: whoever reads it finds the former content or this one.

    Raises:
        UnicodeEncodeError: the text cannot be written as UTF-8; the file is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
