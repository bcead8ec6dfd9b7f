"""Checks of numbers: what is in range is returned, and the message says the bound that isn't kept."""

import math
import re

import numpy as np
import pytest

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, InvalidTypeError


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (0, {"least": 0, "below": 1}, 0.0),
        (1, {"above": 0, "most": 1}, 1.0),
        (np.float32(0.5), {"above": 0, "below": 1}, 0.5),
        (math.inf, {"above": 0, "finite": False}, math.inf),
        (-math.inf, {"most": 0, "finite": False}, -math.inf),
        (10**400, {"finite": False}, math.inf),
    ],
)
def test_what_is_in_range_is_returned_as_a_float(value, bounds, expected):
    found = check_number("x", value, **bounds)
    assert type(found) is float
    assert found == expected


@pytest.mark.parametrize(
    ("value", "bounds", "text"),
    [
        (0, {"above": 0}, "Expected x > 0, got 0."),
        (-0.5, {"least": 0}, "Expected x ≥ 0, got -0.5."),
        (1.0, {"below": 1}, "Expected x < 1, got 1.0."),
        (1.5, {"most": 1}, "Expected x ≤ 1, got 1.5."),
        (math.inf, {"below": 1, "finite": False}, "Expected x < 1, got inf."),
        (math.nan, {"finite": False}, "Expected x to be finite, got nan."),
        (math.inf, {}, "Expected x to be finite, got inf."),
    ],
)
def test_what_is_out_of_range_is_refused(value, bounds, text):
    with pytest.raises(InvalidInputError, match=f"^{re.escape(text)}$"):
        check_number("x", value, **bounds)


@pytest.mark.parametrize("value", ["1", True, None, 1j])
def test_what_is_no_number_is_refused(value):
    said = re.escape(f"Expected x to be a number, got {type(value).__name__} {value!r}.")
    with pytest.raises(InvalidTypeError, match=said):
        check_number("x", value)


def test_counts():
    assert check_count("n", np.int64(3), least=1) == 3
    with pytest.raises(InvalidInputError, match=r"^Expected n ≥ 1, got 0\.$"):
        check_count("n", 0, least=1)
    with pytest.raises(InvalidTypeError, match=r"^Expected n to be an int, got float 2\.0\.$"):
        check_count("n", 2.0)
