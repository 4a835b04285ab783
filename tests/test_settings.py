"""Settings: their defaults, their validation, and the requirements of production."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from bloxserver.database_url import normalised_database_url
from bloxserver.errors import SettingsError
from bloxserver.settings import Settings, misspelt_settings

ROOT = Path(__file__).parents[1]
SECRET = "Canary-4f1d9c02b7e8a6539d"
KEY = "kJ8s0-fQz2Lw7Xv5Nn1Bb6Mm9Rr3Tt4Yy"
VALID = {
    "ENV": "production",
    "CLERK_ISSUER": "https://clerk.example.com",
    "DATABASE_URL": "postgresql://blox@db.example.com/blox",
    "CORS_ORIGINS": "https://app.example.com",
    "WEBHOOK_BASE_URL": "https://flows.example.com/webhooks",
    "ENABLE_DOCS": "false",
    "API_KEY_ENCRYPTION_KEY": KEY,
}


def load(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    for name, value in variables.items():
        patch.setenv(name, value)
    return Settings.load()


def problems(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> tuple[str, ...]:
    """Return the problems that keep the process from starting with these variables."""
    try:
        load(patch, variables).check_startup()
    except SettingsError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(
    ("changes", "invalid"),
    [
        ({}, []),
        ({"CLERK_ISSUER": ""}, ["CLERK_ISSUER"]),
        ({"CLERK_ISSUER": f"http://{SECRET}.example.com"}, ["CLERK_ISSUER"]),
        ({"DATABASE_URL": f"sqlite:///{SECRET}.db"}, ["DATABASE_URL"]),
        ({"DATABASE_URL": f"sqlite:///{SECRET}.db", "ALLOW_SQLITE": "1"}, []),
        ({"CORS_ORIGINS": f"*,https://{SECRET}"}, ["CORS_ORIGINS"]),
        ({"CORS_ORIGINS": "https://*.example.com"}, ["CORS_ORIGINS"]),
        ({"CORS_ORIGINS": None}, ["CORS_ORIGINS"]),
        ({"CORS_ORIGINS": ""}, []),
        ({"WEBHOOK_BASE_URL": None}, ["WEBHOOK_BASE_URL"]),
        ({"WEBHOOK_BASE_URL": " "}, ["WEBHOOK_BASE_URL"]),
        ({"WEBHOOK_BASE_URL": f"{SECRET}.example.com"}, ["WEBHOOK_BASE_URL"]),
        ({"WEBHOOK_BASE_URL": "https://api.openblox.ai/webhooks"}, []),
        ({"CORS_ORIGINS": None, "WEBHOOK_BASE_URL": None, "ENV": "staging"}, []),
        ({"ENABLE_DOCS": "true"}, ["ENABLE_DOCS"]),
        ({"API_KEY_ENCRYPTION_KEY": ""}, ["API_KEY_ENCRYPTION_KEY"]),
        ({"API_KEY_ENCRYPTION_KEY": SECRET}, ["API_KEY_ENCRYPTION_KEY"]),
        ({"API_KEY_ENCRYPTION_KEY": f"{SECRET}-change-me"}, ["API_KEY_ENCRYPTION_KEY"]),
        ({"API_KEY_ENCRYPTION_KEY": "0" * 64}, ["API_KEY_ENCRYPTION_KEY"]),
        ({"API_KEY_ENCRYPTION_KEY": " , ,"}, ["API_KEY_ENCRYPTION_KEY"]),
        ({"API_KEY_ENCRYPTION_KEY": f"{KEY}-1, {KEY}-2"}, []),
        ({"API_KEY_ENCRYPTION_KEY": f"{KEY},{SECRET}"}, ["API_KEY_ENCRYPTION_KEY"]),
        ({"API_KEY_ENCRYPTION_KEY": f"{SECRET},{KEY}"}, ["API_KEY_ENCRYPTION_KEY"]),
        ({"STRIPE_SECRET_KEY": f"sk_live_{SECRET}"}, ["STRIPE_WEBHOOK_SECRET"]),
        ({"STRIPE_SECRET_KEY": f"sk_test_{SECRET}", "STRIPE_WEBHOOK_SECRET": f"whsec_{SECRET}"}, ["STRIPE_SECRET_KEY"]),
        ({"STRIPE_SECRET_KEY": f"rk_test_{SECRET}", "STRIPE_WEBHOOK_SECRET": f"whsec_{SECRET}"}, ["STRIPE_SECRET_KEY"]),
        ({"STRIPE_SECRET_KEY": f"sk_live_{SECRET}", "STRIPE_WEBHOOK_SECRET": f"whsec_{SECRET}"}, []),
        ({"ENV": f"prod-{SECRET}"}, ["ENV"]),
        ({"PORT": SECRET}, ["PORT"]),
        ({"PORT": "70000", "LOG_LEVEL": SECRET, "SMTP_PORT": SECRET}, ["LOG_LEVEL", "PORT", "SMTP_PORT"]),
        ({"DATABASE_URL": f"mysql://root:{SECRET}@db/x"}, ["DATABASE_URL", "DATABASE_URL"]),
        ({"DATABASE_URL": f"postgresql://root:a@b:{SECRET}@db/x"}, ["DATABASE_URL", "DATABASE_URL"]),
        ({"DATABASE_URL": f"postgresql://root@db/x?channel_binding={SECRET}"}, ["DATABASE_URL", "DATABASE_URL"]),
        ({"HEARTBEAT_INTERVAL_SECONDS": "5", "HEARTBEAT_TIMEOUT_SECONDS": "9"}, ["HEARTBEAT_TIMEOUT_SECONDS"]),
        ({"HEARTBEAT_INTERVAL_SECONDS": "5", "HEARTBEAT_TIMEOUT_SECONDS": "10"}, []),
        (
            {name: "" for name in VALID if name not in ("ENV", "CORS_ORIGINS")} | {"ENABLE_DOCS": "true"},
            [
                "API_KEY_ENCRYPTION_KEY",
                "CLERK_ISSUER",
                "DATABASE_URL",
                "DATABASE_URL",
                "ENABLE_DOCS",
                "WEBHOOK_BASE_URL",
            ],
        ),
    ],
)
def test_production_names_every_invalid_variable_without_its_value(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], invalid: list[str]
) -> None:
    found = problems(monkeypatch, {name: value for name, value in (VALID | changes).items() if value is not None})
    assert sorted(re.split(r"[ :]", problem)[0] for problem in found) == invalid
    assert not any(SECRET in problem for problem in found)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("nope", "'nope' is not a network like 10.0.0.0/8 or fd00::/8"),
        ("10.0.0.0/8, 10.0.0.0/33", "'10.0.0.0/33' is not a network like 10.0.0.0/8 or fd00::/8"),
        ("10.0.0.5/8", "'10.0.0.5/8' is not a network like 10.0.0.0/8 or fd00::/8; did you mean 10.0.0.0/8?"),
        ("fd00::1/8", "'fd00::1/8' is not a network like 10.0.0.0/8 or fd00::/8; did you mean fd00::/8?"),
        ("x" * 500, f"'{'x' * 50}' is not a network like 10.0.0.0/8 or fd00::/8"),
    ],
)
def test_invalid_network_is_quoted_with_an_example(monkeypatch: pytest.MonkeyPatch, given: str, problem: str) -> None:
    assert problems(monkeypatch, {"SSRF_ALLOW_CIDRS": given}) == (f"SSRF_ALLOW_CIDRS: {problem}",)


def test_networks_of_both_families_and_single_addresses_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"SSRF_ALLOW_CIDRS": "10.0.0.0/8, 192.168.1.7,fd00::/8"})
    assert [str(network) for network in settings.ssrf_allow_cidrs] == ["10.0.0.0/8", "192.168.1.7/32", "fd00::/8"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("*", "'*' is not a network like 10.0.0.0/8 or fd00::/8"),
        ("10.0.0.1, 0.0.0.0/0", "a network that contains every address would let clients choose their own address"),
        ("::/0", "a network that contains every address would let clients choose their own address"),
    ],
)
def test_proxies_must_be_named(monkeypatch: pytest.MonkeyPatch, given: str, problem: str) -> None:
    assert problems(monkeypatch, {"FORWARDED_ALLOW_IPS": given}) == (f"FORWARDED_ALLOW_IPS: {problem}",)


def test_variable_named_problems_is_not_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, {"PROBLEMS": "nonsense"}) == ()


@pytest.fixture
def env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path of the `.env` file that settings are loaded from."""
    file = tmp_path / ".env"
    monkeypatch.setitem(Settings.model_config, "env_file", str(file))
    return file


