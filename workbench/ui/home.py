"""The home page: stories to start from, each with a moving picture, and the pages themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn
import param
from panel.custom import AnyWidgetComponent

from workbench.ui.session import IMPORTING, Session
from workbench.ui.shell import page_of
from workbench.ui.stories import SHIPPED, Story, cached, stories, thumbnail_of

__all__ = ["Gallery", "home_page"]

LEAD = (
    "Each of these is a study with a question. It opens at the moment to look at, says what to see "
    "and what to change next, and its numbers are exact."
)


class Gallery(AnyWidgetComponent):
    """Cards with small moving pictures.

    Attributes:
        lead: what stands above them.
        cards: of each its slug, title, text, href (empty: it leads nowhere) and what is wrong.
        frames: by slug, what :func:`workbench.studies.claims.thumbnail` makes.
    """

    lead = param.String(LEAD)
    cards = param.List([])
    frames = param.Dict({})

    _esm = (Path(__file__).with_name("js") / "gallery.js").read_text(encoding="utf-8")


def card(story: Story, wrong: str = "") -> dict[str, str]:
    """A story as the gallery shows it."""
    return {
        "slug": story.slug,
        "title": story.title,
        "text": story.question,
        "href": story.address,
        "wrong": wrong,
    }


def home_page(pages: Callable[[], list]) -> Any:
    """The gallery; ``pages`` gives the apps, which are listed beneath it."""
    found, wrong = stories()
    frames = {story.slug: thumbnail_of(story) for story in found}
    own = [story for story in found if story.file.parent != SHIPPED]
    shown = [card(story) for story in found]
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
        session = Session()
        gone = threading.Event()
        session.open(on_leave=gone.set)
        told = (own, [story for story in own if not frames[story.slug]], gallery, session, gone)
        threading.Thread(target=_complete, args=told, daemon=True, name="stories").start()
    links = "".join(
        f'<li><a href="./{app.slug}" style="color:inherit;font-weight:600">{app.title}</a> '
        f"{app.description}</li>"
        for app in pages()
    )
    listed = pn.pane.HTML(
        f'<nav aria-label="Pages"><ul style="font:14px/1.7 system-ui,sans-serif;margin:0;'
        f'padding-left:20px">{links}</ul></nav>',
        sizing_mode="stretch_width",
        margin=(12, 16),
    )
    return page_of(
        title="Diffusion Workbench",
        main=[pn.Column(gallery, listed, sizing_mode="stretch_width", margin=0)],
    )


def _complete(own: list[Story], missing: list[Story], gallery, session: Session, gone) -> None:
    """Say what is wrong with a reader's own stories, and compute the pictures that are missing."""
    with IMPORTING:
        from workbench.studies.claims import keep_thumbnail, problem, thumbnail

    wrong = {story.slug: problem(story.page, story.study, story.options) for story in own}
    told = [{**one, "wrong": wrong.get(one["slug"]) or one["wrong"]} for one in gallery.cards]
    if told != gallery.cards:
        session.deliver(lambda: gallery.param.update(cards=told))
    for story in missing:
        if gone.is_set():
            return
        if wrong[story.slug]:
            continue
        try:
            made = thumbnail(story.page, story.study, story.options, story.picture)
        except (ValueError, NotImplementedError):
            continue  # said on its page
        keep_thumbnail(cached(story), story.key, made)

        def put(slug=story.slug, made=made) -> None:
            gallery.frames = {**gallery.frames, slug: made}

        session.deliver(put)
