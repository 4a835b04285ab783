"""Facts of requests that expressions can read."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from bloxserver.services.request_facts import MAX_CHARACTERS, request_facts


def test_facts_are_method_headers_query_and_content_type() -> None:
    headers = Headers({"Content-Type": "application/json", "X-GitHub-Event": "push"})
    assert request_facts("POST", headers, "a=1&b=x%20y&a=2&a=3&c") == {
        "method": "POST",
        "headers": {"content-type": "application/json", "x-github-event": "push"},
        "contentType": "application/json",
        "query": {"a": ["1", "2", "3"], "b": "x y", "c": ""},
    }


@pytest.mark.parametrize(
    "name",
    ["Authorization", "Cookie", "X-Gitlab-Token", "X-API-Key", "X-Hub-Signature-256", "Proxy-Authorization", "apikey"],
)
def test_credentials_are_left_out(name: str) -> None:
    facts = request_facts("POST", Headers({name: "s3cr3t"}), f"{name}=s3cr3t&ok=1")
    assert "s3cr3t" not in str(facts)
    assert facts["query"] == {"ok": "1"}


def test_size_is_limited() -> None:
    headers = Headers({"a": "x" * MAX_CHARACTERS, "b": "y", "c": "z" * (MAX_CHARACTERS - 10)})
    facts = request_facts("POST", headers, "&".join(f"p{number}={'v' * 100}" for number in range(200)))
    assert [*facts["headers"]] == ["b", "c"]
    assert facts["query"] == {}
    assert len(request_facts("POST", Headers(), "&".join(f"p{number}=1" for number in range(200)))["query"]) == 100
