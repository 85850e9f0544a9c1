"""Eigenvalues that a reader brings along: read safely from a file, which is kept by its content.

A file is text (numbers apart by commas, spaces or lines) or a NumPy array; nothing is unpickled.
"""

from __future__ import annotations

import io
import re

import numpy as np
import torch
from torch import Tensor

from workbench.params import one_line
from workbench.studies import files
from workbench.studies.sections import StudyError

#: Most bytes of a file, and most eigenvalues in it.
BYTES, COUNT = 1_000_000, 16_384


def parse(content: bytes, name: str = "") -> Tensor:
    """The eigenvalues (d,) float64 in a file, largest first.

    Args:
        content: of the file, a ``.npy`` array or text.
        name: of the file, for what is said of it.

    Raises:
        StudyError: a file too large, of another kind, or numbers that are no variances.
    """
    title = repr(name[:80]) if name else "the file"
    if len(content) > BYTES:
        _refuse(f"{title} has {len(content)} bytes; it may have at most {BYTES}.")
    values = _array(content, title) if content[:6] == b"\x93NUMPY" else _text(content, title)
    if not 1 <= len(values) <= COUNT:
        _refuse(f"{title} holds {len(values)} numbers; it must hold 1 to {COUNT} eigenvalues.")
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        _refuse(
            f"{title} holds {values[bad[0]]:g} in place {bad[0] + 1}; eigenvalues of a covariance "
            "are finite and at least 0."
        )
    if values.max() == 0 or values.max() > 1e12:
        _refuse(
            f"the largest eigenvalue in {title} is {values.max():g}; it must be above 0 and at "
            "most 1e12."
        )
    return torch.from_numpy(np.sort(values)[::-1].copy())


def keep(content: bytes, name: str = "") -> str:
    """Read a file and store it; the hash under which :func:`known` has its eigenvalues."""
    parse(content, name)
    return files.keep(content)


def known(key: str) -> tuple[Tensor, str]:
    """The eigenvalues of a stored file, and what to call them.

    Raises:
        StudyError: none were uploaded, or their file is not here.
    """
    if not key:
        _refuse("no eigenvalues are here yet; upload a file of them (.npy, .csv or .txt).")
    try:
        values = parse(files.place(key).read_bytes())
    except files.FileError as error:
        _refuse(f"the eigenvalues are not here: {error}")
    return values, f"{len(values)} modes of the file {key[:8]}"


def _refuse(sentence: str) -> None:
    raise StudyError({"file": sentence})


def _array(content: bytes, title: str) -> np.ndarray:
    """A ``.npy`` file; its header is checked before any memory is taken."""
    stream = io.BytesIO(content)
    try:
        npy, version = np.lib.format, np.lib.format.read_magic(stream)
        headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in headers:
            raise ValueError(f"version {version} of the format is not known")
        shape, _, dtype = headers[version](stream)
        if dtype.kind not in "fiu":
            raise ValueError(f"it holds {dtype}, not real numbers")
        if sum(size != 1 for size in shape) > 1:
            raise ValueError(f"it has the shape {shape}, not that of one list")
        if int(np.prod(shape, dtype=object)) * dtype.itemsize != len(content) - stream.tell():
            raise ValueError("its length is not what its header says")
        return np.frombuffer(content, dtype, offset=stream.tell()).astype(np.float64)
    except Exception as error:  # NumPy reads a header as Python, and fails in all its ways
        reason = one_line(" ".join(str(error).split()), 120)
        _refuse(f"{title} cannot be read as a NumPy array of numbers: {reason}.")


def _text(content: bytes, title: str) -> np.ndarray:
    """Numbers apart by commas, semicolons, spaces or lines; a first line of words is a heading."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        _refuse(f"{title} is neither text nor a NumPy array (.npy).")
    rows = [re.split(r"[\s,;]+", line.strip(" \t,;")) for line in lines if line.strip(" \t,;")]
    if rows and not any(_is_number(part) for part in rows[0]):
        rows = rows[1:]
    if len(rows) > 1 and max(map(len, rows)) > 1:
        _refuse(f"{title} has several columns; leave the one of the eigenvalues, or one line.")
    parts = [part for row in rows for part in row]
    for place, part in enumerate(parts, 1):
        if not _is_number(part):
            _refuse(f"{title} holds {part[:40]!r} in place {place}; it must hold numbers.")
    return np.array([float(part) for part in parts])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
