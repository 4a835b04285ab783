"""Renders emails from templates, which an operator can replace.

Values of users, such as names, are one line of printable text when a template gets them. HTML is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from bloxserver.account_emails.kinds import SAMPLES, EmailKind
from bloxserver.errors import SettingsError
from bloxserver.settings import Settings

if TYPE_CHECKING:
    from jinja2 import Environment

log = structlog.stdlib.get_logger("bloxserver.account_emails")

OWN = Path(__file__).with_name("templates")
LAYOUT = "_layout"
ENDINGS = (".txt", ".html")
SUBJECT = "Subject:"
MAX_SUBJECT = 200
MAX_VALUE = 200
"""Characters of a text that a template gets."""
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class Rendered(NamedTuple):
    subject: str
    text: str
    html: str


class TemplateFailed(Exception):
    """A template cannot be rendered. The message names the file and the problem."""


class Templates:
    """The templates, with those of an operator before ours."""

    def __init__(self, directory: str | None = None) -> None:
        """Raises `SettingsError` for each template in the directory that cannot be used."""
        self._own = _environment([OWN])
        self._chosen = self._own
        if directory is not None:
            self._chosen = _environment([Path(directory), OWN])
            problems = _problems(Path(directory), self._chosen)
            if problems:
                raise SettingsError([f"EMAIL_TEMPLATES_DIR: {problem}" for problem in problems])

    def render(
        self, kind: EmailKind, data: Mapping[str, Any], *, name: str | None, billing_url: str | None
    ) -> Rendered:
        """The email, with the template of the operator if there is one, and with ours if theirs fails.

        `billing_url` is where users change their plan; None if they cannot. Raises `TemplateFailed`.
        """
        values = {**data, "name": name, "billing_url": billing_url}
        try:
            return _render(self._chosen, kind, values)
        except TemplateFailed as error:
            if self._chosen is self._own:
                raise
            log.error("template of an email failed; the built-in one is used", kind=kind.value, error=str(error))
            return _render(self._own, kind, values)


def billing_url_of(settings: Settings) -> str | None:
    """The page on which users change their plan; None without billing."""
    return settings.billing_cancel_url if settings.stripe_secret_key is not None else None


def check_templates(directory: str | None) -> None:
    """Raise `SettingsError` if a template in `EMAIL_TEMPLATES_DIR` cannot be used."""
    if directory is not None:
        Templates(directory)


def plain(value: Any) -> Any:
    """The value with each text as one line of printable characters, of limited length."""
    if isinstance(value, str):
        cut = value if len(value) <= MAX_VALUE else f"{value[: MAX_VALUE - 1]}…"
        return "".join(each if each.isprintable() else " " for each in cut).strip()
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def _environment(directories: list[Path]) -> Environment:
    import jinja2  # only workers need it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(directories),
        autoescape=jinja2.select_autoescape(["html"], default_for_string=False, default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {"date": _date, "number": _number, "bytes": _bytes}
    return environment


def _render(environment: Environment, kind: EmailKind, values: Mapping[str, Any]) -> Rendered:
    safe = plain(values)
    text, html = (_render_file(environment, f"{kind}{ending}", safe) for ending in ENDINGS)
    first, _, body = text.partition("\n")
    subject = first.removeprefix(SUBJECT).strip()
    if not first.startswith(SUBJECT) or not subject:
        raise TemplateFailed(f"{kind}.txt: the first line must be `{SUBJECT} …`")
    # Conditions in a template leave empty lines.
    return Rendered(subject[:MAX_SUBJECT], re.sub(r"\n{3,}", "\n\n", body).strip() + "\n", html.strip() + "\n")


def _render_file(environment: Environment, file: str, values: Mapping[str, Any]) -> str:
    import jinja2

    try:
        return environment.get_template(file).render(values)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateFailed(f"{error.name or file}, line {error.lineno}: {error.message}") from None
    except jinja2.TemplateNotFound as error:
        raise TemplateFailed(f"{file}: there is no template {error.name}") from None
    except (UnicodeDecodeError, OSError):
        raise TemplateFailed(f"{file}: the file cannot be read, or is not UTF-8") from None
    except Exception as error:  # a template can raise any error
        # Without the error's text, which may contain a value; that of an undefined name contains the name.
        reason = f": {error.message}" if isinstance(error, jinja2.UndefinedError) else ""
        raise TemplateFailed(f"{file}: {type(error).__name__}{reason}") from None


def _problems(directory: Path, environment: Environment) -> list[str]:
    """What keeps the templates in the directory from being used, a line for each problem."""
    if not directory.is_dir():
        return [f"{directory} is not a directory"]
    known = {f"{name}{ending}" for name in (*EmailKind, LAYOUT) for ending in ENDINGS}
    try:
        files = sorted(path.name for path in directory.iterdir() if path.suffix in ENDINGS)
    except OSError as error:
        return [f"{directory} cannot be read: {error.strerror}"]
    # A template can include files that begin with an underscore.
    problems = [f"{file} is not the name of a template" for file in files if file not in known and file[0] != "_"]
    for kind, samples in SAMPLES.items():
        for sample in samples:
            for name, url in (("Ada", "https://example.com/billing"), (None, None)):
                try:
                    _render(environment, kind, {**sample, "name": name, "billing_url": url})
                except TemplateFailed as error:
                    problems.append(str(error))
    return [*dict.fromkeys(problems)]


def _date(text: str) -> str:
    moment = datetime.fromisoformat(text)
    return f"{moment.day} {moment:%B %Y}"


def _number(value: float) -> str:
    return f"{value:,}"


def _bytes(value: float) -> str:
    for unit in UNITS[:-1]:
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.3g} {UNITS[-1]}"
