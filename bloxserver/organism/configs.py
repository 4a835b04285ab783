"""Validation of a listener's config."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from bloxserver.blocks import templates
from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import AnyBlock, BlockConfig, no_targets
from bloxserver.blocks.checking import knowing
from bloxserver.blocks.names import MESSAGE_ROOTS, ROOTS, SECRETS
from bloxserver.clients.http import HEADER_VALUE, TOKEN
from bloxserver.organism.placeholders import Placeholders
from bloxserver.organism.problems import Path, quoted
from bloxserver.organism.requirements import (
    AddressRequirement,
    MailRequirement,
    ModelRequirement,
    SigningKeyRequirement,
    ValidityRequirement,
)
from bloxserver.organism.sections import Section, nearest_of

MODEL_KEYS = ("prompt", "model", "temperature", "max_tokens")
REQUESTS = ("http.request", "webhook.send")
BRANCH, MAIL = "branch", "email.send"


class Config(NamedTuple):
    """A listener's config, valid or not."""

    block: AnyBlock
    valid: BlockConfig | None
    """Null if the config is invalid."""
    given: dict[str, JsonValue]
    """The config as written, with its placeholders."""
    base_path: Path
    paths: dict[str, Path]
    """The path of each member in the document."""
    templates: frozenset[str]
    """The members that contain placeholders to replace."""
    secrets: frozenset[str]

    def targets(self) -> list[tuple[str, Path]]:
        """Return the listeners that the config names, with their paths. Those of a branch are found even if the config
        is invalid.
        """
        if self.block.name == BRANCH:
            return list(_branch_targets(self.given, self.paths))
        if self.valid is None or self.block.targets is no_targets:
            return []
        return [(name, self.base_path) for name in self.block.targets(self.valid)]


def read_config(
    section: Section, block: AnyBlock | None, placeholders: Placeholders, *, is_loop: bool = False
) -> Config | None:
    """Validate the config. Returns None if there is no block, or if the config is not a mapping.

    Only the config of a loop can refer to `index`.
    """
    names = ROOTS if is_loop else MESSAGE_ROOTS
    key = "config" if section.values.get("config") is not None else "tool_config"
    if key == "config" and section.values.get("tool_config") is not None:
        message = '"tool_config" is an alias of "config", and both are given'
        hint = "move all settings to config"
        section.report.error(section.path_to("tool_config"), "duplicate_key", message, hint, at_key=True)
    written = section.section(key)
    if block is None or (written is None and section.values.get(key) is not None):
        return None
    base_path = section.path_to(key)
    given = dict(written.values) if written else {}
    paths: dict[str, Path] = {name: (*base_path, name) for name in given}
    if block is agent:
        _add_model_keys(section, given, paths)
    used, secrets, rejected = _read_templates(block, given, paths, placeholders, names)
    reported = block.name in REQUESTS and _check_headers(section, given.get("headers"), paths)
    with knowing(names):
        valid = _validated(section, block, given, paths, base_path, rejected, {("headers",)} if reported else ())
    config = Config(block, valid, given, base_path, paths, used, secrets)
    _add_requirements(section, config)
    return config


def _check_headers(section: Section, headers: JsonValue, paths: dict[str, Path]) -> bool:
    """Report headers that are invalid for every value of their placeholders. Returns whether there are any."""
    found = False
    for name, value in headers.items() if isinstance(headers, dict) else ():
        path = (*paths["headers"], name)
        if "{{" in name:
            continue  # reported as a placeholder
        if not TOKEN.fullmatch(name):
            message, hint = f"{quoted(name)} is not a valid header name", "use letters, digits and -, like X-Request-Id"
            section.report.error(path, "invalid_config", message, hint, at_key=True)
            found = True
        if isinstance(value, str) and not all(map(HEADER_VALUE.fullmatch, templates.literal_parts(value))):
            message = f"the value of the header {quoted(name)} must consist of printable ASCII characters"
            section.report.error(path, "invalid_config", message, "remove line breaks, and encode other characters")
            found = True
    return found


def _add_model_keys(section: Section, given: dict[str, JsonValue], paths: dict[str, Path]) -> None:
    """Add the members of an agent's config that are keys of the listener."""
    for name in MODEL_KEYS:
        if section.values.get(name) is None:
            continue
        if given.get(name) is not None:
            message = f"{quoted(name)} is given twice, in the listener and in its config"
            section.report.error(paths[name], "duplicate_key", message, "remove one of them", at_key=True)
        given[name], paths[name] = section.values[name], section.path_to(name)


