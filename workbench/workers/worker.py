"""The process that computes for a server: it takes tasks from a socket and answers on it.

A task is a picklable function of ``report(stage, fraction)``. On Linux workers are forked from a
*nursery*, a process of one thread that has imported what they need, so that one that was killed is
replaced within milliseconds. Elsewhere each worker is started on its own.

A worker ends with its parent, whatever it is doing: the kernel kills it, or its reading thread
finds the socket closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import queue
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing.connection import Connection

from workbench.workers.memory import bounded, give_back

#: Seconds before the first report of progress, and between two.
REPORT_EVERY = 0.3

#: Seconds without an order after which a nursery goes on to prepare itself.
ASKED_WITHIN = 0.2


class Cancelled(BaseException):
    """Raised inside a task that is not wanted any more; no ``except Exception`` stops it."""


#: How the task under way asks for memory; None outside of a worker.
_asked: Callable[[int], int | None] | None = None


def ask(need: int) -> int | None:
    """Ask the server for the bytes that the task under way needs: None if it may take them, as
    everywhere outside of a worker; else how many it may take."""
    return None if _asked is None else _asked(need)


# ---- one worker ----------------------------------------------------------------------------------


class _Worker:
    """The worker's end of its socket."""

    def __init__(self, link: Connection) -> None:
        self.link = link
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.answers: queue.SimpleQueue = queue.SimpleQueue()
        self.task, self.stop = 0, threading.Event()

    def read(self) -> None:
        """Take what the server says, while the main thread computes."""
        try:
            while True:
                what, number, *rest = self.link.recv()
                if what == "cancel":
                    if number == self.task:
                        self.stop.set()
                elif what == "granted":
                    self.answers.put(rest[0])
                else:
                    self.inbox.put((number, *rest))
        except (EOFError, OSError):
            os._exit(0)

    def serve(self) -> None:
        threading.Thread(target=self.read, daemon=True, name="read").start()
        self.link.send(("ready", os.getpid()))
        while True:
            self.task, content, memory = self.inbox.get()
            self.stop.clear()
            answer = self.answer(content, memory)
            self.link.send_bytes(answer)
            del content, answer
            gc.collect()
            give_back()

    def answer(self, content: bytes, memory: int | None) -> bytes:
        """What a task leaves, or why it failed, pickled."""
        global _asked
        _asked = self.ask
        with bounded(memory):
            try:
                work = pickle.loads(content)
                return pickle.dumps(("done", self.task, work(self.reporter())), protocol=5)
            except Cancelled:
                return pickle.dumps(("cancelled", self.task))
            except SystemExit as error:
                said = f"it ended with {error!r}; what a run calls must not end the process."
                failure = RuntimeError(said)
            except (MemoryError, RuntimeError) as error:
                failure = _out_of_memory(error, memory)
            except Exception as error:
                failure = error
            except BaseException as error:
                failure = RuntimeError(f"it ended with {error!r}.")
        return pickle.dumps(("failed", self.task, sent(failure)))

    def reporter(self) -> Callable[[str, float], None]:
        reported, number = time.monotonic(), self.task

        def report(stage: str, fraction: float) -> None:
            nonlocal reported
            if self.stop.is_set():
                raise Cancelled
            if time.monotonic() - reported >= REPORT_EVERY:
                reported = time.monotonic()
                self.link.send(("progress", number, stage, float(fraction)))

        return report

    def ask(self, need: int) -> int | None:
        """None if ``need`` bytes may be taken, else the bytes that may."""
        self.link.send(("claim", self.task, int(need)))
        return self.answers.get()


def sent(error: Exception) -> Exception:
    """An error as it can be sent: itself, or one of its kind with its sentence."""
    with contextlib.suppress(Exception):
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    for kind in (NotImplementedError, TypeError, ValueError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


def _out_of_memory(error: Exception, memory: int | None) -> Exception:
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        given = f"the {memory / 1e6:.0f} MB that this server gives" if memory else "there is"
        return ValueError(
            f"The run needed more memory than {given}; take fewer samples, steps or recorded "
            "fields, or run it by itself: workbench run study.yaml."
        )
    return error


def _with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)


def _work(link: socket.socket, prepare: Sequence[str] = ()) -> None:
    """Serve until the server hangs up."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("900")  # where memory runs out, a worker goes first and the server stays
    import torch

    from workbench.registry import plugins

    torch.set_num_threads(1)  # small tensors lose by more
    torch.set_grad_enabled(False)
    plugins()
    gc.freeze()
    _Worker(Connection(link.detach())).serve()


# ---- the nursery ---------------------------------------------------------------------------------


def _nurse(orders: socket.socket, prepare: Sequence[str] = ()) -> None:
    """Fork a worker for each socket that comes, and tell of each that has ended.

    Args:
        prepare: modules that are imported and functions that are called, as ``module:name``: the
            first before any worker is forked, each of the others as soon as no worker is asked for.
            What comes of it only workers have that are forked later; so ``whole`` is told at last.
    """
    first, *later = prepare or [""]
    _prepare(first)
    told, tells = socket.socketpair()
    told.setblocking(False)
    tells.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    waiting = selectors.DefaultSelector()
    waiting.register(orders, selectors.EVENT_READ)
    waiting.register(told, selectors.EVENT_READ)
    children: set[int] = set()
    while True:
        ready = {key.fileobj for key, _ in waiting.select(ASKED_WITHIN if later else None)}
        if later and not ready:
            _prepare(later.pop(0))
            if not later:
                _say(orders, "whole")
        if told in ready:
            with contextlib.suppress(BlockingIOError):
                while told.recv(4096):
                    pass
            _bury(children, orders)
        if orders not in ready:
            continue
        message, handed, *_ = socket.recv_fds(orders, 64, 1)
        if not message:  # the server is gone
            for child in children:
                os.kill(child, signal.SIGKILL)
            os._exit(0)
        word, _, number = message.decode().partition(" ")
        if word == "kill":
            if int(number) in children:
                os.kill(int(number), signal.SIGKILL)
            continue
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            _with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            waiting.close()
            for one in (orders, told, tells):
                one.close()
            _work(socket.socket(fileno=handed[0]))
            os._exit(0)
        os.close(handed[0])
        children.add(child)
        _say(orders, f"born {child}")


def _prepare(name: str) -> None:
    gc.disable()  # what is imported stays: looking through it for garbage takes a fifth of the time
    module, _, function = name.partition(":")
    found = import_module(module) if module else None
    if function:
        getattr(found, function)()
    gc.freeze()
    gc.enable()


def _bury(children: set[int], orders: socket.socket) -> None:
    while children:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        children.discard(child)
        _say(orders, f"gone {child} {os.waitstatus_to_exitcode(status)}")


def _say(orders: socket.socket, message: str) -> None:
    with contextlib.suppress(OSError):  # that the server is gone is noticed by reading
        orders.send(message.encode())


def main(arguments: list[str]) -> None:
    """``nurse PARENT FD ...`` or ``work PARENT FD ...``: the process that starts this one, the
    inherited socket, and what is imported and called first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; the server decides
    what, parent, number, *prepare = arguments
    if what == "nurse":
        _with_parent(int(parent))
    link = socket.socket(fileno=int(number))
    {"nurse": _nurse, "work": _work}[what](link, prepare)


if __name__ == "__main__":
    from workbench.workers import worker  # what tasks import, and not a second one of the name

    worker.main(sys.argv[1:])
