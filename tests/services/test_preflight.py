"""Requirements of a definition that the settings, or the user's secrets, do not meet."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.encryption import get_cipher
from bloxserver.models.tables import UserRecord
from bloxserver.organism.requirements import (
    AddressRequirement,
    MailRequirement,
    ModelRequirement,
    Requirement,
    SecretRequirement,
)
from bloxserver.organism.yaml_source import Place
from bloxserver.services.preflight import installation_problems, settings_problems
from bloxserver.services.secrets import set_secret
from bloxserver.settings import Settings
from tests.factories import create_user

PATH = ("listeners", 0)
MAIL = {"smtp_host": "mail.example.com", "smtp_from": "Flows <flows@example.com>"}
KEY = {"api_key_encryption_key": "new-key-of-an-operator-93d4a86b1f"}


def settings(**values: Any) -> Settings:
    return Settings(database_url="sqlite+aiosqlite:///:memory:", **values)


def secret(name: str, line: int = 1, column: int = 1) -> SecretRequirement:
    return SecretRequirement(Place(line, column), PATH, name)


def address(url: str) -> AddressRequirement:
    return AddressRequirement(Place(1, 1), PATH, url)


def mail(sender: str | None) -> MailRequirement:
    return MailRequirement(Place(1, 1), PATH, sender)


def model(name: str | None) -> ModelRequirement:
    return ModelRequirement(Place(1, 1), PATH, "helper", name)


@pytest.fixture
async def user(session: AsyncSession) -> UserRecord:
    return await create_user(session)


@pytest.mark.parametrize(
    ("values", "requirement", "message"),
    [
        ({}, model("m"), 'the agent "helper" has no language model: set LLM_API_KEY'),
        ({"llm_api_key": "k"}, model(None), "set model in the listener, or LLM_MODEL"),
        ({"llm_api_key": "k"}, model("m"), None),
        ({"llm_api_key": "k", "llm_model": "m"}, model(None), None),
        ({}, mail("a@example.com"), "this server sends no mail: SMTP_HOST must be set"),
        ({}, mail(None), "this server sends no mail: SMTP_HOST and SMTP_FROM must be set"),
        (MAIL, mail("a@example.org"), "this server sends mail from addresses at example.com only"),
        (MAIL, mail("Orders <a@EXAMPLE.com>"), None),
        (MAIL, mail("no address"), None),
        (MAIL, mail(None), None),
        ({}, secret("TOKEN"), 'the secret "TOKEN" cannot be used: this server stores no secrets'),
        (KEY, secret("TOKEN"), None),
    ],
)
def test_requirement_that_the_settings_do_not_meet_is_a_problem(
    values: dict[str, Any], requirement: Requirement, message: str | None
) -> None:
    messages = [problem.message for problem in settings_problems(settings(**values), [requirement])]
    if message is None:
        assert messages == []
    else:
        [given] = messages
        assert message in given


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("http://127.0.0.1/", True),
        ("http://[::1]/", True),
        ("http://10.1.2.3/{{ payload.path }}", True),
        ("http://10.1.2.3{{ payload.rest }}", False),
        ("http://93.184.216.34/", False),
        ("http://93.184.216.34:22/", True),
        ("http://localhost/", False),
        ("{{ payload.url }}", False),
        ("no url", False),
    ],
)
def test_address_that_would_be_refused_is_a_problem(url: str, refused: bool) -> None:
    """A host name is checked when it is resolved, and an invalid URL is a problem of the definition itself."""
    codes = [problem.code for problem in settings_problems(settings(), [address(url)])]
    assert codes == (["address_refused"] if refused else [])


def test_address_that_the_operator_allows_is_no_problem() -> None:
    allowed = settings(ssrf_allow_cidrs="10.0.0.0/8")
    assert settings_problems(allowed, [address("http://10.1.2.3/")]) == []
    assert len(settings_problems(allowed, [address("http://192.168.0.1/")])) == 1


def test_requirement_of_a_failure_notification_is_a_warning() -> None:
    of_notification = SecretRequirement(Place(1, 1), ("execution", "on_failure", "url"), "TOKEN")
    problems = settings_problems(settings(), [secret("TOKEN"), of_notification])
    assert [problem.severity for problem in problems] == ["error", "warning"]
    assert [problem.path for problem in problems] == [PATH, of_notification.path]


async def test_secrets_that_the_user_has_not_stored_are_problems(session: AsyncSession, user: UserRecord) -> None:
    configured = settings(**KEY)
    cipher = get_cipher(configured)
    assert cipher is not None
    await set_secret(session, cipher, user.id, "MINE", "value")
    await set_secret(session, cipher, (await create_user(session)).id, "THEIRS", "value")
    requirements = [secret("MINE"), secret("THEIRS", 2), secret("THEIRS", 3)]
    problems = await installation_problems(session, configured, user.id, requirements)
    assert [(problem.line, problem.code, problem.message) for problem in problems] == [
        (line, "missing_secret", 'there is no secret "THEIRS"') for line in (2, 3)
    ]
    assert problems[0].hint == "store it: PUT /api/v1/secrets/THEIRS"


async def test_server_that_stores_no_secrets_reports_each_secret_once(session: AsyncSession, user: UserRecord) -> None:
    problems = await installation_problems(session, settings(), user.id, [secret("TOKEN")])
    assert [problem.hint for problem in problems] == ["set API_KEY_ENCRYPTION_KEY on the server"]


async def test_problems_are_in_the_order_of_the_text(session: AsyncSession, user: UserRecord) -> None:
    requirements: list[Requirement] = [
        secret("A", 3),
        ModelRequirement(Place(2, 9), PATH, "helper", None),
        secret("B", 2, 4),
        MailRequirement(Place(1, 1), PATH, None),
    ]
    problems = await installation_problems(session, settings(**KEY), user.id, requirements)
    assert [(problem.line, problem.column) for problem in problems] == [(1, 1), (2, 4), (2, 9), (3, 1)]
    without_database = settings_problems(settings(**KEY), requirements)
    assert [problem.code for problem in without_database] == ["missing_mail", "missing_llm"]


async def test_definition_without_requirements_has_no_problems(session: AsyncSession, user: UserRecord) -> None:
    for values in ({}, KEY):
        assert await installation_problems(session, settings(**values), user.id, []) == []
