"""Where the bytes of large files are: in the memory of the local Hub, or in the folder that stands for xet storage."""

import hashlib
import struct
from pathlib import Path

from hub.repository import Refused

HEADER = 48  # bytes, of a shard and of each of its records
END = b"\xff" * 32


class Blobs:
    """Large files by sha256, whole or in the parts in which they come."""

    def __init__(self) -> None:
        self.whole: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}

    def put(self, sha256: str, content: bytes) -> None:
        """Keep a file. Raises `Refused` for bytes that are not the ones announced, as after a broken upload."""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Refused(400, "sha256 mismatch")
        self.whole[sha256] = content

    def put_part(self, sha256: str, number: int, content: bytes) -> None:
        """Keep one part."""
        self.parts.setdefault(sha256, {})[number] = content

    def complete(self, sha256: str) -> None:
        """Put the parts together."""
        self.put(sha256, b"".join(part for _, part in sorted(self.parts.pop(sha256, {}).items())))


def xet_hash(folder: Path, sha256: str) -> str | None:
    """The name under which the xet client stored a file, read from the shards that it wrote; None if it did not.

    A shard is a header and records: 32 bytes of hash, 4 of flags, 4 that count entries, then the entries, their
    verification (flag 31) and the sha256 (flag 30).
    """
    for shard in folder.rglob("*.mdb"):
        data, at = shard.read_bytes(), HEADER
        while at + HEADER <= len(data) and data[at : at + 32] != END:
            name = data[at : at + 32]
            flags, entries = struct.unpack("<II", data[at + 32 : at + 40])
            at += HEADER * (1 + entries * (2 if flags >> 31 else 1))
            if flags >> 30 & 1:
                if sha256 in (_hex(data[at : at + 32]), data[at : at + 32].hex()):
                    return _hex(name)
                at += HEADER
    return None


def _hex(name: bytes) -> str:
    """A xet hash is four little-endian words."""
    return b"".join(name[i : i + 8][::-1] for i in range(0, 32, 8)).hex()
