"""Files that a study names by the hash of their content: stored once, beside the results.

A study holds the SHA-256 of a file, never a path, so it means the same tomorrow and on another
machine that has the file. A path is taken only from who runs a command or calls the library; what
comes by a URL, a form or an upload is a hash or the content itself.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from pathlib import Path

from workbench.studies.plain import shown

__all__ = ["FileError", "folder", "is_hash", "keep", "place"]

HASH = re.compile(r"[0-9a-f]{64}")

#: Bytes that are read at once.
BLOCK = 2**20


class FileError(ValueError):
    """A file that is not there, or is not what its hash says; the text says what to do."""


def folder() -> Path:
    """Where files are kept: ``WORKBENCH_FILES``, or ``.files`` in the folder of results."""
    if chosen := os.environ.get("WORKBENCH_FILES"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("WORKBENCH_RESULTS") or "results") / ".files"


def is_hash(value: object) -> bool:
    """Whether a value is the name of a kept file: 64 hexadecimal digits."""
    return isinstance(value, str) and HASH.fullmatch(value) is not None


def keep(file: Path | bytes) -> str:
    """Store the content of a file once; its SHA-256, under which :func:`place` finds it.

    Raises:
        FileError: a file that cannot be read or stored.
    """
    key = _hash(file)
    kept = folder() / key
    if kept.is_file():
        return key
    part = kept.with_name(f".{key}.{uuid.uuid4().hex[:8]}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(file if isinstance(file, bytes) else file.read_bytes())
        os.replace(part, kept)
    except OSError as error:
        raise FileError(f"{folder()} cannot be written: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)
    return key


def place(key: str) -> Path:
    """Where the file of that hash is, its content checked.

    Raises:
        FileError: it is not here, or another content is under its name.
    """
    if not is_hash(key):
        raise FileError(f"{shown(key)} is no SHA-256 of a file: 64 hexadecimal digits.")
    kept = folder() / key
    if not kept.is_file():
        raise FileError(
            f"the file {key[:12]}... is not in {folder()}; give the study its path once more "
            "(workbench run study.yaml), or say where it is kept: WORKBENCH_FILES=folder."
        )
    if (found := _hash(kept)) != key:
        raise FileError(
            f"the file {kept} was changed: its content has the SHA-256 {found[:12]}..., not that "
            "of its name. Delete it and give the study the path of the original once more."
        )
    return kept


def _hash(file: Path | bytes) -> str:
    if isinstance(file, bytes):
        return hashlib.sha256(file).hexdigest()
    digest = hashlib.sha256()
    try:
        with file.open("rb") as content:
            while block := content.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror or error}.") from None
    return digest.hexdigest()
