"""A Zarr store that notes the digest of each file it writes, and looks at it on reading."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

from zarr.errors import UnstableSpecificationWarning
from zarr.storage import LocalStore

from workbench.studies.digests import digest, marked
from workbench.studies.store import Altered

# Texts that stand along a dim. Zarr warns that other readers may not know them; ours does.
warnings.filterwarnings("ignore", category=UnstableSpecificationWarning)


class Digests(LocalStore):
    """The store, on disk.

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
