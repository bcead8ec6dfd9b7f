"""What a record says of a quantity."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """A quantity that is recorded, without its name.

    Parameters
    ----------
    dims : tuple of str, default ()
        Dimensions beside time; () for a number. Their sizes come from the first record.
    long_name : str, default ""
        What it is, in words.
    units : str, default "1"
    dtype : str or None, default "float64"
        As it is kept in the file; None for that of θ.
    """

    dims: tuple[str, ...] = ()
    long_name: str = ""
    units: str = "1"
    dtype: str | None = "float64"