def _read_templates(
    block: AnyBlock,
    given: dict[str, JsonValue],
    paths: dict[str, Path],
    placeholders: Placeholders,
    names: frozenset[str],
) -> tuple[frozenset[str], frozenset[str], set[str]]:
    """Return the members of the config with placeholders to replace, the names of their secrets, and the members with
    invalid placeholders.
    """
    used: set[str] = set()
    secrets: set[str] = set()
    rejected: set[str] = set()
    allowed = ", ".join(sorted(block.templates))
    hint = f"secrets may be in {allowed}" if allowed else "use it in a block like http.request, which calls a server"
    for name, value in given.items():
        path = paths[name]
        if name in block.templates:
            placeholders.collect_secrets(path, value)
            if not placeholders.are_valid(path, value, names | {SECRETS}):
                rejected.add(name)
            elif templates.has_placeholders(value):
                used.add(name)
                secrets |= templates.secret_names(value)
            continue
        if placeholders.reject_secrets(path, value, hint):
            rejected.add(name)
        if name in block.rendered:
            if not placeholders.are_valid(path, value, names):
                rejected.add(name)
        else:
            placeholders.report_unreplaced(path, value)
    return frozenset(used), frozenset(secrets), rejected


def _validated(
    section: Section,
    block: AnyBlock,
    given: dict[str, JsonValue],
    paths: dict[str, Path],
    base_path: Path,
    rejected: Collection[str],
    reported: Collection[tuple[int | str, ...]],
) -> BlockConfig | None:
    """Return the config, or None. Problems of `rejected` members and at `reported` locations are not reported again."""
    try:
        valid: BlockConfig = block.config.model_validate(given)
    except ValidationError as error:
        reasons = error.errors(include_url=False, include_context=False, include_input=False)
        for reason in reasons:
            location = reason["loc"]
            if (location and location[0] in rejected) or location in reported or _is_consequence(reason, reasons):
                continue
            path = (*paths.get(str(location[0]), (*base_path, location[0])), *location[1:]) if location else base_path
            where = ".".join(str(part) for part in path[2:])
            unknown = reason["type"] == "extra_forbidden"
            message = (
                f"{where} is not a setting of {quoted(block.name)}"
                if unknown
                else f"{where}: {reason['msg'].removeprefix('Value error, ')}"
            )
            hint = _config_hint(section, block, str(location[-1]) if location else "", unknown=unknown)
            section.report.error(path, "invalid_config", message, hint, at_key=unknown)
        return None
    return valid


def _is_consequence(reason: ErrorDetails, reasons: Iterable[ErrorDetails]) -> bool:
    """Whether a list is too short only because some of its items are invalid."""
    depth = len(reason["loc"])
    return reason["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == reason["loc"] for other in reasons
    )


def _config_hint(section: Section, block: AnyBlock, name: str, *, unknown: bool) -> str:
    fields = {field.alias or key: field for key, field in block.config.model_fields.items()}
    if unknown:
        known = f"its settings are {', '.join(fields)}" if fields else "it has no settings"
        return section.report.suggest(name, nearest_of(fields), known)
    described = fields[name].description if name in fields else None
    return f"correct the value; its description: {described}" if described else f"see the settings of {block.name}"


def _branch_targets(given: dict[str, JsonValue], paths: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    cases = given.get("cases")
    for number, case in enumerate(cases if isinstance(cases, list) else []):
        if isinstance(case, dict) and isinstance(to := case.get("to"), str):
            yield to, (*paths["cases"], number, "to")
    if isinstance(otherwise := given.get("otherwise"), str):
        yield otherwise, paths["otherwise"]


def _add_requirements(section: Section, config: Config) -> None:
    """Add the requirements of the config on the installation."""
    given, report = config.given, section.report
    if config.block is agent:
        path = config.paths.get("model") or section.path_to("prompt")
        model = given.get("model")
        listener = section.text_or_empty("name")
        place = report.document.place_of(path)
        named = model if isinstance(model, str) and model else None
        report.requirements.append(ModelRequirement(place, path, listener, named))
    url = given.get("url")
    if config.block.name in REQUESTS and isinstance(url, str):
        path = config.paths["url"]
        report.requirements.append(AddressRequirement(report.document.place_of(path), path, url))
    if config.block.awaits_call:
        path = section.path_to("handler")
        name = section.text_or_empty("name")
        report.requirements.append(SigningKeyRequirement(report.document.place_of(path), path, name))
    if config.block.name == MAIL and given.get("server") is None:
        sender = given.get("from")
        path = config.paths["from"] if sender is not None else section.path_to("handler")
        need = MailRequirement(report.document.place_of(path), path, sender if isinstance(sender, str) else None)
        report.requirements.append(need)
    if config.secrets and config.valid is not None:
        place, validate = report.document.place_of_key(config.base_path), config.block.config.model_validate
        report.requirements.append(ValidityRequirement(place, config.base_path, {**given}, validate))
