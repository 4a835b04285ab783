"""The database under the import path of the HTTP contract; a re-export of `bloxserver.models.database`."""

from bloxserver.models.base import Base
from bloxserver.models.database import (
    async_session_maker,
    database,
    engine,
    get_db,
    get_db_context,
    init_db,
)

__all__ = ["Base", "async_session_maker", "database", "engine", "get_db", "get_db_context", "init_db"]
