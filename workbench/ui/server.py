"""Serving the dashboards: one page per file in ``apps/``, and a front page that lists them."""

from __future__ import annotations

import errno
import importlib.util
import socket
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import panel as pn
import panel_material_ui as pmui
from panel.io.server import get_server
from tornado.ioloop import IOLoop

from workbench.studies import Study
from workbench.studies.library import Library, default_folder
from workbench.ui.door import Alive, Door, keep_routes, known_names

__all__ = ["App", "ServeError", "apps", "apps_folder", "serve"]

PACKAGE = Path(__file__).parent.parent

#: The page that a study is opened on.
PAGE = "trajectories"


class ServeError(RuntimeError):
    """The dashboards cannot be served; the text says why and what to do."""


@dataclass(frozen=True)
class App:
    """One dashboard: its place in the address, its title, and what makes a session of it."""

    slug: str
    title: str
    description: str
    page: Callable[[], object]


def apps_folder() -> Path:
    """Where the apps are: inside an installed package, or beside it in a checkout."""
    for folder in (PACKAGE / "apps", PACKAGE.parent / "apps"):
        if folder.is_dir():
            return folder
    raise ServeError(f"no apps folder was found in or beside {PACKAGE}; reinstall the package.")


def apps() -> list[App]:
    """Every app, by the names of their files."""
    found = []
    for file in sorted(apps_folder().glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(f"workbench_apps.{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(App(file.stem, module.TITLE, module.DESCRIPTION, module.page))
    return found


def front_page(found: list[App]) -> pmui.Page:
    """The list of the dashboards."""
    cards = [
        pmui.Paper(
            pn.Column(
                pn.pane.HTML(
                    f'<a href="./{app.slug}" style="font:600 1.25em sans-serif;color:inherit">'
                    f"{app.title}</a><p>{app.description}</p>"
                ),
                margin=(4, 18),
            ),
            sizing_mode="stretch_width",
            margin=10,
        )
        for app in found
    ]
    return pmui.Page(
        title="Diffusion Workbench",
        main=[pn.Column(*cards, sizing_mode="stretch_width", max_width=820)],
    )


def serve(
    address: str = "localhost",
    port: int = 5006,
    show: bool = False,
    origins: Sequence[str] = (),
    study: Study | None = None,
    results: Path | None = None,
) -> None:
    """Serve all apps until interrupted.

    Args:
        address, port: where to listen.
        show: whether to open a browser.
        origins: further names, as ``host`` or ``host:port``, that the pages are opened under; only
            pages opened under a known name may connect. This machine's own names are known.
        study: a study to open its page on; the list of pages if there is none.
        results: the folder that the page of stored studies lists; else that of
            :func:`workbench.studies.library.default_folder`.

    Raises:
        ServeError: a port that is taken or not allowed, or an address that is not this machine's.
    """
    _check_free(address, port)
    pn.state.cache["library"] = Library(results or default_folder())
    found = apps()
    place = f"http://{address}:{port}/" + (f"{PAGE}?{study.to_query()}" if study else "")
    names = known_names(address, port, origins)
    server = get_server(
        {"/": lambda: front_page(found), **{app.slug: app.page for app in found}},
        title={"/": "Diffusion Workbench", **{app.slug: app.title for app in found}},
        address=address,
        port=port,
        websocket_origin=sorted(name for name in names if "[" not in name),
        index=None,
        extra_patterns=[(r"/liveness", Alive)],
    )
    keep_routes(server._tornado, [Alive])
    server._http.request_callback = Door(server._tornado, names)
    print(f"Diffusion Workbench at {place}  (Ctrl-C stops it)", flush=True)
    if show:  # once the server's loop is running, so that the browser finds it listening
        IOLoop.current().add_callback(webbrowser.open, place)
    server.start()
    server.io_loop.start()


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
