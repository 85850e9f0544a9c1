"""One declaration of a parameter is its check, its words and its bounds."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from workbench.params import Param, Parameterised, check, checked, declared

Rate = Annotated[float, Param("a rate", gt=0, le=10, label="the rate")]


@dataclass(frozen=True)
class Thing(Parameterised):
    rate: Rate = 1.0
    count: Annotated[int, Param("a count", ge=1)] = 3
    kind: Annotated[Literal["a", "b"], Param("a kind")] = "a"
    flag: Annotated[bool, Param("a flag")] = False
    name: Annotated[str, Param("a name")] = "x"
    free: float = -1.0


@checked
def scaled(base: float, rate: Rate = 2.0) -> float:
    return base * rate


def test_what_is_declared():
    found = declared(Thing)
    assert list(found) == ["rate", "count", "kind", "flag", "name"]
    rate = found["rate"]
    assert (rate.type, rate.default, rate.label, rate.param.help) == (
        float,
        1.0,
        "the rate",
        "a rate",
    )
    assert found["kind"].choices == ("a", "b") and found["kind"].type is str
    assert found["count"].label == "count"
    assert list(declared(scaled)) == ["rate"] and declared(scaled)["rate"].default == 2.0


@pytest.mark.parametrize(
    ("param", "words", "inside", "outside"),
    [
        (Param(""), "", [-1e300, 0, 1e300], []),
        (Param("", ge=0), "at least 0", [0, 5], [-1e-300]),
        (Param("", gt=0, lt=1), "greater than 0 and below 1", [0.5], [0, 1]),
        (Param("", ge=-180, le=180), "at least -180 and at most 180", [-180, 180], [180.1, -181]),
    ],
)
def test_bounds_as_words_and_as_numbers(param, words, inside, outside):
    assert param.allowed() == words
    assert all(param.admits(value) for value in inside)
    assert not any(param.admits(value) for value in outside)


@pytest.mark.parametrize(
    ("name", "good", "bad", "what"),
    [
        ("rate", [1, 0.5, 10], [0, 10.5, -1, math.nan, math.inf, "1", None, True], "finite number"),
        ("count", [1, 10**400], [0, 1.5, 2.0, "2", False, None], "a whole number, at least 1"),
        ("kind", ["a", "b"], ["c", None, 1], "one of 'a', 'b'"),
        ("flag", [True, False], [0, 1, "true", None], "true or false"),
        ("name", ["", "y"], [1, None, True], "a text"),
    ],
)
def test_problems_are_sentences_with_name_value_and_what_is_allowed(name, good, bad, what):
    parameter = declared(Thing)[name]
    assert [parameter.problem(value) for value in good] == [""] * len(good)
    for value in bad:
        sentence = parameter.problem(value)
        assert sentence == parameter.refusal(value)
        assert sentence.startswith(f"{name} was {value!r}; it must be ") and what in sentence
        assert sentence.endswith(".")
        with pytest.raises(ValueError) as caught:
            Thing(**{name: value})
        assert str(caught.value) == f"Thing: {sentence}"


def test_sentences_stay_short_and_in_one_line():
    for value, told in (
        (10**5000, "a number of too many digits"),
        ("9" * 5000, f"'{'9' * 65}... (5002 characters)"),
        ("a\nb", r"'a\nb'"),
    ):
        for name in ("rate", "kind", "flag"):
            with pytest.raises(ValueError) as caught:
                Thing(**{name: value})
            assert str(caught.value).startswith(f"Thing: {name} was {told}; it must be ")


def test_a_checked_function_is_checked_wherever_the_argument_stands():
    assert scaled(3.0) == 6.0 and scaled(3.0, 3) == 9.0
    for call in (lambda: scaled(1.0, -1.0), lambda: scaled(1.0, rate=-1.0)):
        with pytest.raises(ValueError, match=r"scaled: rate was -1\.0; .* greater than 0"):
            call()
    assert scaled.__name__ == "scaled"
    check(Thing, {"rate": 1.0})  # what is missing is not checked
