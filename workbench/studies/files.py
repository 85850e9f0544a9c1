"""Files that a study names by the hash of their content: stored once, beside the results.

A study holds the SHA-256 of a file, never a path, so it means the same tomorrow and on another
machine that has the file. A path is taken only from who runs a command or calls the library; what
comes by a URL, a form or an upload is a hash or the content itself. A folder, a pipeline of
diffusers say, is kept as one zip file of the weights and the JSON in it; an ONNX or TorchScript
file likewise, with the card of the same name beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
import zipfile
from pathlib import Path

from workbench.studies.plain import shown

HASH = re.compile(r"[0-9a-f]{64}")

#: What is kept of a folder.
PACKED = (".safetensors", ".json")

#: Networks that are kept together with their card, the JSON file of the same name.
CARDED = (".onnx", ".pt")


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
    """Store the content of a file, or of a folder, once; its SHA-256, under which :func:`place`
    finds it.

    Raises:
        FileError: a file that cannot be read or stored; a folder with nothing to keep; an ONNX file
            without a card.
    """
    if isinstance(file, Path) and (inside := _inside(file)):
        part = folder() / f".folder.{uuid.uuid4().hex[:8]}"
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _pack(inside, part)
            return keep(part)
        except OSError as error:
            raise FileError(f"{file} cannot be kept: {error.strerror or error}.") from None
        finally:
            part.unlink(missing_ok=True)
    key = _hash(file)
    kept = folder() / key
    if kept.is_file():
        return key
    part = kept.with_name(f".{key}.{uuid.uuid4().hex[:8]}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, bytes):
            part.write_bytes(file)
        else:
            shutil.copyfile(file, part)
        os.replace(part, kept)
    except OSError as error:
        raise FileError(f"{folder()} cannot be written: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)
    return key


def _inside(source: Path) -> dict[str, Path]:
    """What is kept of a folder, or of a file with a card, by its name in the zip file; of any other
    file nothing.
    """
    card = source.with_suffix(".json")
    if source.is_dir():
        kept = (one for one in source.rglob("*") if one.suffix in PACKED and one.is_file())
        if not (found := {one.relative_to(source).as_posix(): one for one in kept}):
            raise FileError(
                f"{source} holds no weights: of a folder {' and '.join(PACKED)} files are kept."
            )
        return found
    if source.suffix in CARDED and card.is_file():
        return {f"network{source.suffix}": source, "network.json": card}
    if source.suffix == ".onnx" and source.is_file():
        raise FileError(
            f"{source} does not say what it predicts; lay a card beside it, {card.name}, such as "
            '{"predicts": "noise", "process": "VP", "event_shape": [28, 28]}.'
        )
    return {}


def _pack(inside: dict[str, Path], part: Path) -> None:
    """Files as a zip file, the same bytes for the same content, whenever and wherever."""
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, one in sorted(inside.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            with one.open("rb") as content, archive.open(entry, "w", force_zip64=True) as packed:
                shutil.copyfileobj(content, packed)


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
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror or error}.") from None
