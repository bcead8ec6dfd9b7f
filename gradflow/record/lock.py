"""The lock of a directory of segments: one process holds it, until it ends."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

from gradflow.errors import RecordWarning

LOCK = "lock"
#: Errors of a file system without locks: Lustre mounted without them, some network file systems.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def take_lock(directory: Path) -> IO[str]:
    """Lock a directory for this process, which loses the lock when it ends in any way.

    If the file system has no locks, warn, and go on without.

    Returns
    -------
    file
        Holds the lock until it is closed.

    Raises
    ------
    BlockingIOError
        If another process holds it, or has removed the directory in the meantime.
    """
    path = directory / LOCK
    try:
        file = path.open("a")
    except FileNotFoundError as error:
        raise BlockingIOError(f"{directory} was removed by another process") from error
    try:
        if not _hold(file):
            warnings.warn(
                f"The file system of {directory.parent} has no locks. Runs are recorded there without: resume and "
                "overwrite can't see whether another process still writes to the same run, so let there be one.",
                RecordWarning,
                stacklevel=6,  # in integrate()
            )
        # Who held the lock before may have removed the directory, and another may have made it anew.
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise BlockingIOError(f"{directory} was removed by another process")
    except BaseException:
        file.close()
        raise
    return file


def is_held(directory: Path) -> bool | None:
    """Return whether a process holds the lock of a directory; None if that can't be found out."""
    if fcntl is None:
        return None  # type: ignore[unreachable]
    try:
        with (directory / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    return False


def _hold(file: IO[str]) -> bool:
    """Lock a file; return False if the file system has no locks."""
    if fcntl is None:
        return False  # type: ignore[unreachable]
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True
