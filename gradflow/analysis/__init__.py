"""The analysis of recorded runs: xarray in, xarray out."""

from functools import partial

from gradflow.analysis.combine import combine
from gradflow.analysis.compare import compare, crossing_time, label
from gradflow.analysis.summary import summary
from gradflow.moved import refuse_former_name

__all__ = ["combine", "compare", "crossing_time", "label", "summary"]

__getattr__ = partial(refuse_former_name, __name__)
