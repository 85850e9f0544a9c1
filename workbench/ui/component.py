"""Parts of a page that are written in JavaScript."""

from __future__ import annotations

import hashlib
from typing import Any

from panel.custom import AnyWidgetComponent, ReactiveESM
from panel.viewable import Viewable

__all__ = ["Component", "is_plain"]


class Component(AnyWidgetComponent):
    """A part of a page in JavaScript that browsers read as it is.

    Without this Panel translates it from TypeScript in the browser whenever a page is loaded, which
    takes a quarter of that time.
    """

    __abstract = True

    def _get_properties(self, doc: Any) -> dict[str, Any]:
        made = super()._get_properties(doc)
        return made | {"bundle": hashlib.sha256(made["esm"].encode()).hexdigest()}


def is_plain(view: Viewable) -> bool:
    """Whether all modules inside are of this kind: such a page needs no shim for imports."""
    return all(isinstance(one, Component) for one in view.select(ReactiveESM))