def test_misspelt_settings_in_the_environment_and_the_file_are_reported(
    monkeypatch: pytest.MonkeyPatch, env_file: Path
) -> None:
    env_file.write_text(f"WORKER_CONCURENCY={SECRET}\nDATABSE_URL={SECRET}\nPORT=81\n")
    for name in ("DATABSE_URL", "DATABASE_HOST", "HOSTNAME"):
        monkeypatch.setenv(name, SECRET)
    assert misspelt_settings() == [
        "DATABSE_URL is not a setting and has no effect; did you mean DATABASE_URL?",
        "WORKER_CONCURENCY is not a setting and has no effect; did you mean WORKER_CONCURRENCY?",
    ]


def test_env_file_that_is_not_utf8_prevents_startup(env_file: Path) -> None:
    env_file.write_bytes("PORT=81\nSMTP_FROM=b\u00fcro@example.com\n".encode("latin-1"))
    settings = Settings.load()
    assert settings.port == 8000
    with pytest.raises(SettingsError, match="the file is not UTF-8"):
        settings.check_startup()


PLACEHOLDERS = {
    "CLERK_ISSUER": "",
    "CLERK_AUDIENCE": "",
    "REDIS_URL": "redis://localhost:6379",
    "STRIPE_SECRET_KEY": "sk_test_...",
    "STRIPE_WEBHOOK_SECRET": "whsec_...",
    "API_KEY_ENCRYPTION_KEY": "change-me",
    "CORS_ORIGINS": "",
}


