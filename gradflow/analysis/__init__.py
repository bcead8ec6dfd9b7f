"""The analysis of recorded runs: xarray in, xarray out."""

from gradflow.analysis.combine import combine
from gradflow.analysis.compare import compare, crossing_time, label
from gradflow.analysis.summary import summary

__all__ = ["combine", "compare", "crossing_time", "label", "summary"]
