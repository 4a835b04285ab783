"""Emails as their templates make them, and templates of an operator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bloxserver.account_emails.kinds import SAMPLES, EmailKind
from bloxserver.account_emails.rendering import LAYOUT, MAX_VALUE, OWN, Rendered, Templates, check_templates, plain
from bloxserver.errors import SettingsError

ROOT = Path(__file__).parents[2]
URL = "https://example.com/billing?a=1&b=2"


def render(templates: Templates, kind: EmailKind, number: int = 0, name: str | None = "Ada") -> Rendered:
    return templates.render(kind, SAMPLES[kind][number], name=name, billing_url=URL)


def test_each_kind_has_a_text_and_a_page() -> None:
    names = {path.name for path in OWN.iterdir()}
    assert names == {f"{kind}{ending}" for kind in (*EmailKind, LAYOUT, "_flows") for ending in (".txt", ".html")}


@pytest.mark.parametrize("kind", EmailKind)
def test_each_kind_is_rendered_with_each_sample(kind: EmailKind) -> None:
    for number in range(len(SAMPLES[kind])):
        email = render(Templates(), kind, number)
        assert "\n" not in email.subject
        for text in (email.text, email.html):
            assert "Ada" in text
            assert "None" not in text
            assert "{" not in text
        assert URL in email.text
        assert "a=1&amp;b=2" in email.html
        assert "\n\n\n" not in email.text


def test_document_has_a_rendered_example() -> None:
    email = Templates().render(EmailKind.USAGE_LIMIT, SAMPLES[EmailKind.USAGE_LIMIT][0], name="Ada", billing_url=URL)
    assert f"Subject: {email.subject}\n\n{email.text}" in (ROOT / "docs/emails.md").read_text(encoding="utf-8")


def test_document_has_each_kind() -> None:
    document = (ROOT / "docs/emails.md").read_text(encoding="utf-8")
    assert [kind for kind in EmailKind if f"| `{kind}` |" not in document] == []


def test_notice_names_the_price_or_the_hard_limit() -> None:
    hard, overage, storage, priced = (render(Templates(), EmailKind.USAGE_WARNING, number).text for number in range(4))
    assert "The limit is hard" in hard
    assert f"higher limit: {URL}" in hard
    assert "0.50 USD for 1,000 runs" in overage
    assert "higher limit" not in overage
    assert "858 MiB of the 1 GiB of storage" in storage
    assert "requests that would store more are rejected" in storage
    assert "0.10 USD for each GB" in priced
    assert "rejected" not in priced


def test_email_without_a_name_and_without_billing() -> None:
    email = Templates().render(EmailKind.USAGE_LIMIT, SAMPLES[EmailKind.USAGE_LIMIT][0], name=None, billing_url=None)
    assert email.text.startswith("Hello,\n")
    assert "billing" not in email.text + email.html


HOSTILE = 'Ada\r\nBcc: x@example.com\r\n\r\n<img src=x onerror="f()">\u2028\x00\ud800{{ 7 * 7 }}'


def test_names_are_one_line_and_escaped() -> None:
    data = SAMPLES[EmailKind.DOWNGRADED_TO_FREE][0] | {"plan": HOSTILE, "running": [HOSTILE]}
    email = Templates().render(EmailKind.DOWNGRADED_TO_FREE, data, name=HOSTILE, billing_url=None)
    shown = 'Ada  Bcc: x@example.com    <img src=x onerror="f()">   {{ 7 * 7 }}'
    assert shown in email.subject
    assert f"\n- {shown}\n" in email.text
    assert f"Hello {shown}," in email.text
    assert "<img" not in email.html
    assert "&lt;img" in email.html
    for text in email:
        assert not {"\r", "\0", "\u2028", "\ud800"} & {*text}


def test_long_names_are_cut() -> None:
    assert plain("x" * 1_000) == "x" * (MAX_VALUE - 1) + "…"
    assert plain({"a": ["b\n", 1, None]}) == {"a": ["b", 1, None]}


class TestOverrides:
    def test_file_replaces_ours(self, tmp_path: Path) -> None:
        (tmp_path / "trial_started.txt").write_text("Subject: Welcome {{ name }}\n\nUntil {{ trial_ends_at | date }}.")
        templates = Templates(str(tmp_path))
        email = render(templates, EmailKind.TRIAL_STARTED)
        assert (email.subject, email.text) == ("Welcome Ada", "Until 13 December 2026.\n")
        assert email.html == render(Templates(), EmailKind.TRIAL_STARTED).html
        assert render(templates, EmailKind.TRIAL_ENDING) == render(Templates(), EmailKind.TRIAL_ENDING)

    def test_layout_is_replaced_in_all_pages(self, tmp_path: Path) -> None:
        (tmp_path / "_footer.html").write_text("Example Inc.")
        (tmp_path / "_layout.html").write_text("{% block body %}{% endblock %}{% include '_footer.html' %}")
        for kind in EmailKind:
            assert render(Templates(str(tmp_path)), kind).html.endswith("</p>\nExample Inc.\n")

    @pytest.mark.parametrize(
        ("file", "content", "problem"),
        [
            ("trial_ending.txt", b"Subject: x\n{{ wrong }}", "trial_ending.txt: UndefinedError: 'wrong' is undefined"),
            ("trial_ending.html", b"\n{% if %}", "trial_ending.html, line 2: Expected an expression"),
            ("trial_ending.txt", b"Hello", "trial_ending.txt: the first line must be `Subject: …`"),
            ("trial_ending.txt", b"Subject: \nHello", "trial_ending.txt: the first line must be `Subject: …`"),
            ("trial_ending.html", b"\xff", "trial_ending.html: the file cannot be read, or is not UTF-8"),
            ("trial_ending.html", b"{{ 1 / 0 }}", "trial_ending.html: ZeroDivisionError"),
            ("trial_ending.html", b"{% include 'no' %}", "trial_ending.html: there is no template no"),
            ("trail_ending.html", b"x", "trail_ending.html is not the name of a template"),
            # Only the second sample, or a user without a name, reaches these.
            ("usage_limit.html", b"{% if usd_per_thousand %}{{ x }}{% endif %}", "usage_limit.html: UndefinedError"),
            ("trial_ending.html", b"{{ name.upper() }}", "trial_ending.html: UndefinedError"),
        ],
    )
    def test_unusable_file_is_named_at_startup(self, tmp_path: Path, file: str, content: bytes, problem: str) -> None:
        (tmp_path / file).write_bytes(content)
        with pytest.raises(SettingsError) as caught:
            check_templates(str(tmp_path))
        assert f"EMAIL_TEMPLATES_DIR: {problem}" in str(caught.value)

    def test_missing_directory_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="is not a directory"):
            check_templates(str(tmp_path / "none"))
        check_templates(None)

    def test_ours_is_used_if_theirs_fails_later(self, tmp_path: Path) -> None:
        """The samples do not reach each branch of a template of an operator."""
        (tmp_path / "trial_ending.html").write_text("{% if name == 'Eve' %}{{ wrong }}{% endif %}x")
        templates = Templates(str(tmp_path))
        assert render(templates, EmailKind.TRIAL_ENDING).html == "x\n"
        with capture_logs() as lines:
            email = render(templates, EmailKind.TRIAL_ENDING, name="Eve")
        assert email == render(Templates(), EmailKind.TRIAL_ENDING, name="Eve")
        assert [(line["kind"], line["error"]) for line in lines] == [
            ("trial_ending", "trial_ending.html: UndefinedError: 'wrong' is undefined")
        ]


def test_samples_are_json() -> None:
    assert json.loads(json.dumps(SAMPLES)) == {kind.value: samples for kind, samples in SAMPLES.items()}
