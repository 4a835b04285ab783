"""Requirements of a definition that the settings, or the user's secrets, do not meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.registry import get_registry
from bloxserver.encryption import SecretCipher, get_cipher
from bloxserver.models.tables import FlowRecord, UserApiKeyRecord, UserRecord
from bloxserver.organism.parse import read
from bloxserver.organism.problems import Problem
from bloxserver.organism.requirements import (
    AddressRequirement,
    MailRequirement,
    ModelRequirement,
    PriceRequirement,
    Requirement,
    SecretRequirement,
)
from bloxserver.organism.secret_values import invalid_values
from bloxserver.organism.yaml_source import Place
from bloxserver.services.preflight import check_installation, settings_problems
from bloxserver.services.secrets import set_secret
from bloxserver.settings import Settings
from tests.factories import create_flow, create_user
from tests.llm.catalogues import providers, settings_of

PATH = ("listeners", 0)
MAIL = {"smtp_host": "mail.example.com", "smtp_from": "Flows <flows@example.com>"}
SIGNING_KEY = "whsec_" + "A" * 32
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


async def installation_problems(
    session: AsyncSession,
    settings: Settings,
    user_id: UUID,
    requirements: Sequence[Requirement],
    flow_id: UUID | None = None,
) -> list[Problem]:
    """The requirements that are not met, and the values that are invalid with their secrets."""
    found = await check_installation(session, settings, user_id, requirements, flow_id)
    return [*found.problems, *invalid_values(requirements, found.secrets)]


@pytest.mark.parametrize(
    ("values", "requirement", "message"),
    [
        ({}, model("m"), 'the agent "helper" has no language model: set LLM_API_KEY'),
        ({"llm_api_key": "k"}, model(None), "set model in the listener, or LLM_MODEL"),
        ({"llm_api_key": "k"}, model("m"), None),
        ({"llm_api_key": "k", "llm_model": "m"}, model(None), None),
        ({"smtp_from": "a@example.com"}, mail(None), "this server sends no mail: SMTP_HOST must be set"),
        ({}, mail(None), "this server sends no mail: SMTP_HOST and SMTP_FROM must be set"),
        (MAIL, mail("a@example.org"), "this server sends only from flows@example.com"),
        (MAIL, mail("a@example.com"), "this server sends only from flows@example.com"),
        (MAIL, mail("Orders <flows@example.com>"), "this server sends only as Flows <flows@example.com>"),
        (MAIL | {"smtp_senders": "name"}, mail("Orders <flows@example.com>"), None),
        (MAIL, mail("Flows <flows@EXAMPLE.com>"), None),
        (MAIL | {"smtp_senders": "domain"}, mail("Orders <a@EXAMPLE.com>"), None),
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


@pytest.mark.parametrize(
    ("values", "tier", "name", "is_served"),
    [
        ({}, "pro", "gpt-5", True),
        ({}, "free", "gpt-5", False),
        ({}, "pro", "claude-1", False),
        ({}, "pro", "llama", False),
        ({}, "pro", None, False),
        ({"llm_model": "gpt-5"}, "pro", None, True),
        ({"anthropic_api_key": "k", "xai_api_key": "k"}, "pro", "gpt-5", True),
        ({"anthropic_api_key": "k", "xai_api_key": "k"}, "free", "gpt-5", False),
    ],
)
async def test_own_key_makes_the_models_of_its_provider_available(
    session: AsyncSession, values: dict[str, Any], tier: str, name: str | None, is_served: bool
) -> None:
    ada, bob = await create_user(session, tier=tier), await create_user(session, tier=tier)
    session.add(UserApiKeyRecord(user_id=ada.id, provider="openai", encrypted_key=b"x"))
    session.add(UserApiKeyRecord(user_id=bob.id, provider="openai", encrypted_key=b"x", is_valid=False))
    configured = settings(**(KEY | values))
    codes = [problem.code for problem in await installation_problems(session, configured, ada.id, [model(name)])]
    assert codes == ([] if is_served else ["missing_llm"])
    problems = await installation_problems(session, configured, bob.id, [model(name)])
    assert [problem.code for problem in problems] == ["missing_llm"]


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


@pytest.fixture
def cipher() -> SecretCipher:
    found = get_cipher(settings(**KEY))
    assert found is not None
    return found


def definition(*listeners: str, rest: str = "") -> str:
    return "organism: {name: n}\nlisteners:\n" + "".join(f"  - {each}\n" for each in listeners) + rest


async def found(session: AsyncSession, user: UserRecord, text: str, flow: FlowRecord | None = None) -> list[str]:
    """The codes of all problems of a definition that is valid by itself."""
    organism, problems, _ = read(text, get_registry())
    assert organism is not None, problems
    flow_id = flow.id if flow else None
    return [
        problem.code
        for problem in await installation_problems(
            session, settings(**KEY, **MAIL), user.id, organism.requirements, flow_id
        )
    ]


async def test_secret_that_no_configured_key_decrypts_is_a_problem(session: AsyncSession, user: UserRecord) -> None:
    await set_secret(session, SecretCipher(["old-key-of-an-operator-7c1f0e5b2a"]), user.id, "TOKEN", "value")
    [problem] = await installation_problems(session, settings(**KEY), user.id, [secret("TOKEN")])
    assert (problem.code, problem.severity) == ("unreadable_secret", "error")
    assert problem.message == 'no key in API_KEY_ENCRYPTION_KEY decrypts the secret "TOKEN"'


@pytest.mark.parametrize(
    ("block", "config", "valid", "invalid", "code"),
    [
        ("http.request", "{url: '{{ secrets.A }}'}", "https://example.com/", "example", "invalid_secret"),
        ("http.request", "{url: '{{ secrets.A }}/{{ payload.x }}'}", "http://example.com", "ftp://x", "invalid_secret"),
        ("http.request", "{url: 'http://{{secrets.A}}/'}", "93.184.216.34", "10.0.0.1", "address_refused"),
        ("http.request", "{url: 'http://e.org', headers: {X: '{{ secrets.A }}'}}", "ab", "a\nb", "invalid_secret"),
        ("webhook.send", "{url: 'http://e.org', secret: '{{ secrets.A }}'}", SIGNING_KEY, "abc", "invalid_secret"),
        ("email.send", "{to: '{{ secrets.A }}', subject: s, text: t}", "a@example.com", "nobody", "invalid_secret"),
        (
            "email.send",
            "{to: a@b.org, from: '{{secrets.A}}', subject: s, text: t}",
            "flows@example.com",
            "a@example.com",
            "missing_mail",
        ),
    ],
)
async def test_config_that_is_invalid_with_its_secrets_is_a_problem(
    session: AsyncSession,
    user: UserRecord,
    cipher: SecretCipher,
    block: str,
    config: str,
    valid: str,
    invalid: str,
    code: str,
) -> None:
    text = definition(f"{{name: a, description: d, handler: {block}, config: {config}}}")
    await set_secret(session, cipher, user.id, "A", valid)
    assert await found(session, user, text) == []
    await set_secret(session, cipher, user.id, "A", invalid)
    assert code in await found(session, user, text)


async def test_failure_notification_that_is_invalid_with_its_secret_is_a_warning(
    session: AsyncSession, user: UserRecord, cipher: SecretCipher
) -> None:
    listener = "{name: a, description: d, handler: echo}"
    rest = "execution: {on_failure: {url: 'http://e.org', secret: '{{ secrets.A }}'}}"
    organism, _, requirements = read(definition(listener, rest=rest), get_registry())
    assert organism is not None
    assert settings_problems(settings(**KEY), requirements) == []
    await set_secret(session, cipher, user.id, "A", SIGNING_KEY)
    assert await installation_problems(session, settings(**KEY), user.id, requirements) == []
    await set_secret(session, cipher, user.id, "A", "abc")
    [problem] = await installation_problems(session, settings(**KEY), user.id, requirements)
    assert (problem.code, problem.severity) == ("invalid_secret", "warning")


async def test_message_about_an_invalid_secret_does_not_quote_it(
    session: AsyncSession, user: UserRecord, cipher: SecretCipher
) -> None:
    await set_secret(session, cipher, user.id, "A", "10.98.76.54")
    text = definition("{name: a, description: d, handler: http.request, config: {url: 'http://{{ secrets.A }}/'}}")
    _, _, requirements = read(text, get_registry())
    [problem] = await installation_problems(session, settings(**KEY), user.id, requirements)
    assert "10.98.76.54" not in problem.message
    assert "[secret A]" in problem.message


CALL = "{{name: call, description: d, handler: flow.call, config: {{flow: {}}}}}"


async def test_call_of_a_flow_that_does_not_exist_is_a_warning(session: AsyncSession, user: UserRecord) -> None:
    other = await create_user(session)
    await create_flow(session, other, name="theirs")
    await create_flow(session, user, name="mine")
    for _ in range(2):
        await create_flow(session, user, name="twice")
    for flow, codes in (("mine", []), ("theirs", ["unknown_flow"]), ("twice", ["unknown_flow"])):
        assert await found(session, user, definition(CALL.format(flow))) == codes
    assert await found(session, user, definition(CALL.format("'{{ payload.flow }}'"))) == []


@pytest.mark.parametrize(
    ("first", "config", "code"),
    [
        ("{name: a, description: d, handler: echo, peers: [call]}", "", "endless_call"),
        ("{name: a, description: d, handler: echo, peers: [{to: call, when: payload.x}]}", "", None),
        ("{name: a, description: d, handler: echo, peers: [call]}", ", target: call", "endless_call"),
        ("{name: a, description: d, handler: echo, peers: [call]}", ", target: b", None),
        ("{name: a, description: d, handler: echo, peers: [call]}", ", target: c", "unknown_target"),
    ],
)
async def test_flow_that_always_calls_itself_is_a_warning(
    session: AsyncSession, user: UserRecord, first: str, config: str, code: str | None
) -> None:
    flow = await create_flow(session, user, name="own")
    last = "{name: b, description: d, handler: echo}"
    for reference in ("own", str(flow.id)):
        call = CALL.format(reference + config).removesuffix("}") + ", peers: [b]}"
        text = definition(first, call, last)
        assert await found(session, user, text, flow) == ([code] if code else [])
        assert await found(session, user, text) == []


async def test_unknown_price_is_a_warning(session: AsyncSession, user: UserRecord, tmp_path: Path) -> None:
    prices = {"known": {"prices": {"input": 1, "output": 1}}, "unknown": None}
    urls = {"one": "http://localhost:9", "two": "http://localhost:9"}
    document = providers(urls, models=prices)
    document["two"]["models"] = {"known": None}
    priced = settings_of(tmp_path, {"providers": {"one": document["one"]}, "default_model": "known"})
    needs = [PriceRequirement(Place(7, 3), PATH, "a", model) for model in (None, "known", "unknown", "missing")]
    problems = await installation_problems(session, priced, user.id, needs)
    message = 'the agent "a" may use a model whose price is unknown; it is counted as free'
    assert [(problem.code, problem.severity, problem.message) for problem in problems] == [
        ("unknown_price", "warning", message)
    ]
    (folder := tmp_path / "partly").mkdir()
    partly = settings_of(folder, {"providers": document})
    assert len(await installation_problems(session, partly, user.id, needs[1:2])) == 1, "of any provider"
