"""What gradflow raises and warns with.

Two kinds of failure are kept apart. A caller's mistake raises at once: an error that also derives from
the builtin a user would catch (``ValueError``, ``TypeError``, ``FileExistsError``, …). A numerical ending
(a loss that is not finite, a step that underflows) is a *status* of the run, and becomes an
:class:`IntegrationError` only with ``on_failure="raise"``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class GradflowError(Exception):
    """Base of everything that gradflow raises."""


class InvalidInputError(GradflowError, ValueError):
    """An argument has a value that can't be used."""


class InvalidTypeError(GradflowError, TypeError):
    """An argument has a type or dtype that can't be used."""


class UnknownNameError(InvalidInputError):
    """A method, dataset, architecture, … of that name doesn't exist."""


class UnknownOptionError(InvalidTypeError):
    """A method was given an option that it doesn't have."""


class NonDeterministicLossError(InvalidInputError):
    """Two evaluations of the loss at the same θ differ."""


class CriterionError(InvalidInputError):
    """The criterion's value on the whole data set isn't a weighted mean of its values on chunks."""


class InexactDerivativeError(InvalidInputError):
    """A derivative of the loss, as torch computes it, isn't the derivative."""


class NonFiniteLossError(InvalidInputError):
    """The loss or its gradient isn't finite where the run was to start."""


class OutputExistsError(GradflowError, FileExistsError):
    """The output is there already, and ``overwrite=True`` was not given."""


class RecordingError(GradflowError, OSError):
    """Records couldn't be written: a full disk, say.

    Attributes
    ----------
    dataset : xarray.Dataset or None
        All that was recorded, what is not on disk included.
    """

    dataset: Any = None


class ResumeError(InvalidInputError):
    """A run can't be resumed as asked: it is another run, or there is none to resume."""


class RunNotFoundError(GradflowError, FileNotFoundError):
    """There is neither a finished run nor the segments of an unfinished one at a path."""


class DatasetNotFoundError(GradflowError, FileNotFoundError):
    """A data set that isn't shipped is not where it was looked for."""


class IntegrationError(GradflowError, RuntimeError):
    """A run ended for a numerical reason.

    Attributes
    ----------
    status : str
        Which one, see :class:`gradflow.driver.Status`.
    t, loss : float
        Time and loss of the last good state.
    step : int
        Accepted steps up to there.
    dataset : xarray.Dataset or None
        What was recorded up to there.
    path : str or None
        Where it was recorded.
    """

    def __init__(
        self,
        message: str,
        *,
        status: str,
        t: float,
        step: int,
        loss: float,
        dataset: Any = None,
        path: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.t = t
        self.step = step
        self.loss = loss
        self.dataset = dataset
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with everything that it carries, so that it passes between processes."""
        return _integration_error, (str(self), dict(self.__dict__))


def _integration_error(message: str, fields: dict[str, Any]) -> IntegrationError:
    return IntegrationError(message, **fields)


class GradflowWarning(UserWarning):
    """Base of gradflow's warnings."""


class IntegrationWarning(GradflowWarning):
    """A run ended for a numerical reason; what was recorded up to there is returned."""


class ConventionWarning(GradflowWarning):
    """Something is computed by a convention that the caller may not expect."""


class RecordWarning(GradflowWarning):
    """A part of a record is missing or can't be read."""


class ResumeWarning(GradflowWarning):
    """A run goes on, or starts anew, in another way than the caller may expect."""


class CheckWarning(GradflowWarning):
    """The loss looks wrong in a way that may be meant."""


class KinkWarning(GradflowWarning):
    """The loss isn't smooth, so that orders and second derivatives mean less than they say."""


def suggest(name: object, valid: Iterable[str], also: Iterable[str] = ()) -> str:
    """Make the end of a message about an unknown name: the nearest valid one, and all of them.

    Names in `also` are suggested when they are near, but not listed.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), [*names, *also], n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}Valid: {', '.join(names) if names else 'none'}."
