"""The analysis of recorded runs: xarray in, xarray out."""

from functools import partial

from gradflow.analysis.combine import combine
from gradflow.analysis.compare import compare, label
from gradflow.analysis.predictions import is_optimiser
from gradflow.analysis.summary import summary
from gradflow.analysis.thresholds import crossing_time
from gradflow.moved import refuse_former_name

__all__ = ["combine", "compare", "crossing_time", "is_optimiser", "label", "summary"]

__getattr__ = partial(refuse_former_name, __name__)
