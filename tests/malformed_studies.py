"""Texts that are not studies, of every kind: `malformed` draws them.

Wherever a text could run something if it were believed, it would make the file `MARK` in the
current folder.
"""

import json
from pathlib import Path

import yaml
from hypothesis import strategies as st

from workbench.studies import SECTIONS, Study
from workbench.studies.spec import ENTRIES

MARK = "it-was-executed"

TAGS = (
    f"!!python/object/apply:os.system ['touch {MARK}']",
    f"!!python/object/apply:builtins.open [{MARK}, w]",
    f"!!python/object/new:subprocess.Popen [[touch, {MARK}]]",
    f"!!python/object/apply:eval [\"open('{MARK}', 'w')\"]",
    "!!python/name:os.system",
    "!!python/module:this",
    "!!python/tuple [1, 2]",
    "!!timestamp soon",
    "!!bool maybe",
    "!!int ''",
    "!!float '1:1:x'",
    "!!binary '%'",
    "!!set {a, b}",
    "!!omap [a: 1, a: 2]",
    "!custom {name: VP}",
    "!<tag:example.org,2026:study> VP",
)

PLACES = [
    f"{section}: {{name: {name}, {key}: %s}}\n"
    for section, known in SECTIONS.items()
    for name, entry in known.entries.items()
    for key, one in entry.parameters.items()
    if not (one.optional or one.item or one.type is Path)
] + [f"{entry}: %s\n" for entry in ("study", *ENTRIES) if entry != "lenses"]
PLACES += ["lenses: [%s]\n", "lenses: [{name: flow, samples: %s}]\n", "lenses: [output, %s]\n"]

NUMBERS = [place for place in PLACES if "steps" in place] + ["seeds: {count: %s}", "study: %s"]

HUGE = st.one_of(
    st.integers(20, 60_000).map(lambda n: "9" * n),
    st.integers(20, 60_000).map(lambda n: "-0x" + "f" * n),
    st.integers(20, 60_000).map(lambda n: "0b1" + "0" * n),
    st.integers(20, 20_000).map(lambda n: "1" + ":59" * n),
    st.integers(20, 20_000).map(lambda n: "1" + ":59" * n + ".5"),
    st.integers(4, 5_000).map(lambda n: f"1.0e+{10 * n}"),
    st.sampled_from([".inf", "-.inf", ".nan", "1e999", "Infinity"]),
)

#: Values that no entry of a study takes.
WRONG = st.one_of(
    st.sampled_from(["null", "~", "[]", "{}", "[[]]", "{a: b}", "2026-01-01", "2026-13-45", "''"]),
    st.sampled_from(['"\\ud800"', '"\\0\\n\\e[31m"', "'\u202e'", "{[1]: 2}", "{1: 2}", "=", "<<"]),
    st.text("xyzé\u2028 ", min_size=1).map(lambda text: json.dumps("~" + text)),
    st.integers(1, 5_000).map(lambda n: json.dumps("a" * n + "!")),
    HUGE.map(lambda number: "{? %s : 1}" % number),  # noqa: UP031
)


def _nested(opening: str, closing: str, depth: int, whole: bool) -> str:
    return opening * depth + "1" + (closing * depth if whole else "")


DEEP = st.builds(
    lambda pair, depth, whole: _nested(*pair, depth, whole),
    st.sampled_from([("[", "]"), ("{a: ", "}"), ('{"a":', "}"), ("- ", ""), ("? ", "")]),
    st.one_of(st.integers(30, 400), st.integers(900, 16_000)),
    st.booleans(),
)  # fmt: skip


def _bomb(width: int, depth: int, merge: bool) -> str:
    rows = ["a0: &a0 {k: x}" if merge else "a0: &a0 [x, x]"]
    for i in range(1, depth):
        inside = ", ".join([f"*a{i - 1}"] * width)
        rows.append(f"a{i}: &a{i} {{<<: [{inside}]}}" if merge else f"a{i}: &a{i} [{inside}]")
    return "\n".join([*rows, f"process: *a{depth - 1}"])


def _in(places, values):
    return st.builds(lambda place, value: place % value, st.sampled_from(places), values)


@st.composite
def _broken(draw):
    """A whole study, spoilt in one place."""
    study = Study().to_dict()
    section = draw(st.sampled_from([*SECTIONS, "seeds", "record"]))
    spoil = draw(st.sampled_from(["nameless", "unknown", "misnamed", "section", "twice", "cut"]))
    stray = draw(st.text("abcdefgxyzé_\n\x7f", min_size=1, max_size=300)) + "?"
    if spoil == "nameless" and section in SECTIONS:
        del study[section]["name"]
    elif spoil == "misnamed" and section in SECTIONS:
        study[section]["name"] = draw(st.sampled_from([stray, 7, None, [stray], {"name": "VP"}]))
    elif spoil == "section":
        study[stray] = draw(st.sampled_from([study[section], 1, None]))
    else:
        study[section][stray] = 1
    if spoil == "twice":
        text = Study().to_yaml()
        return text + draw(st.sampled_from(text.splitlines()[1:2])) + " {name: ring}\n"
    dumped = draw(st.sampled_from([yaml.safe_dump, json.dumps]))(study)
    return dumped[: len(dumped) // 2] + "\n ] }" if spoil == "cut" else dumped


malformed = st.one_of(
    _broken(),
    _in(PLACES, WRONG),
    _in(PLACES, st.sampled_from(TAGS)),
    _in(NUMBERS, HUGE),
    _in(PLACES, DEEP),
    DEEP,
    st.sampled_from(TAGS),
    st.builds(_bomb, st.integers(2, 30), st.integers(2, 60), st.booleans()),
    st.sampled_from(["", "null", "7", "[]", "- process: VP", "---\na: 1\n---\nb: 2\n", "\0"]),
    st.text(max_size=200).map(lambda text: f"process: [{text}"),
    st.integers(1, 6).map(lambda n: "data: ring\n" + f"#{' ' * 99}\n" * (500 * 5**n // 2)),
    st.integers(100, 12_000).map(lambda n: "\n".join(f"a{i}: 1" for i in range(n))),
)  # fmt: skip
