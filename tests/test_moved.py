"""Former names of modules and of what they hold: an error that says where it is now."""

import importlib
import re

import pytest

from gradflow.moved import MOVED, RENAMED


@pytest.mark.parametrize("former", MOVED)
def test_a_former_module_says_where_it_is_now(former):
    with pytest.raises(
        ModuleNotFoundError, match=re.escape(f"{former} has moved: import from {MOVED[former]}.")
    ):
        importlib.import_module(former)
    for name in MOVED[former].split(" and "):
        importlib.import_module(name)


@pytest.mark.parametrize("former", RENAMED)
def test_a_former_name_says_what_to_use_instead(former):
    module, _, name = former.rpartition(".")
    with pytest.raises(ImportError, match=re.escape(f"{former} has moved: use {RENAMED[former]}.")):
        exec(f"from {module} import {name}")


def test_other_names_are_missing_as_ever():
    for module in {name.rpartition(".")[0] for name in RENAMED}:
        assert not hasattr(importlib.import_module(module), "nothing")


def test_other_modules_are_not_found_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'gradflow\.nowhere'"):
        importlib.import_module("gradflow.nowhere")
