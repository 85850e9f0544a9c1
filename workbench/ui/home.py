"""The home page: stories to start from, each with a moving picture, and the pages themselves."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import panel as pn
import param

from workbench.ui.apps import IMPORTING
from workbench.ui.component import Component
from workbench.ui.modules import joined
from workbench.ui.session import Session
from workbench.ui.shell import page_of
from workbench.ui.stories import SHIPPED, Story, keep_thumbnail, stories, thumbnail_of

if TYPE_CHECKING:
    from workbench.ui.server import App

LEAD = (
    "Each of these is a study with a question. It opens at the moment to look at, says what to see "
    "and what to change next, and its numbers are exact."
)


class Gallery(Component):
    """Cards with small moving pictures.

    Attributes:
        lead: what stands above them.
        cards: of each its slug, title, text, href (empty: it leads nowhere), and what is wrong if
            anything is.
        frames: by slug, what :func:`workbench.studies.claims.thumbnail` makes.
    """

    lead = param.String(LEAD)
    cards = param.List([])
    frames = param.Dict({})

    _esm = joined("gallery")


def home_page(pages: list[App]) -> Any:
    """The gallery, and the pages beneath it."""
    found, wrong = stories()
    frames = {story.slug: thumbnail_of(story) for story in found}
    own = [story for story in found if story.file.parent != SHIPPED]
    shown = [
        {"slug": one.slug, "title": one.title, "text": one.question, "href": one.address}
        for one in found
    ]
    shown += [
        {"slug": "", "title": name, "text": "No story.", "href": "", "wrong": reason}
        for name, reason in wrong.items()
    ]
    gallery = Gallery(
        cards=shown,
        frames={slug: one for slug, one in frames.items() if one},
        sizing_mode="stretch_width",
        margin=(8, 16),
    )
    if own:
        _complete(own, {story.slug for story in own if not frames[story.slug]}, gallery)
    links = "".join(
        f'<li><a href="./{app.slug}" style="color:inherit;font-weight:600">{app.title}</a> '
        f"{app.description}</li>"
        for app in pages
    )
    listed = pn.pane.HTML(
        '<nav aria-label="What each page is for"><ul style="font:14px/1.7 system-ui,sans-serif;'
        f'margin:0;padding-left:20px">{links}</ul></nav>',
        sizing_mode="stretch_width",
        margin=(12, 16),
    )
    return page_of("Diffusion Workbench", gallery, listed)


def _complete(own: list[Story], missing: set[str], gallery: Gallery) -> None:
    """Say what is wrong with a reader's own stories; have pictures drawn that are missing."""
    session, tickets = Session(), []
    session.open(on_leave=lambda: [ticket.cancel() for ticket in tickets])

    def put(story: Story, said: tuple[str, dict | None]) -> None:
        wrong, made = said
        if wrong:
            gallery.cards = [
                {**one, "wrong": wrong} if one["slug"] == story.slug else one
                for one in gallery.cards
            ]
        if made is not None:
            gallery.frames = {**gallery.frames, story.slug: made}
            with suppress(OSError):
                keep_thumbnail(story, made)

    def ask() -> None:
        with IMPORTING:
            from workbench.studies.claims import told
            from workbench.ui.broker import shared
        for story in own:
            asked = (story.page, story.study, story.options, story.picture, story.slug in missing)
            tickets.append(
                shared().submit(
                    ("story", id(session), story.slug),
                    partial(told, *asked),
                    done=partial(put, story),
                    failed=lambda error: None,
                    deliver=session.deliver,
                    session=session,
                )
            )

    # The imports are no matter of the thread of the pages.
    threading.Thread(target=ask, daemon=True, name="stories").start()
