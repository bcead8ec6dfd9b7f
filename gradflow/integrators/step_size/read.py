"""A step-size controller as a user gives it."""

from __future__ import annotations

import ast
import math
import numbers
from typing import Any

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError, suggest
from gradflow.integrators.step_size.base import StepSize
from gradflow.integrators.step_size.error_control import ErrorControl
from gradflow.integrators.step_size.fixed import FixedStep
from gradflow.integrators.step_size.sharpness import SharpnessCap

#: Those that text may name.
_NAMED: dict[str, type] = {cls.__name__: cls for cls in (ErrorControl, FixedStep, SharpnessCap)}


def read_step_size(given: Any) -> StepSize:
    """Read a number as steps of that size, text as a number or a controller, and return a controller as it is.

    Raises
    ------
    InvalidInputError, InvalidTypeError, UnknownNameError
        If it is none of these.

    Examples
    --------
    >>> read_step_size("ErrorControl(rtol=1e-6)").rtol
    1e-06
    >>> read_step_size(0.5)
    FixedStep(h=0.5, exact=True)

    What a controller prints is read again:

    >>> read_step_size("SharpnessCap(alpha=1.0, max_step=inf)").max_step
    inf
    """
    if isinstance(given, str):
        given = _parse(given)
    if isinstance(given, FixedStep):
        check_number("step_size", given.h, above=0)
    if isinstance(given, StepSize):
        return given
    if isinstance(given, numbers.Real):
        check_number("step_size", given, above=0)
        return FixedStep(float(given))
    if isinstance(given, type) and issubclass(given, StepSize):
        raise InvalidTypeError(f"Expected step_size as an instance, got the class: {given.__name__}(…).")
    raise InvalidTypeError(
        "Expected step_size as a number, a controller such as ErrorControl(rtol=1e-6), or text that names one, got "
        f"{type(given).__name__}."
    )


def _parse(text: str) -> Any:
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, _NeitherError) as error:
        raise _unexpected(text) from error
    except TypeError as error:
        raise InvalidTypeError(f"{text}: {error}") from error
    if not isinstance(value, numbers.Real | StepSize):
        raise _unexpected(text)
    return value


def _unexpected(text: str) -> InvalidInputError:
    return InvalidInputError(
        'Expected step_size as a number, or as a controller such as "ErrorControl(rtol=1e-6)" or '
        f'"SharpnessCap(alpha=1.0)", got {text!r}.'
    )


class _NeitherError(Exception):
    """Neither a literal nor a controller."""


def _value(node: ast.expr) -> Any:
    """Evaluate a literal or ``inf``; or the name or the call of a controller, whose arguments are of the same kind."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if isinstance(node, ast.Name) and node.id == "inf":
        return math.inf
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or any(each.arg is None for each in call.keywords):
        raise _NeitherError
    name = call.func.id
    if name not in _NAMED:
        raise UnknownNameError(f"No step-size controller {name!r}; {suggest(name, _NAMED)}")
    options = {str(each.arg): _value(each.value) for each in call.keywords}
    return _NAMED[name](*[_value(each) for each in call.args], **options)
