"""Digests of what is stored: a chunk that is missing or altered is noticed when it is read.

Zarr reads an absent chunk as zeros, and an altered one as numbers. So a store holds the digest of
each of its files (SHA-256, 128 bits) in the attributes of a group of its own, ``manifest``, which
is plain Zarr to every other reader. Its own digest stands beside them, and that of the store's
attributes in the attributes themselves.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

__all__ = ["Digests", "digest", "digest_of", "files_of", "marked", "signed", "unsigned"]

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


class Digests(LocalStore):
    """A store on disk that knows the digest of each file: it notes it on writing, and looks at it
    on reading.

    Args:
        root: the folder.
        digests: of the files by key; those written are added.
        known_only: refuse, on reading, a file that is not among them; else it is read as it is.
        read_only: as of Zarr's stores.

    Raises:
        Altered: when a file is read that is not what was written.
    """

    def __init__(
        self,
        root: Path | str,
        digests: dict[str, str] | None = None,
        known_only: bool = False,
        *,
        read_only: bool = False,
    ) -> None:
        super().__init__(root, read_only=read_only)
        self.digests = {} if digests is None else digests
        self.known_only = known_only

    def with_read_only(self, read_only: bool = False) -> Digests:
        return type(self)(self.root, self.digests, self.known_only, read_only=read_only)

    async def get(self, key, prototype=None, byte_range=None):
        if prototype is None:
            from zarr.core.buffer import default_buffer_prototype

            prototype = default_buffer_prototype()
        value = await super().get(key, prototype, byte_range)
        if byte_range is None:
            await asyncio.to_thread(self._look, key, value)
        return value

    def get_sync(self, key, *, prototype=None, byte_range=None):
        value = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        if byte_range is None:
            self._look(key, value)
        return value

    async def set(self, key, value) -> None:
        await super().set(key, value)
        self._note(key, value)

    async def set_if_not_exists(self, key, value) -> None:
        there = await self.exists(key)
        await super().set_if_not_exists(key, value)
        if not there:
            self._note(key, value)

    def set_sync(self, key, value) -> None:
        super().set_sync(key, value)
        self._note(key, value)

    async def delete(self, key) -> None:
        await super().delete(key)
        self.digests.pop(key, None)

    def delete_sync(self, key) -> None:
        super().delete_sync(key)
        self.digests.pop(key, None)

    async def delete_dir(self, prefix) -> None:
        await super().delete_dir(prefix)
        for key in [key for key in self.digests if key.startswith(f"{prefix.rstrip('/')}/")]:
            del self.digests[key]

    def _note(self, key: str, value) -> None:
        if marked(key):
            self.digests[key] = digest(value.as_buffer_like())

    def _look(self, key: str, value) -> None:
        from workbench.studies.store import Altered

        if not marked(key):
            return
        expected = self.digests.get(key)
        if expected is None:
            if value is not None and self.known_only:
                raise Altered(self.root, {key: "was not written by the run"})
        elif value is None:
            raise Altered(self.root, {key: "is missing"})
        elif digest(value.as_buffer_like()) != expected:
            raise Altered(self.root, {key: "is not what was written"})
