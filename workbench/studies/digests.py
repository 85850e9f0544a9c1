"""Digests of what is stored: a chunk that is missing or altered is noticed when it is read.

Zarr reads an absent chunk as zeros, and an altered one as numbers. So a store holds the digest of
each of its files (SHA-256, 128 bits) in the attributes of a group of its own, ``manifest``, which
is plain Zarr to every other reader. Its own digest stands beside them, and that of the store's
attributes in the attributes themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: The group of the digests, and the entry that holds a mapping's own.
MANIFEST, OWN = "manifest/zarr.json", "digest"

#: The file of a store's attributes, which speak for themselves.
ROOT = "zarr.json"


def digest(content: bytes | memoryview) -> str:
    """Of the content of a file."""
    return hashlib.sha256(content).hexdigest()[:32]


def digest_of(file: Path) -> str:
    """Of a file, without holding all of it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def signed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with their digest among them."""
    plain = {key: value for key, value in values.items() if key != OWN}
    return {**plain, OWN: _of(plain)}


def unsigned(values: Mapping[str, Any]) -> tuple[dict[str, Any], bool | None]:
    """The values without their digest, and whether it is right; None where there is none."""
    plain = {key: value for key, value in values.items() if key != OWN}
    return plain, (values[OWN] == _of(plain) if OWN in values else None)


def _of(values: Mapping[str, Any]) -> str:
    # As a reader will see them: what JSON makes of keys and tuples has happened already.
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return digest(text.encode())


def marked(key: str) -> bool:
    """Whether a file of a store has its digest in the manifest."""
    return key not in (ROOT, MANIFEST)


def files_of(place: Path) -> Iterator[str]:
    """The files of a store that belong to it, as keys: not those of a process that died."""
    for path in sorted(place.rglob("*")):
        key = path.relative_to(place).as_posix()
        if path.is_file() and not key.startswith(".") and not key.endswith(".partial"):
            yield key
