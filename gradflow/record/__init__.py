"""The record of a run: an xarray dataset, in netCDF."""

from functools import partial

from gradflow.moved import refuse_former_name
from gradflow.record.base import Record
from gradflow.record.file_record import FileRecord, differences
from gradflow.record.files import write_atomically
from gradflow.record.memory_record import MemoryRecord
from gradflow.record.output import check_output, what_is_at
from gradflow.record.provenance import check_attributes, provenance, to_json
from gradflow.record.reading import open_run
from gradflow.record.schema import STATIC, Layout

__all__ = [
    "FileRecord",
    "Layout",
    "MemoryRecord",
    "Record",
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

__getattr__ = partial(refuse_former_name, __name__)