def test_development_server_starts_with_placeholder_values(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, PLACEHOLDERS)
    settings.check_startup()
    assert settings.dev_bypass


def test_example_file_contains_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All lines are uncommented; each setting must have one."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    variables = dict(line.removeprefix("# ").split("=", 1) for line in lines if re.match(r"# [A-Z_]+=", line))
    assert {name.lower() for name in variables} == Settings.model_fields.keys()
    monkeypatch.delenv("DATABASE_URL")
    default = Settings.load()
    settings = load(monkeypatch, variables)
    settings.check_startup()
    assert settings == default


def test_defaults_are_those_of_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    settings = Settings.load()
    assert (settings.env, settings.host, settings.port) == ("development", "0.0.0.0", 8000)  # noqa: S104
    assert settings.database_url == "sqlite+aiosqlite:///./bloxserver.db"
    assert settings.webhook_base_url == "https://api.openblox.ai/webhooks"
    assert settings.cors_origins == ("http://localhost:3000", "https://app.openblox.ai")
    assert settings.auto_create_tables
    assert settings.enable_docs
    assert settings.max_body_bytes == 1024 * 1024
    assert (settings.clerk_issuer, settings.clerk_audience, settings.redis_url) == (None, None, None)
    assert settings.dev_bypass
    settings.check_startup()


@pytest.mark.parametrize(
    ("variables", "bypass"),
    [
        ({}, True),
        ({"ENV": "development", "CLERK_ISSUER": " "}, True),
        ({"CLERK_ISSUER": "https://clerk.example.com"}, False),
        ({"ENV": "test"}, False),
        ({"ENV": "staging"}, False),
        ({"ENV": "production"}, False),
    ],
)
def test_only_development_without_an_issuer_bypasses_authentication(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], bypass: bool
) -> None:
    assert load(monkeypatch, variables).dev_bypass is bypass


