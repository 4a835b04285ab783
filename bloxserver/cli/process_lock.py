"""A lock that allows one server per SQLite file. The operating system releases it when the process ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

import sqlalchemy as sa


class DatabaseInUse(Exception):
    """Another process holds the lock. The message is its process id, or empty if unknown."""


def lock_database(database_url: str) -> IO[str] | None:
    """Lock the file `NAME.lock` next to the database, until the file is closed. Raises `DatabaseInUse`.

    Returns None without a lock for PostgreSQL, for a database in memory, on Windows, and on a file system that is
    read-only or has no locks.
    """
    url = sa.make_url(database_url)
    name = url.database or ":memory:"
    if sys.platform == "win32" or url.get_backend_name() != "sqlite" or name == ":memory:" or name.startswith("file:"):
        return None
    from fcntl import LOCK_EX, LOCK_NB, flock

    try:
        # Never deleted: a server could hold a lock on the deleted file while another server locks a new file.
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
