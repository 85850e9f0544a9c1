"""Plain YAML and JSON, read without surprises; and what was found there, said in a few words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from workbench.params import one_line, shown

#: Longest text that is read: a study has a few hundred characters.
MOST_CHARACTERS = 2**15

#: Deepest nesting that is read; the time the loader takes grows with its square.
DEEPEST = 32

TOO_LONG = f"it is longer than {MOST_CHARACTERS} characters, and a study is much shorter"


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, tags and repeated keys.

    A study has no use for them: a bomb is made of aliases, tags name objects to be made, and of two
    values for one key one would be lost.
    """

    depth = 0

    def fetch_flow_collection_start(self, token):
        if self.flow_level >= DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not part of the study format")
        if getattr(event, "tag", None) is not None:
            tag = shown(event.tag)
            raise yaml.YAMLError(f"tags are not part of the study format, and there is {tag}")
        if self.depth > DEEPEST:
            raise RecursionError
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            _check_keys(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return super().construct_mapping(node, deep)


def _check_keys(keys: Iterable[str]) -> None:
    known = set()
    for key in keys:
        if key in known:
            raise yaml.YAMLError(f"{shown(key)} stands there twice")
        known.add(key)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_keys(key for key, _ in pairs)
    return dict(pairs)


def read_text(path: str | Path) -> str:
    """The text of a file, as far as it can be a study's (one character more than that).

    Raises:
        OSError: a file that cannot be read, or is not text; the message is a sentence without its
            end.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        text = str(path)
        name = text if text.isprintable() and len(text) < 300 else shown(text)
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{name} cannot be read: {reason}") from None


def parse(text: str) -> Any:
    """The values of YAML or JSON text.

    Raises:
        ValueError: the text is neither, is too long, or holds aliases, tags or a key twice; the
            message is the reason, as the end of a sentence.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(TOO_LONG)
    try:
        if text.lstrip().startswith("{"):  # JSON, which may be indented by tabs; else YAML
            try:
                return json.loads(text, object_pairs_hook=_no_twins)
            except json.JSONDecodeError:
                pass
        return yaml.load(text, Loader=PlainLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # The loader meets some malformed scalars with errors of Python's own.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())
        if reason.startswith("Exceeds the limit"):  # Python's, of digits
            reason = "a number in it has too many digits"
        raise ValueError(one_line(reason, 300)) from None


def part(value: Any) -> str:
    """A part of a path, for a sentence: names as they are, anything else as :func:`shown`."""
    text = shown(value)
    return value if text == f"'{value}'" else text


def joined(sentences: Iterable[str], most: int = 8) -> str:
    """Sentences one after the other; of very many the first, and how many more there are."""
    said = list(sentences)
    if len(said) > most + 1:
        said[most:] = [f"There are {len(said) - most} more problems."]
    return " ".join(said)


def nearest(given: Any, known: Iterable[Any]) -> str:
    """``" (did you mean 'VP'?)"`` for ``"vp"``; empty where nothing is near."""
    if not isinstance(given, str) or len(given) > 100:
        return ""
    lowered = {str(name).lower(): name for name in reversed(list(known))}
    close = get_close_matches(given.lower(), list(lowered), 1)
    return f" (did you mean {lowered[close[0]]!r}?)" if close else ""
