"""What a process may take of the machine's memory, and what it keeps of what it has freed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Iterator

#: Bytes that the memory of a task may exceed its limit by: allocators take it in pieces.
MARGIN = 64 * 2**20

#: Free memory that glibc keeps at the end of its heap, and the size from which a piece is mapped by
#: itself [bytes]. By itself it gives back what every few operations free, and the kernel clears it
#: anew for the next. As the environment says it to a process that is started.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(64 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}

#: The numbers of both in <malloc.h>.
_NUMBERS = (-1, -3)


def keep_freed() -> None:
    """Have this process, and those that it starts, keep what they free: as :data:`ALLOCATOR` says,
    where the environment says nothing; without glibc as it was."""
    for (name, size), number in zip(ALLOCATOR.items(), _NUMBERS, strict=True):
        if name not in os.environ:
            os.environ[name] = size
            _glibc("mallopt", number, int(size))


def give_back() -> None:
    """Give back all memory that this process has freed."""
    _glibc("malloc_trim", 0)


def _glibc(name: str, *given: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            getattr(ctypes.CDLL(None), name)(*given)


@contextlib.contextmanager
def bounded(memory: int | None) -> Iterator[None]:
    """Within, the process gets no more than so many bytes beside those it has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    taken = _data_bytes()
    if memory is not None and taken is not None:
        soft = taken + memory + MARGIN
        soft = soft if before[1] == resource.RLIM_INFINITY else min(soft, before[1])
        resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int | None:
    """What the kernel counts against RLIMIT_DATA; None where it cannot be told, or a graphics card
    takes addresses of its own."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return None
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmData:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
