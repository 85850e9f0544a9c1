"""Worker processes of a server: started beforehand, watched, cancelled, killed and replaced.

See :mod:`workbench.workers.worker` for the other end.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from workbench.workers.memory import ALLOCATOR

#: Seconds that a worker has to start, and a nursery to be ready.
PATIENCE = 120.0

#: Seconds that a worker has to heed a cancel before it is killed.
POLITE = 0.5

#: Bytes of memory beyond which an idle worker is replaced by a fresh one.
FAT = 512 * 2**20

#: Whether workers are forked from a nursery.
FORKS = sys.platform == "linux"

#: Workers compute on one thread each and keep what they free, a nursery must not wake a graphics
#: card, and figures that are drawn in several processes must not share their names.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ENVIRONMENT |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "BOKEH_SIMPLE_IDS": "no"}
ENVIRONMENT |= ALLOCATOR

#: What a worker of the pages has imported before it has work: what the first picture needs, then
#: the rest.
PREPARE = (
    "workbench.ui.tasks:warm",
    "workbench.ui.tasks:drawing",
    "torch._dynamo",  # the first derivative of a network asks for it, whatever it is for
)

MODULE = "workbench.workers.worker"


class Died(RuntimeError):
    """A worker that ended amid a task; the text says how."""


class Process:
    """One worker process, and the server's end of its socket."""

    def __init__(self, pool: Pool, pid: int, link: Connection, whole: bool = True) -> None:
        self.pid, self._pool, self._link = pid, pool, link
        self._task, self._lock = 0, threading.Lock()
        self.lean, self.whole = resident(pid), whole

    def do(self, content: bytes, memory: int | None) -> None:
        """Begin a pickled task that may take so many bytes."""
        self._task += 1
        self._say("do", content, memory)

    def cancel(self) -> None:
        """Ask it to end the task under way."""
        self._say("cancel")

    def grant(self, free: int | None) -> None:
        """Answer a claim of memory: None grants it, else so much may be had."""
        self._say("granted", free)

    def _say(self, what: str, *more: object) -> None:
        with self._lock, contextlib.suppress(OSError):  # one that is dead is noticed by its reader
            self._link.send((what, self._task, *more))

    def hear(self, timeout: float) -> tuple | None:
        """What the worker says of its task: ("progress", stage, fraction), ("claim", bytes),
        ("done", result), ("failed", error), ("cancelled",); None if it says nothing in time.

        Raises:
            Died: it has ended.
        """
        try:
            if not self._link.poll(timeout):
                return None
            what, task, *rest = pickle.loads(self._link.recv_bytes())
        except (EOFError, OSError):
            raise Died(self._pool.end_of(self.pid)) from None
        return (what, *rest) if task == self._task else self.hear(0)

    def kill(self) -> None:
        self._pool.kill(self.pid)
        self._link.close()

    def close(self) -> None:
        """Have an idle worker end by itself."""
        self._link.close()

    @property
    def seconds(self) -> float | None:
        """Processor time that it has taken in all [s]; None if it cannot be told."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):
            return None

    @property
    def grown(self) -> int:
        """Bytes of memory that it has taken since it was started."""
        return resident(self.pid) - self.lean


def resident(pid: int) -> int:
    """Bytes of memory of a process; 0 if it cannot be told."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        pass
    try:
        import psutil

        return psutil.Process(pid).memory_info().rss
    except Exception:
        return 0


