"""What a page asks for beside its study: declared options, held by its URL.

A page's options are a frozen dataclass of declared parameters, as everywhere; their names are their
keys in the address, beside those of the study. An option may be a list: then its value is a text
of entries joined by commas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from workbench.params import Parameterised, declared, shown
from workbench.studies.flat import query_of, salvaged
from workbench.studies.sections import StudyError

if TYPE_CHECKING:
    from workbench.studies.spec import Study


class Options(Parameterised):
    """Base of a page's options. A subclass is a frozen dataclass whose fields all have defaults."""

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys of the options in an address."""
        return tuple(declared(cls))

    def lists(self) -> dict[str, tuple[str, ...]]:
        """Options that are lists: what a form offers for each, beside what it holds."""
        return {}

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Options of text that a form offers as a choice."""
        return {}

    def files(self) -> tuple[str, ...]:
        """Options that stand for a file which a reader brings; see :meth:`uploaded`."""
        return ()

    def uploaded(self, key: str, content: bytes, name: str) -> Options:
        """The options after a file was brought for ``key``.

        Raises:
            StudyError: a file that cannot be taken, by a sentence.
        """
        raise StudyError({key: f"{key} takes no file."})

    def wanted(self) -> tuple[str, ...]:
        """The options that matter as the others stand; a form shows these."""
        return self.keys()

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Options:
        """The options of a flat mapping; what is missing has its default.

        Raises:
            StudyError: values that are not allowed, a sentence for each.
        """
        known = declared(cls)
        values, problems = {}, {}
        for key, value in flat.items():
            if key not in known:
                names = ", ".join(known)
                problems[key] = f"the page has no option {shown(key)}; its options: {names}."
                continue
            values[key] = known[key].read(value)
            if sentence := known[key].problem(values[key]):
                problems[key] = sentence
        if problems:
            raise StudyError(problems)
        try:
            return cls(**values)
        except StudyError:
            raise
        except ValueError as error:
            raise StudyError({"": str(error)}) from None

    @classmethod
    def salvage(cls, flat: Mapping[str, Any]) -> tuple[Options, dict[str, str]]:
        """The options of what can be read of ``flat``, and a sentence for each left out."""
        return salvaged(cls.from_flat, flat)

    def to_flat(self) -> dict[str, Any]:
        """Every option by its key."""
        return {key: getattr(self, key) for key in self.keys()}

    def to_query(self) -> str:
        """The options as a part of a URL's query."""
        return query_of(self.to_flat())

    def mark(self, study: Study) -> str:
        """What says of which study and options a part of the page is."""
        return query_of(study.to_flat() | self.to_flat())

    def changed(self, changes: Mapping[str, Any]) -> Options:
        """The options with ``changes``."""
        return type(self).from_flat({**self.to_flat(), **changes})


def split(text: str) -> tuple[str, ...]:
    """The entries of a list, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def joined(entries: Iterable[str]) -> str:
    """A list as one text."""
    return ",".join(entries)
