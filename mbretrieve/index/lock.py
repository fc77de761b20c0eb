"""One writer at a time: a lock that the operating system lets go when its holder dies, however it dies."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mbretrieve.errors import IndexBusyError


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's write lock. Raises: IndexBusyError if another process does, or it cannot be written."""
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise IndexBusyError(f"{folder} cannot be written ({error.strerror}): write to a folder of your own") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise IndexBusyError(f"{folder} is being written by process {holder}: try again when it is done") from None
        except OSError as error:
            raise IndexBusyError(f"{folder} cannot be locked ({error.strerror}): move it to a local disk") from error
        # The number only serves the message above; a full disk must not stop a delete that would free it.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
