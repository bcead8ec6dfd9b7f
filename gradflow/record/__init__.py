"""The record of a run as an xarray dataset in netCDF."""

from gradflow.record.provenance import check_attributes, provenance, to_json
from gradflow.record.reading import open_run
from gradflow.record.run_record import (
    FileRecord,
    MemoryRecord,
    check_output,
    differences,
    what_is_at,
    write_atomically,
)
from gradflow.record.schema import STATIC, Layout

__all__ = [
    "FileRecord",
    "Layout",
    "MemoryRecord",
    "STATIC",
    "check_attributes",
    "check_output",
    "differences",
    "open_run",
    "provenance",
    "to_json",
    "what_is_at",
    "write_atomically",
]
