"""Faults of the machine that any part can meet, in one plain sentence: no disk, Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

FULL = re.compile(r"no space left|disk (is )?full|quota exceeded", re.IGNORECASE)
CLOSED = re.compile(
    r"read-?only (file ?system|database)|permission denied|unable to open database", re.IGNORECASE
)
LEFT_BYTES = 64 * 1024  # with less room than this a failed write is put down to the full disk
INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended, as shells expect it


class StorageError(OSError):
    """A file cannot be written: the disk is full or the folder read-only; says what to do."""


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into a :class:`StorageError`, whoever reports it.

    Python, SQLite, PyTorch and the JVM each have their own exception for it; PyTorch's does not
    even say why, so the room that is left is looked at too. Other exceptions pass as they are.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        code = getattr(error, "errno", None)
        full = code in {errno.ENOSPC, errno.EDQUOT} or FULL.search(str(error))
        closed = code in {errno.EROFS, errno.EACCES, errno.EPERM} or CLOSED.search(str(error))
        if not (full or closed or isinstance(error, (ValueError, TypeError, LookupError))):
            with contextlib.suppress(OSError):
                full = shutil.disk_usage(path.parent).free < LEFT_BYTES
        if not (full or closed):
            raise
        text = "the disk is full: make room, then run this again."
        if not full:
            text = (
                f"the folder {path.parent.name} cannot be written to: make it writable, or set "
                "HELPERS_HOME to a copy of the project that is."
            )
        fault = StorageError(f"{path.name} was not saved, {text}")
        fault.errno = errno.ENOSPC if full else code or errno.EACCES
        raise fault from None


def command(main: Callable[[], int | None], kept: str = "What was finished is kept") -> int:
    """Run a command and return its exit status; Ctrl-C and a full disk are one line each.

    ``kept`` says what became of the work so far.
    """
    try:
        return main() or 0
    except KeyboardInterrupt:
        print(f"\nStopped by Ctrl-C. {kept}.", file=sys.stderr)
        return INTERRUPTED
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1
