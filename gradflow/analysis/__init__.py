"""What can be learnt from the files: xarray in, xarray out."""

from gradflow.analysis.compare import compare, crossing_time
from gradflow.analysis.summary import summary

__all__ = ["compare", "crossing_time", "summary"]
