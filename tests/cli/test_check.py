"""`bloxserver check`: the problems that it prints, and its exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bloxserver.cli import app
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.organism.listeners import LISTENER_KEYS
from bloxserver.settings import get_settings

INVALID = """\
organism: {name: x}
listeners:
  - {name: a, description: d, handler: ecko, unheard_of: 1}
"""


@pytest.mark.parametrize(
    ("text", "status", "lines"),
    [
        (DEFAULT_ORGANISM, 0, ["<stdin>: 0 errors, 0 warnings"]),
        (
            INVALID,
            1,
            [
                '<stdin>:3:40: error: unknown handler "ecko" (did you mean "echo"?) [unknown_handler]',
                '<stdin>:3:46: warning: the key "unheard_of" is unknown '
                f"(the known keys are {', '.join(LISTENER_KEYS)}) [unknown_key]",
                "<stdin>: 1 errors, 1 warnings",
            ],
        ),
    ],
)
def test_check_prints_every_problem(text: str, status: int, lines: list[str]) -> None:
    result = CliRunner().invoke(app, ["check", "-"], input=text)
    assert result.output.splitlines() == lines
    assert result.exit_code == status


NEEDS_SETTINGS = """\
organism: {name: x}
listeners:
  - {name: a, description: d, prompt: p, peers: [b, {to: mail, on: answer}]}
  - {name: b, description: d, handler: http.request, config: {url: "http://127.0.0.{{ payload }}/"}}
  - {name: c, description: d, handler: http.request, config: {url: "http://127.0.0.1:9/{{ payload }}"}}
  - {name: mail, description: d, handler: email.send, config: {to: a@b.example, subject: s, text: t}}
  - {name: key, description: d, handler: http.request, config: {url: "https://x.example", body: "{{ secrets.A }}"}}
"""


def test_check_reports_missing_settings() -> None:
    def check(*options: str, **environment: str) -> list[str]:
        """Return the line and the code of each problem."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            get_settings.cache_clear()
            result = CliRunner().invoke(app, ["check", *options, "-"], input=NEEDS_SETTINGS)
        get_settings.cache_clear()
        *problems, _ = result.output.splitlines()
        assert result.exit_code == bool(problems)
        return [line.removeprefix("<stdin>:").partition(":")[0] + line[line.rindex("[") :] for line in problems]

    missing = ["3[missing_llm]", "5[address_refused]", "6[missing_mail]", "7[missing_secret]"]
    assert check() == missing
    assert check("--no-settings") == []
    models = {"LLM_API_KEY": "k", "LLM_MODEL": "m"}
    mail = {"SMTP_HOST": "mail.example", "SMTP_FROM": "flows@example.com"}
    addresses = {"SSRF_ALLOW_CIDRS": "127.0.0.0/8"}
    secrets = {"API_KEY_ENCRYPTION_KEY": "k" * 32}
    for number, configured in enumerate((models, addresses, mail, secrets)):
        assert check(**configured) == missing[:number] + missing[number + 1 :]
    assert check(**models, **mail, **addresses, **secrets) == []


def test_check_of_a_file_reports_invalid_utf8(tmp_path: Path) -> None:
    file = tmp_path / "organism.yaml"
    file.write_text(DEFAULT_ORGANISM)
    assert CliRunner().invoke(app, ["check", str(file)]).exit_code == 0
    file.write_bytes(b"organism:\n  name: \xff")
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 1
    assert result.output.startswith(f"{file}:2:9: error: the definition is not UTF-8 text")
    assert CliRunner().invoke(app, ["check", str(tmp_path / "none")]).exit_code == 2
