"""A step-size controller as a user gives it."""

from __future__ import annotations

import ast
import numbers
from typing import Any

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError, suggest
from gradflow.integrators.step_size.error_control import ErrorControl
from gradflow.integrators.step_size.fixed import FixedStep
from gradflow.integrators.step_size.sharpness import SharpnessCap

_NAMED: dict[str, type] = {cls.__name__: cls for cls in (ErrorControl, FixedStep, SharpnessCap)}


def read_step_size(given: Any) -> Any:
    """Read a number as steps of that size, and text as a number or a controller; leave anything else.

    Examples
    --------
    >>> read_step_size("ErrorControl(rtol=1e-6)").rtol
    1e-06
    >>> read_step_size(0.5)
    FixedStep(h=0.5, exact=True)
    """
    if isinstance(given, str):
        return _read(ast_of(given), given)
    if isinstance(given, numbers.Real):
        check_number("step_size", given, above=0)
        return FixedStep(float(given))
    return given


def ast_of(text: str) -> ast.expr:
    """Parse an expression.

    Raises
    ------
    InvalidInputError
        If it is none.
    """
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise InvalidInputError(_expected(text)) from error


def _read(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            raise InvalidInputError(_expected(text))
        return read_step_size(node.value)
    name = node.func if isinstance(node, ast.Call) else node
    if not isinstance(name, ast.Name):
        raise InvalidInputError(_expected(text))
    if name.id not in _NAMED:
        raise UnknownNameError(f"No step-size controller {name.id!r}; {suggest(name.id, _NAMED)}")
    calls = node if isinstance(node, ast.Call) else None
    try:
        values = [_value(each, text) for each in (calls.args if calls else [])]
        options = {str(each.arg): _value(each.value, text) for each in (calls.keywords if calls else [])}
        return _NAMED[name.id](*values, **options)
    except TypeError as error:
        raise InvalidTypeError(f"{text}: {error}") from error


def _value(node: ast.expr, text: str) -> Any:
    """Read an argument: a number, or a controller (the cap of an error control)."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _read(node, text)


def _expected(text: str) -> str:
    return (
        'Expected step_size as a number, or as a controller such as "ErrorControl(rtol=1e-6)" or '
        f'"SharpnessCap(alpha=1.0)", got {text!r}.'
    )
