"""Modules that have moved: the error names a place that exists."""

import importlib

import pytest

from gradflow.moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_the_former_name_says_the_new_one(name):
    with pytest.raises(ModuleNotFoundError, match=rf"{name} has moved: import from {MOVED[name]}\."):
        importlib.import_module(name)
    importlib.import_module(MOVED[name])


def test_other_names_are_not_found_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'gradflow\.nowhere'"):
        importlib.import_module("gradflow.nowhere")
