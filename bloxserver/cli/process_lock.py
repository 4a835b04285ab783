"""One server for one SQLite file: by a lock that the system gives back however the process ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

import sqlalchemy as sa


class DatabaseInUse(Exception):
    """Another process has the lock; its id, as far as it can be told."""


def lock_database(database_url: str) -> IO[str] | None:
    """Take the lock beside the database, until the file is closed; raises `DatabaseInUse`.

    None where there is nothing to lock: on PostgreSQL, in memory, or on a file system that we cannot write or lock.
    """
    url = sa.make_url(database_url)
    name = url.database or ":memory:"
    if sys.platform == "win32" or url.get_backend_name() != "sqlite" or name == ":memory:" or name.startswith("file:"):
        return None
    from fcntl import LOCK_EX, LOCK_NB, flock

    try:
        # Never removed: the next server could hold what is removed, and the one after that would take another.
        file = Path(f"{os.path.realpath(name)}.lock").open("a+", encoding="utf-8")  # noqa: SIM115
    except OSError:
        return None
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(20).strip()
        file.close()
        raise DatabaseInUse(holder) from None
    except OSError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