class Pool:
    """Worker processes.

    Args:
        ready: how many wait for work; more are started when they are asked for.
        prepare: modules that are imported before there is work, and functions that are called, as
            ``module:name``. Where workers are forked they have the first of these from the
            beginning; they are replaced while they are idle when the others are there.
    """

    def __init__(self, ready: int = 2, prepare: Sequence[str] = ()) -> None:
        self.ready, self._prepare = ready, tuple(prepare)
        self._idle: list[Process] = []
        self._lock, self._closed = threading.Lock(), False
        self._nursery: _Nursery | None = None
        self._popen: dict[int, subprocess.Popen] = {}

    def start(self) -> None:
        """Start the first workers, in the background."""
        if FORKS:
            self._tended()
        threading.Thread(target=self._fill, daemon=True, name="workers").start()

    def __enter__(self) -> Pool:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def whole(self) -> bool:
        """Whether a worker that is started now has all that it should prepare."""
        return not FORKS or (self._nursery is not None and self._nursery.whole)

    def _fit(self, worker: Process) -> bool:
        return worker.whole or not self.whole

    def _renew(self) -> None:
        """Replace the idle workers that were forked before the nursery was whole."""
        with self._lock:
            early = [one for one in self._idle if not self._fit(one)]
            self._idle = [one for one in self._idle if self._fit(one)]
        for one in early:
            one.close()
        self._fill()

    def _fill(self) -> None:
        with contextlib.suppress(Died):
            while len(self._idle) < self.ready and not self._closed:
                self.give_back(self._born())

    def take(self) -> Process:
        """An idle worker, or a new one.

        Raises:
            Died: none can be started.
        """
        while True:
            with self._lock:
                found = self._idle.pop() if self._idle else None
            if found is None:
                return self._born()
            if not self._fit(found):
                found.close()
                continue
            with contextlib.suppress(Died):
                if found.hear(0) is None:
                    return found

    def give_back(self, worker: Process) -> None:
        """A worker that is idle now."""
        with self._lock:
            room = not self._closed and len(self._idle) < self.ready
            if room and worker.grown < FAT and self._fit(worker):
                self._idle.append(worker)
                return
        worker.close()

    def close(self) -> None:
        """Kill every worker."""
        self._closed = True
        with self._lock:
            idle, self._idle = self._idle, []
            nursery, self._nursery = self._nursery, None
        for worker in idle:
            worker.close()
        if nursery is not None:
            nursery.close()
        for one in self._popen.values():
            one.kill()

    def kill(self, pid: int) -> None:
        if pid in self._popen:
            self._popen[pid].kill()
        elif self._nursery is not None:
            self._nursery.say(f"kill {pid}".encode())

    def end_of(self, pid: int) -> str:
        """How a worker ended, in a sentence."""
        status = None
        if pid in self._popen:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._popen[pid].wait(2)
            self._popen.pop(pid, None)
        elif self._nursery is not None:
            status = self._nursery.status(pid)
        if status is None:
            how = "ended"
        elif status >= 0:
            how = f"ended itself with status {status}"
        else:
            names = {int(one): one.name for one in signal.Signals}
            how = f"was ended by {names.get(-status, f'signal {-status}')}"
            if -status == signal.SIGKILL:
                how += " (the machine's memory may have run out)"
        return f"The process that computed this {how}. Others are not touched by it."

    def _born(self) -> Process:
        mine, other = socket.socketpair()
        with mine:
            with other:
                pid, whole = self._tended().born(other) if FORKS else (self._started(other), True)
            link = Connection(mine.detach())
        try:
            if not link.poll(PATIENCE):
                raise Died("a worker process did not start; look at what the server has printed.")
            link.recv()
        except (EOFError, OSError):
            link.close()
            raise Died(self.end_of(pid)) from None
        except Died:
            link.close()
            raise
        return Process(self, pid, link, whole)

    def _started(self, other: socket.socket) -> int:
        made = _begun("work", other, self._prepare)
        self._popen[made.pid] = made
        return made.pid

    def _tended(self) -> _Nursery:
        with self._lock:
            if self._closed:
                raise Died("The server is ending.")
            if self._nursery is None or self._nursery.gone:
                self._nursery = _Nursery(self._prepare, self._renew)
            return self._nursery


def _begun(what: str, other: socket.socket, prepare: Sequence[str], **options) -> subprocess.Popen:
    """A process of :data:`MODULE` that has the socket ``other``."""
    number = other.fileno()
    command = [sys.executable, "-m", MODULE, what, str(os.getpid()), str(number), *prepare]
    return subprocess.Popen(command, pass_fds=[number], env=os.environ | ENVIRONMENT, **options)


class _Nursery:
    """The process that workers are forked from, and what is done when it is whole."""

    def __init__(self, prepare: Sequence[str], renew: Callable[[], None]) -> None:
        self.whole, self._renew = len(prepare) < 2, renew
        self._orders, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._one = threading.Lock()  # one birth at a time
        self._news = threading.Condition()
        self._born: list[tuple[int, bool]] = []
        self._ended: dict[int, int] = {}
        self.gone = self._closed = False
        self._process: subprocess.Popen | None = None
        # Its parent is the thread that starts it, and it ends with that.
        whole = (other, tuple(prepare))
        threading.Thread(target=self._tend, args=whole, daemon=True, name="nursery").start()

    def born(self, other: socket.socket) -> tuple[int, bool]:
        """The number of a new worker that has the socket ``other``, and whether it is whole."""
        with self._one, self._news:
            try:
                socket.send_fds(self._orders, [b"born"], [other.fileno()])
            except OSError:
                self.gone = True
            self._news.wait_for(lambda: self._born or self.gone, PATIENCE)
            if not self._born:
                raise Died("no worker process can be started; see what the server has printed.")
            return self._born.pop()

    def say(self, message: bytes) -> None:
        with contextlib.suppress(OSError):
            self._orders.send(message)

    def status(self, pid: int) -> int | None:
        """How a worker ended: its status, or minus a signal; None if that is not known."""
        with self._news:
            self._news.wait_for(lambda: pid in self._ended or self.gone, 2.0)
            return self._ended.pop(pid, None)

    def close(self) -> None:
        """End it and all workers, even while it imports what they need."""
        self._closed = True
        if self._process is not None:
            self._process.kill()

    def _tend(self, other: socket.socket, prepare: Sequence[str]) -> None:
        with other:
            process = _begun("nurse", other, prepare, stdin=subprocess.DEVNULL)
        self._process = process
        if self._closed:
            process.kill()
        while message := self._heard():
            word, *numbers = message.decode().split()
            if word == "whole":
                self.whole = True
                threading.Thread(target=self._renew, daemon=True, name="workers").start()
                continue
            with self._news:
                if word == "born":
                    self._born.append((int(numbers[0]), self.whole))
                elif word == "gone":
                    self._ended[int(numbers[0])] = int(numbers[1])
                    while len(self._ended) > 1000:
                        self._ended.pop(next(iter(self._ended)))
                self._news.notify_all()
        process.wait()
        self._orders.close()
        with self._news:
            self.gone = True
            self._news.notify_all()

    def _heard(self) -> bytes:
        try:
            return self._orders.recv(64)
        except OSError:
            return b""
