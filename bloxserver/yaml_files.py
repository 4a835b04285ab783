"""Reads YAML files of the operator, at startup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bloxserver.errors import SettingsError


def read_yaml_file(setting: str, path: Path) -> object:
    """Return the document in the file that a setting names; None if the file is empty.

    Raises `SettingsError`, whose message names the setting.
    """
    import yaml  # only for installations with such a file

    try:
        return yaml.load(path.read_text(encoding="utf-8"), _strict_loader())  # noqa: S506  # nosec B506
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError([f"{setting} cannot be read: {reason}"]) from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise SettingsError([f"{setting} is not valid YAML: {error.problem}{line}"]) from None
    except (yaml.YAMLError, ValueError):  # such as a date that does not exist
        raise SettingsError([f"{setting} is not valid YAML"]) from None


def _strict_loader() -> type[Any]:
    """A loader that refuses repeated keys, of which YAML would silently use the last one."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            for index, (key, _) in enumerate(node.value):
                if key.value in names[:index]:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value} is given twice", problem_mark=key.start_mark
                    )
            return super().construct_mapping(node, deep)

    return StrictLoader
