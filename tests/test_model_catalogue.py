"""The providers of language models: from a file, or from single settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bloxserver.errors import SettingsError
from bloxserver.model_catalogue import Catalogue, Price, catalogue_of, operator_secrets, read_catalogue
from bloxserver.settings import Settings

KEY = "sk-canary-key-4711"
NOTHING = {
    "llm_provider": None,
    "llm_base_url": None,
    "llm_api_key": None,
    "llm_model": None,
    "llm_providers": None,
    "openai_api_key": None,
    "anthropic_api_key": None,
    "xai_api_key": None,
    "together_api_key": None,
}
FILE = """
providers:
  anthropic:
    kind: anthropic
    key_variable: TEST_ANTHROPIC_KEY
    models:
      claude-large: {prices: {input: 3, output: 15}}
      claude-small:
    priority: 1
  europe:
    kind: openai
    base_url: https://models.example.com/v1/
    models: {claude-large: {id: vendor/claude-large}}
    max_concurrent: 8
    priority: 2
    timeout_seconds: 30
    first_token_timeout_seconds: 12
  local:
    kind: openai
    base_url: http://localhost:11434/v1
aliases:
  fast: [claude-small, llama]
default_model: fast
"""


def settings(**given: Any) -> Settings:
    return Settings(**(NOTHING | given))


def asked(catalogue: Catalogue, model: str | None) -> list[tuple[str, str]]:
    return [(route.provider.name, route.model) for route in catalogue.routes(model)]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_ANTHROPIC_KEY", KEY)
    path = tmp_path / "providers.yaml"
    path.write_text(FILE)
    return path


def test_model_is_mapped_to_its_providers_in_their_order(file: Path) -> None:
    catalogue = read_catalogue(file)
    assert asked(catalogue, "claude-large") == [
        ("anthropic", "claude-large"),
        ("europe", "vendor/claude-large"),
        ("local", "claude-large"),  # offers any model, and is therefore the last one
    ]
    assert asked(catalogue, "llama") == [("local", "llama")]


def test_alias_is_a_list_of_models(file: Path) -> None:
    expected = [("anthropic", "claude-small"), ("local", "claude-small"), ("local", "llama")]
    catalogue = read_catalogue(file)
    assert asked(catalogue, "fast") == expected
    assert asked(catalogue, None) == expected


def test_values_of_a_provider(file: Path) -> None:
    first, second, third = read_catalogue(file).providers
    assert first.key == SecretStr(KEY)
    assert first.base_url == "https://api.anthropic.com"
    assert first.prices == {"claude-large": Price(3, 15)}
    assert (second.base_url, second.max_concurrent, second.timeout_seconds) == ("https://models.example.com/v1", 8, 30)
    assert (second.first_token_timeout_seconds, third.first_token_timeout_seconds) == (12, None)
    assert (third.key, third.max_concurrent, third.timeout_seconds) == (None, None, None)


def test_keys_of_the_file_are_redacted_from_logs(file: Path) -> None:
    assert ("[setting TEST_ANTHROPIC_KEY]", KEY) in operator_secrets(settings(llm_providers=str(file)))


def test_key_may_be_in_the_file_of_the_environment(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_ANTHROPIC_KEY")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    (tmp_path / ".env").write_text("TEST_ANTHROPIC_KEY=from-the-file\n")
    assert read_catalogue(file).providers[0].key == SecretStr("from-the-file")


LOCAL = {"kind": "openai", "base_url": "http://localhost:1/v1"}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({}, "LLM_PROVIDERS: providers: Field required"),
        ({"providers": {}}, "LLM_PROVIDERS: providers: Dictionary should have at least 1 item"),
        ({"providers": {"A b": LOCAL}}, "LLM_PROVIDERS: providers.A b"),
        ({"providers": {"a": {"kind": "other"}}}, "LLM_PROVIDERS: providers.a.kind: Input should be 'openai'"),
        ({"providers": {"a": {"kind": "openai"}}}, "LLM_PROVIDERS: providers.a: set key_variable, or base_url"),
        (
            {"providers": {"a": {"kind": "openai", "key_variable": "TEST_MISSING_KEY"}}},
            "LLM_PROVIDERS: providers.a: the variable TEST_MISSING_KEY is not set",
        ),
        ({"providers": {"a": LOCAL | {"api_key": KEY}}}, "LLM_PROVIDERS: providers.a.api_key: Extra inputs"),
        (
            {"providers": {"a": LOCAL | {"base_url": f"http://u:{KEY}@h"}}},
            "LLM_PROVIDERS: providers.a.base_url: must be",
        ),
        ({"providers": {"a": LOCAL | {"models": []}}}, "LLM_PROVIDERS: providers.a.models: Dictionary should have"),
        ({"providers": {"a": LOCAL | {"max_concurrent": 0}}}, "LLM_PROVIDERS: providers.a.max_concurrent: Input"),
        ({"providers": {"a": LOCAL | {"timeout_seconds": -1}}}, "LLM_PROVIDERS: providers.a.timeout_seconds: Input"),
        (
            {"providers": {"a": LOCAL | {"models": ["m"]}}, "aliases": {"fast": ["n"]}},
            "LLM_PROVIDERS: aliases.fast: no provider offers 'n'",
        ),
        (
            {"providers": {"a": LOCAL}, "aliases": {"fast": ["smart"], "smart": ["m"]}},
            "LLM_PROVIDERS: aliases.fast: no provider offers 'smart'",
        ),
        (
            {"providers": {"a": LOCAL | {"models": ["m"]}}, "default_model": "n"},
            "LLM_PROVIDERS: no provider offers the default model 'n'",
        ),
        ([1], "LLM_PROVIDERS: Input should be a valid dictionary"),
        ("text", "LLM_PROVIDERS: Input should be a valid dictionary"),
    ],
)
def test_problems_of_the_file_are_named_without_keys(tmp_path: Path, document: Any, problem: str) -> None:
    path = tmp_path / "providers.yaml"
    path.write_text(json.dumps(document))
    with pytest.raises(SettingsError) as caught:
        read_catalogue(path)
    assert problem in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a: [", "\xff"])
def test_file_that_is_no_yaml_is_a_problem(tmp_path: Path, text: str) -> None:
    path = tmp_path / "providers.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"LLM_PROVIDERS (is not valid YAML|cannot be read)"):
        read_catalogue(path)


@pytest.mark.parametrize(
    ("given", "model", "expected"),
    [
        ({"openai_api_key": KEY, "anthropic_api_key": KEY}, "claude-1", ["anthropic"]),
        ({"openai_api_key": KEY, "anthropic_api_key": KEY}, "gpt-5", ["openai"]),
        ({"openai_api_key": KEY, "xai_api_key": KEY}, "grok-4", ["xai"]),
        ({"openai_api_key": KEY, "together_api_key": KEY}, "meta/llama", ["together"]),
        ({"openai_api_key": KEY, "together_api_key": KEY}, "llama", []),
        ({"openai_api_key": KEY}, "a-new-name", ["openai"]),
        ({"llm_base_url": "http://localhost:1/v1", "anthropic_api_key": KEY}, "claude-1", ["anthropic", "default"]),
        ({"llm_base_url": "http://localhost:1/v1", "anthropic_api_key": KEY}, "llama", ["default"]),
        (
            {"llm_base_url": "http://localhost:1/v1", "llm_model": "claude-1", "anthropic_api_key": KEY},
            None,
            ["default", "anthropic"],
        ),
        ({"llm_api_key": KEY, "anthropic_api_key": "other"}, "claude-1", ["anthropic", "openai"]),
        ({"llm_api_key": KEY}, "claude-1", ["anthropic", "openai"]),
        ({"llm_api_key": KEY}, "gpt-5", ["openai"]),
    ],
)
def test_single_settings_select_providers_by_name_of_the_model(
    given: dict[str, Any], model: str | None, expected: list[str]
) -> None:
    assert [name for name, _ in asked(catalogue_of(settings(**given)), model)] == expected


def test_key_of_a_provider_takes_precedence_over_the_key_of_any(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = catalogue_of(settings(llm_api_key=KEY, anthropic_api_key="sk-other"))
    assert {each.name: each.key_setting for each in catalogue.providers} == {
        "openai": "LLM_API_KEY",
        "anthropic": "ANTHROPIC_API_KEY",
    }


def test_model_that_no_provider_offers_is_a_problem() -> None:
    catalogue = catalogue_of(settings(openai_api_key=KEY, xai_api_key=KEY))
    assert catalogue.problem("llama") == "no provider offers the model 'llama'"
    assert catalogue.problem("gpt-5") is None


OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com"


@pytest.mark.parametrize(
    ("given", "model", "kinds", "urls"),
    [
        ({}, "gpt-5", {"openai"}, [OPENAI]),
        ({}, "claude-1", {"openai", "anthropic"}, [ANTHROPIC]),
        ({}, "meta/llama", {"together"}, ["https://api.together.xyz/v1"]),
        ({}, "grok-4", {"openai"}, []),
        ({}, None, {"openai"}, []),
        ({"llm_model": "gpt-5"}, None, {"openai"}, [OPENAI]),
        ({"openai_api_key": KEY}, "a-new-name", {"openai"}, [OPENAI]),
        ({"openai_api_key": KEY}, "claude-1", {"openai", "anthropic"}, [ANTHROPIC, OPENAI]),
        ({"llm_base_url": "http://localhost:1/v1"}, "llama", {"openai"}, []),
        ({"llm_base_url": "http://localhost:1/v1"}, "gpt-5", {"openai"}, [OPENAI]),
        ({"llm_base_url": "http://localhost:1/v1", "llm_model": "gpt-oss"}, "gpt-oss", {"openai"}, []),
        ({"llm_base_url": "http://api.openai.com/v1"}, "llama", {"openai"}, []),
        ({"llm_base_url": "https://api.openai.com:444/v1"}, "llama", {"openai"}, []),
        ({"llm_base_url": "https://api.openai.com:99999/v1"}, "llama", {"openai"}, []),
        ({"llm_base_url": "https://api.openai.com.example.org/v1"}, "llama", {"openai"}, []),
        ({"llm_base_url": "https://api.openai.com@example.org/v1"}, "llama", {"openai"}, []),
        ({"llm_base_url": "https://eu.api.openai.com/v1"}, "llama", {"openai"}, ["https://eu.api.openai.com/v1"]),
        ({"llm_base_url": ANTHROPIC, "llm_provider": "openai"}, "llama", {"openai"}, []),
    ],
)
def test_own_key_is_used_only_for_urls_of_its_provider(
    given: dict[str, Any], model: str | None, kinds: set[str], urls: list[str]
) -> None:
    routes = catalogue_of(settings(**given)).routes_with_keys(model, kinds)
    assert [route.provider.base_url for route in routes] == urls
    assert all(route.provider.kind in kinds for route in routes)


def test_own_key_uses_the_names_and_aliases_of_the_file(file: Path) -> None:
    own = read_catalogue(file).routes_with_keys("fast", {"anthropic", "openai"})
    assert [(route.provider.name, route.model) for route in own] == [("anthropic", "claude-small")]
    # The URL of `europe`, which offers it too, is not one of OpenAI.
    own = read_catalogue(file).routes_with_keys("claude-large", {"openai"})
    assert own == []


def test_operator_can_allow_own_keys_for_another_url(tmp_path: Path) -> None:
    path = tmp_path / "providers.yaml"
    path.write_text(
        """
providers:
  direct: {kind: openai, base_url: "http://localhost:1/v1", models: [gpt-5], priority: 1}
  proxy: {kind: openai, base_url: "http://localhost:2/v1", models: [gpt-5, local], priority: 2, own_keys: true}
"""
    )
    catalogue = read_catalogue(path)
    for model in ("gpt-5", "local", "gpt-6"):
        [route] = catalogue.routes_with_keys(model, {"openai", "anthropic"})
        assert route.provider.base_url == "http://localhost:2/v1"
    assert catalogue.url_for_own_keys("openai") == "http://localhost:2/v1"
    assert catalogue.url_for_own_keys("anthropic") == ANTHROPIC


def test_time_limit_of_the_installation_applies_to_own_keys() -> None:
    [route] = catalogue_of(settings(llm_timeout_seconds=7)).routes_with_keys("gpt-5", {"openai"})
    assert route.provider.timeout_seconds == 7
