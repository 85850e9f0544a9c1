"""Stories to start from: a study, the page and moment to look at, what to see, and exact numbers.

A story is a YAML file: those of the package in ``workbench/stories``, a reader's own in the folder
that ``WORKBENCH_STORIES`` names. Reading them takes neither torch nor any study, so that the
gallery is there as soon as the server answers.

.. code-block:: yaml

    title: Heun with 5 steps overshoots the ring
    question: Why do samples of a second-order method end outside of the data?
    page: trajectories                                       # or samplers, gap, seeds, ...
    study: {data: ring, sampler: Heun, grid.steps: 5}        # dotted keys, as in an address
    options: {}                                              # of the page: samplers, spectrum, ...;
                                                             # of networks the training
    open: {frame: 4, tab: lens}                              # the telling moment
    look: Three sentences. On what to look at. And why.
    change: What to change next.
    picture: x                                               # or denoised: of the thumbnail
    place: 1                                                 # among the stories
    numbers:                                 # computed by workbench.studies.claims.computed
      - {is: 2.09, of: final.norm, says: mean distance from the centre}
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

#: The stories of the package.
SHIPPED = Path(__file__).parent.parent / "stories"

#: Names the folder of a reader's own stories.
VARIABLE = "WORKBENCH_STORIES"

PAGES = ("trajectories", "samplers", "gap", "gauge", "seeds", "frequency", "networks")

#: Largest file of a story, and of a thumbnail [bytes]; most stories of a folder.
MOST_TEXT, MOST_THUMBNAIL, MOST_STORIES = 20_000, 400_000, 200

_TEXTS = ("title", "question", "look", "change")


class StoryError(ValueError):
    """A story that cannot be told; the text says why."""


@dataclass(frozen=True)
class Number:
    """A number of a story.

    Attributes:
        value: as it is told.
        says: what it is, with its unit.
        of: what computes it, see :func:`workbench.studies.claims.computed`.
        at: the coordinate it is taken at, by the name of the dimension.
        changed: entries in which its study differs from that of the story.
    """

    value: float
    says: str
    of: str
    at: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def how(self) -> str:
        """How it is computed, in a line."""
        at = "".join(f", {name} {value}" for name, value in self.at.items())
        changed = ", ".join(f"{key}={value}" for key, value in self.changed.items())
        return f"{self.of}{at}" + (f" with {changed}" if changed else "")


@dataclass(frozen=True)
class Story:
    """A story; see the module."""

    slug: str
    title: str
    question: str
    page: str
    study: Mapping[str, Any]
    look: str
    change: str
    options: Mapping[str, Any] = field(default_factory=dict)
    open: Mapping[str, Any] = field(default_factory=dict)
    numbers: tuple[Number, ...] = ()
    picture: str = "x"
    place: int = 1000
    file: Path | None = None

    @property
    def query(self) -> str:
        """Of the address it opens: its study, the page's options, the moment, and its name."""
        study = {} if self.page == "networks" else self.study  # it has a training instead
        return urlencode({**study, **self.options, **self.open, "story": self.slug}, safe=",:")

    @property
    def address(self) -> str:
        """Relative to the home page."""
        return f"./{self.page}?{self.query}"

    @property
    def key(self) -> str:
        """Of what its thumbnail shows."""
        shown = [self.page, dict(self.study), dict(self.options), self.picture]
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


def folder() -> Path | None:
    """The folder of the reader's own stories, if there is one."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else None


def stories() -> tuple[list[Story], dict[str, str]]:
    """Every story, the package's first; of files that are none, the reason by their names."""
    found: dict[str, Story] = {}
    wrong: dict[str, str] = {}
    for place in (SHIPPED, folder()):
        files = sorted(place.glob("*.yaml")) if place is not None and place.is_dir() else []
        for file in files[:MOST_STORIES]:
            try:
                story = read(file)
                if story.slug in found:
                    raise StoryError(f"another story is named {story.slug}; rename the file.")
            except StoryError as error:
                wrong[file.name] = str(error)
            else:
                found[story.slug] = story
    own = folder()
    if own is not None and not own.is_dir():
        wrong[str(own)] = f"{VARIABLE} names {own}, which is no folder; make it, or name another."
    order = {slug: (one.file.parent != SHIPPED, one.place) for slug, one in found.items()}
    return sorted(found.values(), key=lambda story: order[story.slug]), wrong


