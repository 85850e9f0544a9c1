"""What every page has: its session with a browser, its address, and small parts of its looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.custom import AnyWidgetComponent

__all__ = ["Address", "Session", "chips", "download"]


class Session:
    """The browser that looks at a page: how work done elsewhere reaches it."""

    def __init__(self) -> None:
        self._document, self._ready = pn.state.curdoc, False
        self._waiting: list[Callable[[], None]] = []

    def open(self, on_leave: Callable[[], None]) -> None:
        """The page is made; ``on_leave`` is called when the browser has gone."""
        pn.state.onload(self._on_load)
        pn.state.on_session_destroyed(lambda _: on_leave())

    def deliver(self, call: Callable[[], None]) -> None:
        """Have ``call`` run under the document's lock, once the browser is ready for it.

        What changes while a page is loading may never reach it.
        """

        def when_ready() -> None:
            if self._ready:
                call()
            else:
                self._waiting.append(call)

        if self._document is None:
            call()
        elif self._document.session_context is not None:
            self._document.add_next_tick_callback(when_ready)

    def _on_load(self) -> None:
        self._ready = True
        while self._waiting:
            self._waiting.pop(0)()


class Address(AnyWidgetComponent):
    """The query of the page's URL, both ways: Panel's own location does not follow Back."""

    search = param.String("")

    _esm = """
    export default { render({ model }) {
      let replace = true;                // the address one came by is completed, not kept
      const write = () => {
        const search = model.get("search");
        if (!search || search === location.search) return;
        history[replace ? "replaceState" : "pushState"]({}, "", location.pathname + search);
        replace = false;
      };
      const read = () => { model.set("search", location.search); model.save_changes(); };
      model.on("change:search", write);
      window.addEventListener("popstate", read);
      write();
      replace = false;
      return () => window.removeEventListener("popstate", read);
    } }
    """


def download(label: str, icon: str, filename: str, make: Callable[[], Any]) -> pmui.FileDownload:
    """A button that hands over a file made when it is asked for."""
    button = pmui.FileDownload(
        callback=make, filename=filename, label=label, icon=icon, size="small"
    )
    button.variant = "text"
    return button


def chips(texts: list[str]) -> str:
    """Short texts, each in a frame of its own, as HTML."""
    style = (
        "display:inline-block;margin:2px 8px 2px 0;padding:2px 10px;border-radius:12px;"
        "border:1px solid color-mix(in srgb, currentColor 25%, transparent);font-size:13px;"
        "font-variant-numeric:tabular-nums;white-space:nowrap"
    )
    return "".join(f'<span style="{style}">{text}</span>' for text in texts)