def test_invalid_setting_has_its_default_and_other_settings_keep_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"PORT": "abc", "MAX_BODY_BYTES": "-1", "HOST": "127.0.0.1", "SQL_ECHO": "perhaps"})
    assert (settings.port, settings.max_body_bytes, settings.host, settings.sql_echo) == (
        8000,
        1024 * 1024,
        "127.0.0.1",
        False,
    )
    assert sorted(problem.split(":")[0] for problem in settings.problems) == ["MAX_BODY_BYTES", "PORT", "SQL_ECHO"]


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("sqlite+aiosqlite:///:memory:", "sqlite+aiosqlite:///:memory:"),
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p%40@h:5433/d", "postgresql+asyncpg://u:p%40@h:5433/d"),
        ("postgresql+psycopg2://h/d", "postgresql+asyncpg://h/d"),
        ("postgres://u:p@h/d?sslmode=require", "postgresql+asyncpg://u:p@h/d?ssl=require"),
        ("postgresql://u@/d?host=/run/postgresql", "postgresql+asyncpg://u@/d?host=/run/postgresql"),
    ],
)
def test_database_urls_of_other_drivers_are_normalised(given: str, used: str) -> None:
    assert normalised_database_url(given) == make_url(used)


def test_secrets_are_not_in_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "API_KEY_ENCRYPTION_KEY")
    settings = load(monkeypatch, dict.fromkeys(secrets, SECRET))
    assert settings.stripe_secret_key is not None
    assert settings.stripe_secret_key.get_secret_value() == SECRET
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


def test_encryption_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, {"API_KEY_ENCRYPTION_KEY": f" {KEY} ,, second "}).encryption_keys == (KEY, "second")
    assert load(monkeypatch, {"API_KEY_ENCRYPTION_KEY": " "}).encryption_keys == ()


SIGNING_SECRET = "whsec_" + "A" * 32


@pytest.mark.parametrize(
    ("given", "secrets"),
    [
        (SIGNING_SECRET, (SIGNING_SECRET,)),
        (f" {SIGNING_SECRET},, whsec_{'B' * 43}= ", (SIGNING_SECRET, f"whsec_{'B' * 43}=")),
        ("", ()),
        (" , ", ()),
    ],
)
def test_signing_secrets_of_clerk_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, given: str, secrets: tuple[str, ...]
) -> None:
    settings = load(monkeypatch, VALID | {"CLERK_WEBHOOK_SECRET": given})
    assert settings.clerk_webhook_secrets == secrets
    settings.check_startup()


@pytest.mark.parametrize(
    "given", ["A" * 32, "whsec_", "whsec_AAAA", "whsec_" + "?" * 32, f"{SIGNING_SECRET},whsec_x", "é"]
)
def test_invalid_signing_secret_of_clerk_prevents_the_start(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    [problem] = problems(monkeypatch, VALID | {"CLERK_WEBHOOK_SECRET": given})
    assert problem.startswith("CLERK_WEBHOOK_SECRET: the secret must be whsec_")
    assert given not in problem.removeprefix("CLERK_WEBHOOK_SECRET: the secret must be whsec_")


def test_secrets_of_the_operator_have_marks_unless_they_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "DATABASE_URL": f"postgresql://blox:{SECRET}%2F1@db.example.com/blox",
        "API_KEY_ENCRYPTION_KEY": f"{KEY}, {KEY}-2",
        "LLM_API_KEY": f"{SECRET}-3",
        "SMTP_PASSWORD": "elevenchars",
        "METRICS_TOKEN": f"{SECRET}-4",
    }
    marks = [(mark, text) for mark, text in load(monkeypatch, given).operator_secrets if "," not in text]
    assert sorted(marks) == [
        ("[setting API_KEY_ENCRYPTION_KEY]", KEY),
        ("[setting API_KEY_ENCRYPTION_KEY]", f"{KEY}-2"),
        ("[setting DATABASE_URL]", f"{SECRET}/1"),
        ("[setting LLM_API_KEY]", f"{SECRET}-3"),
        ("[setting METRICS_TOKEN]", f"{SECRET}-4"),
    ]