def get(slug: str) -> Story | None:
    """The story of that name, or None."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", slug):
        return None
    for place in (SHIPPED, folder()):
        if place is not None and (place / f"{slug}.yaml").is_file():
            try:
                return read(place / f"{slug}.yaml")
            except StoryError:
                return None
    return None


def read(file: Path) -> Story:
    """The story of a file.

    Raises:
        StoryError: it cannot be read, or is none, with the reason.
    """
    try:
        if file.stat().st_size > MOST_TEXT:
            raise StoryError(
                f"it has {file.stat().st_size} bytes; a story has {MOST_TEXT} at most."
            )
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise StoryError(f"it cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(told, dict):
        raise StoryError("it holds no entries; a story begins with title: ...")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", file.stem):
        raise StoryError("its name holds more than letters, digits, - and _; rename the file.")
    known = {*_TEXTS, "page", "study", "options", "open", "numbers", "picture", "place"}
    if unknown := [str(key)[:40] for key in told if key not in known]:
        raise StoryError(
            f"it has no entry {unknown[0]!r}; its entries are {', '.join(sorted(known))}."
        )
    for name in _TEXTS:
        if not isinstance(told.get(name), str) or not told[name].strip():
            raise StoryError(f"{name} is missing; say it as a text.")
    page = told.get("page", "trajectories")
    if page not in PAGES:
        raise StoryError(f"page was {str(page)[:40]!r}; it must be one of {', '.join(PAGES)}.")
    parts = {name: _plain(told.get(name), name) for name in ("study", "options", "open")}
    numbers = told.get("numbers", [])
    if not isinstance(numbers, list):
        raise StoryError("numbers must be a list.")
    picture = told.get("picture", "x")
    if picture not in ("x", "denoised"):
        raise StoryError(f"picture was {str(picture)[:40]!r}; it must be x or denoised.")
    place = told.get("place", 1000)
    if isinstance(place, bool) or not isinstance(place, int):
        raise StoryError("place must be a whole number: stories stand in their order.")
    texts = {name: " ".join(told[name].split()) for name in _TEXTS}
    return Story(
        slug=file.stem,
        page=page,
        numbers=tuple(_number(one) for one in numbers),
        picture=picture,
        place=place,
        file=file,
        **texts,
        **parts,
    )


def _plain(told: Any, name: str) -> dict[str, Any]:
    """Dotted keys with plain values."""
    if told is None:
        return {}
    plain = isinstance(told, dict) and all(
        isinstance(key, str) and isinstance(value, str | int | float | bool)
        for key, value in told.items()
    )
    if not plain:
        raise StoryError(f"{name} must be dotted keys with plain values, as in {{grid.steps: 5}}.")
    return dict(told)


def _number(told: Any) -> Number:
    if not isinstance(told, dict) or not {"is", "of", "says"} <= set(told):
        raise StoryError("each of the numbers needs is, of and says.")
    if unknown := [str(key)[:40] for key in set(told) - {"is", "of", "says", "at", "with"}]:
        raise StoryError(f"a number has no entry {unknown[0]!r}; it has is, of, says, at and with.")
    value = told["is"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise StoryError(f"a number was {str(value)[:40]!r}; write it as in 2.09.")
    at, changed = _plain(told.get("at"), "at"), _plain(told.get("with"), "with")
    return Number(float(value), str(told["says"]), str(told["of"]), at, changed)


# ---- thumbnails ----------------------------------------------------------------------------------


def cached(story: Story) -> Path:
    """Where the thumbnail of a reader's own story is kept."""
    base = os.environ.get("WORKBENCH_CACHE") or os.environ.get("XDG_CACHE_HOME")
    place = Path(base).expanduser() if base else Path.home() / ".cache"
    return place / "diffusion-workbench-stories" / f"{story.key}.json"


def thumbnail_of(story: Story) -> dict[str, Any] | None:
    """The frames of a story's thumbnail; None where they are yet to be computed."""
    for place in (SHIPPED / f"{story.slug}.json", cached(story)):
        try:
            if place.stat().st_size > MOST_THUMBNAIL:
                continue
            found = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and found.get("key") == story.key:
            return found
    return None


def keep_thumbnail(story: Story, made: dict[str, Any], place: Path | None = None) -> None:
    """Write a thumbnail, at once; where :func:`thumbnail_of` looks for it."""
    place = place or cached(story)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.write_text(json.dumps({"key": story.key, **made}), encoding="utf-8")
    os.replace(partial, place)


# ---- on a page -----------------------------------------------------------------------------------


def note(story: Story) -> str:
    """What a page says of the story it was opened by, as HTML."""
    numbers = "".join(
        f"<li><b>{html.escape(f'{one.value:g}')}</b> {html.escape(one.says)} "
        f"<small>({html.escape(one.how)})</small></li>"
        for one in story.numbers
    )
    return (
        f'<section aria-label="Story" class="wb-story"><h2 style="font-size:1.05em;margin:2px 0">'
        f"{html.escape(story.title)}</h2>"
        f'<p style="margin:4px 0">{html.escape(story.look)}</p>'
        f'<p style="margin:4px 0"><b>Change next.</b> {html.escape(story.change)}</p>'
        f'<ul style="margin:4px 0;padding-left:18px">{numbers}</ul></section>'
    )
