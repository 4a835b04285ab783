"""Column types under the import path that migrations use; a re-export of `bloxserver.models.types`."""

from bloxserver.models.types import UtcDateTime, database_now, database_uuid, enum_text

__all__ = ["UtcDateTime", "database_now", "database_uuid", "enum_text"]
