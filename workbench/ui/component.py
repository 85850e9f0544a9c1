"""Parts of a page that are written in JavaScript: a change of one is one small message.

Panel dresses a component in the design's style sheets anew, walks its model for references and
sends a message of its own whenever a parameter changes, which takes a server of many readers most
of its time. Here a parameter is set on the component's model as it is, and what a callback changes
goes to the browser together.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import Any

from bokeh.document import Document
from panel.custom import AnyWidgetComponent, ReactiveESM
from panel.io import document as writing
from panel.io.document import unlocked
from panel.io.state import state
from panel.viewable import Viewable

_dispatch_messages = writing._dispatch_msgs


async def _dispatch_all_messages(document: Document) -> None:
    """Write what waits for the browser, to the last message.

    Panel's own leaves a message behind that is put down just as the write before it ends: it waits
    then for the next change of the page, and a last sentence or picture stays away.
    """
    await _dispatch_messages(document)
    if document in writing._WRITE_MSGS and document not in writing._WRITE_BLOCK:
        writing._WRITE_BLOCK[document] = True
        writing._dispatch_write_task(document, _dispatch_all_messages, document)


writing._dispatch_msgs = _dispatch_all_messages


def together() -> AbstractContextManager[Any]:
    """Within, everything that changes on the page under way is kept for one message at the end."""
    return unlocked("collect")  # a value that is set and taken back is told twice


class Component(AnyWidgetComponent):
    """A part of a page in JavaScript that browsers read as it is.

    Without this Panel translates it from TypeScript in the browser whenever a page is loaded, which
    takes a quarter of that time.
    """

    __abstract = True

    def _get_properties(self, doc: Any) -> dict[str, Any]:
        made = super()._get_properties(doc)
        return made | {"bundle": hashlib.sha256(made["esm"].encode()).hexdigest()}

    def _process_events(self, events: dict[str, Any]) -> None:
        """What the browser says; Panel counts busy pages besides, for indicators that none has."""
        values = self._process_property_change(events)
        if all(name in self.param for name in values):
            with together():
                self.param.update(**values)
        else:
            super()._process_events(events)

    def _param_change(self, *events) -> None:
        values = {event.name: event.new for event in events}
        if values.keys() & set(Viewable.param):  # its size and style
            super()._param_change(*events)
            return
        for ref, (model, _) in self._models.copy().items():
            if ref not in state._views or ref in state._fake_roots:
                continue
            _, _, document, comm = state._views[ref]
            if comm or (document.session_context and not state._unblocked(document)):
                super()._param_change(*events)
                return
            names = model.data.properties()
            # Values that came from the browser are there already.
            changed = {
                name: value
                for name, value in values.items()
                if name in names and getattr(model.data, name) != value
            }
            # So that what is set here is not taken for what the browser says.
            self._changing[ref] = list(changed)
            try:
                with together():
                    model.data.update(**changed)
            finally:
                self._changing.pop(ref, None)


def is_plain(view: Viewable) -> bool:
    """Whether all modules inside are of this kind: such a page needs no shim for imports."""
    return all(isinstance(one, Component) for one in view.select(ReactiveESM))
