"""Values that a checkpoint holds: classes by full names, found again under former ones."""

import collections
import dataclasses
import io

import numpy as np
import pytest
import torch

from gradflow import plain
from gradflow.errors import GradflowError, InvalidTypeError, ResumeError
from gradflow.integrators.rkc import _Sharpness
from gradflow.plain import from_plain, restorable, to_plain


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Classes that a test declares are forgotten after it."""
    monkeypatch.setattr(plain, "_restorable", dict(plain._restorable))


def make(name, module, *fields):
    return dataclasses.make_dataclass(name, fields or ["a"], namespace={"__module__": module})


def test_values_return_as_they_were():
    sharpness = _Sharpness(*range(len(dataclasses.fields(_Sharpness))))
    value = {"x": [torch.arange(3.0), (np.arange(2), None)], "y": sharpness, "z": np.float64(1.5)}
    again = from_plain(to_plain(value))
    assert torch.equal(again["x"][0], value["x"][0])
    assert np.array_equal(again["x"][1][0], value["x"][1][0])
    assert again["y"] == sharpness
    assert again["z"] == 1.5
    assert to_plain(sharpness)["__class__"] == "gradflow.integrators.rkc._Sharpness"


@pytest.mark.parametrize(
    "value",
    [object(), slice(1), frozenset({1}), collections.deque([1]), collections.namedtuple("Pair", "a b")(1, 2)],
)
def test_what_a_checkpoint_cannot_hold_is_refused_when_it_is_written(value):
    with pytest.raises(
        InvalidTypeError, match=rf"can't hold a \S*{type(value).__name__}, which is part of a state"
    ):
        to_plain({"state": [value]})


def test_what_is_plain_loads_without_running_code():
    value = {"a": (None, True, 1, 1.5, 1j, "x", b"y"), "b": [torch.float64, torch.device("cpu"), {1, 2}]}
    buffer = io.BytesIO()
    torch.save(to_plain(value), buffer)
    buffer.seek(0)
    assert from_plain(torch.load(buffer, weights_only=True)) == value


def test_classes_of_one_name_in_two_modules_are_told_apart():
    one, two = (restorable(make("State", module)) for module in ("first", "second"))
    assert type(from_plain(to_plain(one(1)))) is one
    assert type(from_plain(to_plain(two(1)))) is two


def test_a_renamed_class_is_found_by_its_former_names():
    old = restorable(make("Old", "package"))
    written = to_plain(old(7))
    del plain._restorable["package.Old"]
    with pytest.raises(ResumeError, match=r"holds a package\.Old, which isn't known here\. .*aliases"):
        from_plain(written)
    new = restorable(aliases=("package.Old",))(make("New", "elsewhere"))
    assert from_plain(written) == new(7)
    assert from_plain({"__class__": "Old", "a": 7}) == new(7)  # a checkpoint of old with the bare name
    assert to_plain(new(7))["__class__"] == "elsewhere.New"


def test_bare_names_of_older_checkpoints_are_read_where_one_class_has_them():
    one = restorable(make("State", "first"))
    assert from_plain({"__class__": "State", "a": 1}) == one(1)
    restorable(make("State", "second"))
    with pytest.raises(ResumeError, match=r"holds a State, which may be any of first\.State, second\.State"):
        from_plain({"__class__": "State", "a": 1})


@pytest.mark.parametrize("bare", ["Control", "_Sharpness", "_Measured", "Eigenpairs"])
def test_every_bare_name_that_was_written_is_found(bare):
    assert plain._find(bare).__qualname__ == bare


def test_a_name_that_is_taken_is_refused_when_it_is_declared():
    restorable(make("State", "first"))
    with pytest.raises(
        ValueError, match=r"^second\.State can't be restorable as first\.State, which is first\.State already"
    ):
        restorable(aliases=("first.State",))(make("State", "second"))
    assert "second.State" not in plain._restorable
    restorable(aliases=("former.State",))(make("State", "third"))
    with pytest.raises(ValueError, match=r"former\.State, which is third\.State already"):
        restorable(make("State", "former"))


def test_a_local_class_is_refused():
    @dataclasses.dataclass
    class Local:
        a: int

    with pytest.raises(ValueError, match=r"top level of a module, got .*<locals>\.Local"):
        restorable(Local)


def test_a_module_may_be_executed_again():
    before, now = make("State", "notebook"), make("State", "notebook")
    restorable(before)
    restorable(now)
    assert type(from_plain(to_plain(now(1)))) is now
    with pytest.raises(TypeError, match=r"notebook\.State isn't restorable") as caught:
        to_plain(before(1))  # it would come back as another class
    assert isinstance(caught.value, GradflowError)


def test_a_class_with_other_fields_is_said():
    written = to_plain(restorable(make("State", "package", "a", "b"))(1, 2))
    restorable(make("State", "package", "a", "c"))
    with pytest.raises(
        ResumeError, match=r"package\.State with the fields a, b; here package\.State has a, c"
    ):
        from_plain(written)
