"""Serving the dashboards: the registered pages, and a front page that lists them."""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import os
import re
import secrets
import signal
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import panel as pn
from bokeh.server.auth_provider import AuthProvider
from panel.io.server import Server, get_server
from tornado.ioloop import IOLoop, PeriodicCallback

from workbench.registry import entries
from workbench.ui.apps import APPS, IMPORTING, ServeError, import_apps
from workbench.ui.door import MOST_MESSAGE, Alive, Door, is_loopback, keep_routes, known_names
from workbench.ui.home import home_page
from workbench.ui.shell import use_pages
from workbench.workers.pool import PREPARE, Pool

if TYPE_CHECKING:
    from workbench.studies import Study
    from workbench.ui.broker import Limits

#: How long the server may take to end [s].
GRACE = 3.0

#: Milliseconds between two times that it returns memory.
RETURN_EVERY = 15_000

#: Options of glibc's malloc: M_MMAP_THRESHOLD [bytes] and M_ARENA_MAX.
MALLOC = {-3: 131_072, -8: 2}

#: The page that a study is opened on.
PAGE = "trajectories"

#: Pages that stand first and last in the bar; the others are between them, by name.
FIRST, LAST = (PAGE, "samplers"), "studies"


@dataclass(frozen=True)
class App:
    """One dashboard: its place in the address, its title, and what makes a session of it."""

    slug: str
    title: str
    description: str
    page: Callable[[], object]


def apps() -> list[App]:
    """Every registered page, by its name; that of a file is imported when it is first made.

    Raises:
        ServeError: a page whose name is no part of an address, or without a docstring.
        PluginError: a plugin that cannot be used.
    """
    found = []
    for name, one in entries("page").items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise ServeError(
                f"the page {name!r} of {one.origin} cannot stand in an address; name it in small "
                "letters, digits and hyphens: @wb.register(kind='page', name=...)."
            )
        if not one.summary:
            raise ServeError(
                f"the page {name!r} of {one.origin} does not say what it is for; "
                "give its function a docstring."
            )
        title = one.facts.get("title", name.replace("_", " ").capitalize())
        found.append(App(name, title, one.summary, one.target))
    return found


@contextmanager
def worked_by(pool: Pool | None, limits: Limits | None) -> Iterator[None]:
    """Have the pages' work done by ``pool``, None: of two processes, and end it; afterwards this
    process has its work done as before."""
    from workbench.ui.broker import Broker, use

    if pool is None:
        pool = Pool(2, PREPARE)
        pool.start()
    broker = Broker(pool.ready, pool, limits or usual_limits())
    before = use(broker)
    try:
        yield
    finally:
        use(before)
        broker.close()


def _prepare() -> None:
    """Import what the pages need, so that the first one asked for comes as fast as the others."""
    for one in entries("page").values():
        if "file" in one.facts:
            with suppress(Exception), IMPORTING:  # said to whoever asks for the page
                import_apps()
                importlib.import_module(f"{APPS}.{one.name}")
    # What is imported stays: Panel collects garbage whenever a session has ended, and the thread of
    # the pages would look through all of it for most of a second.
    gc.collect()
    gc.freeze()


def serve(
    address: str = "localhost",
    port: int = 5006,
    show: bool = False,
    origins: Sequence[str] = (),
    study: Study | None = None,
    results: Path | None = None,
    login: AuthProvider | None = None,
    insecure_open: bool = False,
    pool: Pool | None = None,
    limits: Limits | None = None,
    networks: Path | None = None,
) -> None:
    """Serve all apps until interrupted.

    What pages have computed is computed by worker processes, which end with the server.

    Args:
        address, port: where to listen.
        show: whether to open a browser.
        origins: further names, as ``host`` or ``host:port``, that the pages are opened under; only
            requests for a known name are answered. This machine's own names are known.
        study: a study to open its page on; the list of pages if there is none.
        results: the folder that the page of stored studies lists; else that of
            :func:`workbench.studies.library.default_folder`.
        login: who may come in; see :mod:`workbench.ui.login`.
        insecure_open: let everybody in who reaches a server that others can reach.
        pool: of the processes that compute, beside those of requests that take long; None: of two.
        limits: of what requests may take; None: :func:`usual_limits`.
        networks: the folder whose checkpoints may be opened on the page of networks; None: none.

    Raises:
        ServeError: a port that is taken or not allowed, an address that is not this machine's, or
            one that others can reach, without a login; a page that cannot be served. No process
            is started then.
    """
    os.environ.pop("WORKBENCH_TORCHSCRIPT", None)  # no page opens a program
    _check_free(address, port)
    _check_login(address, origins, login, insecure_open)
    _keep_little()
    found = apps()
    order = sorted(found, key=lambda app: ((*FIRST, app.slug).index(app.slug), app.slug == LAST))
    use_pages(order)
    place = f"http://{address}:{port}/" + (f"{PAGE}?{study.to_query()}" if study else "")
    pn.state.cache.update(results=results, networks=networks)
    with worked_by(pool, limits):
        server = _server(address, port, known_names(address, port, origins), found, login)
        print(f"Diffusion Workbench at {place}  (Ctrl-C stops it)", flush=True)
        if show:  # once the server's loop is running, so that the browser finds it listening
            IOLoop.current().add_callback(webbrowser.open, place)
        server.start()
        threading.Thread(target=_prepare, daemon=True, name="imports").start()
        PeriodicCallback(_return_memory, RETURN_EVERY).start()
        _end_by_signal(server.io_loop)
        server.io_loop.start()


