"""`bloxserver emails preview`."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from bloxserver.account_emails.kinds import EmailKind
from bloxserver.cli import app
from tests.clerk import override_settings


def test_preview_writes_each_email(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["emails", "preview", "--dir", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    assert [line.partition(":")[0] for line in result.output.splitlines()] == [*EmailKind]
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {f"{kind}{ending}" for kind in EmailKind for ending in (".txt", ".html")}
    text = (tmp_path / "new/trial_ending.txt").read_text(encoding="utf-8")
    assert text.startswith("Subject: Your trial ends on 13 December 2026\n\nHello Ada Lovelace,\n\n")


def test_preview_uses_templates_of_the_operator(tmp_path: Path) -> None:
    (tmp_path / "trial_ending.txt").write_text("Subject: Soon, {{ name }}\n\nBye", encoding="utf-8")
    with override_settings(EMAIL_TEMPLATES_DIR=str(tmp_path)):
        result = CliRunner().invoke(app, ["emails", "preview", "--dir", str(tmp_path / "new")])
    assert "trial_ending: Soon, Ada Lovelace\n" in result.output


def test_preview_names_an_unusable_template(tmp_path: Path) -> None:
    (tmp_path / "trial_ending.html").write_text("{{ wrong }}", encoding="utf-8")
    with override_settings(EMAIL_TEMPLATES_DIR=str(tmp_path)):
        result = CliRunner().invoke(app, ["emails", "preview", "--dir", str(tmp_path / "new")])
    assert result.exit_code == 1
    assert "trial_ending.html: UndefinedError: 'wrong' is undefined" in result.stderr
    assert not (tmp_path / "new").exists()


def test_preview_names_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["emails", "preview", "--dir", str(tmp_path / "file")])
    assert (result.exit_code, "the files cannot be written" in result.stderr) == (1, True)
