"""A progress line on the terminal."""

from __future__ import annotations

import math
import sys
from types import TracebackType

from tqdm import tqdm

from gradflow.driver.stepper import StepReport


class Bar(tqdm):
    """A bar that starts no thread to watch over itself."""

    monitor_interval = 0


class Progress:
    """Shows t, loss, λ₁ and cost on standard error while a run goes on.

    Parameters
    ----------
    shown : bool or None
        None: when standard error is a terminal.
    t_max : float or None
    max_steps : int or None
        What the bar is full at, the first that is given.
    """

    def __init__(self, shown: bool | None, t_max: float | None, max_steps: int | None) -> None:
        self._by_time = t_max is not None
        self._bar = Bar(
            total=t_max if t_max is not None else max_steps,
            disable=not (sys.stderr.isatty() if shown is None else shown),
            bar_format="{desc}{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]{postfix}",
            mininterval=0.2,
        )

    def update(self, report: StepReport) -> None:
        """Show an accepted step."""
        if self._bar.disable:
            return
        at = report.t if self._by_time else report.step
        self._bar.update(min(at, self._bar.total or at) - self._bar.n)
        λ1 = "" if math.isnan(report.sharpness) else f"  λ₁ {report.sharpness:.4g}"
        self._bar.set_postfix_str(
            f"t {report.t:.4g}  step {report.step}  loss {report.loss:.4g}{λ1}  "
            f"gradients {report.n_gradients}  H·v {report.n_hvps}",
            refresh=False,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