def _keep_little() -> None:
    """Have the C library (glibc) take what is large from the system and hand it back when it is
    freed, and keep few heaps: the pictures of pages that have gone leave no holes in them."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in MALLOC.items():
            library.mallopt(option, value)


def _return_memory() -> None:
    """Have the C library hand back what it keeps of freed memory: that of pages that have gone."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def usual_limits(
    session: int | None = None, server: int | None = None, seconds: float | None = None
) -> Limits:
    """Limits of requests where nothing else is said: half of the machine's memory for all, of
    which one session may have half, and ten minutes.

    Args:
        session, server: bytes of memory.
        seconds: that a request may run.
    """
    from workbench.ui.broker import Limits

    if server is None:
        server = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return Limits(min(server, session or server // 2), server, seconds or 600.0)


def _server(address: str, port: int, names: frozenset[str], found: list[App], login) -> Server:
    """The server of the pages, behind its door."""
    options = {"auth_provider": login} if login is not None else {}
    server = get_server(
        {"/": lambda: home_page(found), **{app.slug: app.page for app in found}},
        title={"/": "Diffusion Workbench", **{app.slug: app.title for app in found}},
        address=address,
        port=port,
        websocket_origin=sorted(name for name in names if "[" not in name),
        index=None,
        location=False,  # see workbench.ui.session.query
        extra_patterns=[(r"/liveness", Alive)],
        # Sessions are named by this process alone, and a page holds nothing of its request but
        # the address: not the cookie of the login.
        secret_key=secrets.token_bytes(32),
        sign_sessions=True,
        include_headers=[],
        include_cookies=[],
        cookie_secret=secrets.token_urlsafe(32),
        xsrf_cookies=True,
        xsrf_cookie_kwargs={"httponly": True, "samesite": "Lax"},
        websocket_max_message_size=MOST_MESSAGE,
        http_server_kwargs={
            "max_body_size": 65_536,  # files come through a page's connection
            "body_timeout": 20,
            "idle_connection_timeout": 120,
        },
        **options,
    )
    others = [Alive, *(handler for _, handler, *_ in login.endpoints)] if login else [Alive]
    keep_routes(server._tornado, others)
    server._http.request_callback = Door(server._tornado, names)
    return server


def _check_login(address: str, origins: Sequence[str], login, insecure_open: bool) -> None:
    """Refuse to be open to whoever reaches this machine, unless told so."""
    if login is not None or insecure_open:
        return
    for option, name in (("--address", address), *(("--origin", name) for name in origins)):
        host = name if option == "--address" else name.rpartition(":")[0] or name
        if not is_loopback(host):
            raise ServeError(
                f"{option} {name[:80]} lets others reach the pages, and they could start runs and "
                "delete results: say who may come in (--password-file users.txt, which workbench "
                "password NAME --file users.txt writes; or --oauth-provider), or --insecure-open "
                "if everybody may, or if a proxy asks them."
            )


def _end_by_signal(loop: IOLoop) -> None:
    """Ctrl-C, and a polite kill, end the server at once, whatever a worker does."""

    ends = {signal.SIGINT, signal.SIGTERM}
    told, tells = socket.socketpair()
    tells.setblocking(False)

    def watch() -> None:
        # Woken by the signal itself, even if the thread of the pages does not come to handle it.
        while told.recv(1)[0] not in ends:
            pass
        time.sleep(GRACE)
        os._exit(0)

    for one in ends:
        signal.signal(one, lambda *_: loop.add_callback_from_signal(loop.stop))
    signal.set_wakeup_fd(tells.detach(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True, name="end").start()


def _check_free(address: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ServeError(f"--port was {port}; it must be from 1 to 65535.")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServeError(
                f"port {port} on {address} is in use; stop what uses it or choose another, "
                f"e.g. --port {port + 1}."
            ) from None
        raise ServeError(f"cannot listen on {address}:{port}: {error.strerror or error}.") from None
