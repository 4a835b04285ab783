"""Tags of flows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bloxserver.queries.flow_etags import etag_of, matches, read_etags
from bloxserver.raw_json import RawJson


def flow(**changes: Any) -> SimpleNamespace:
    values = {"name": "n", "description": None, "organism_yaml": "y", "canvas_state": None}
    return SimpleNamespace(**values | changes)


def test_values_in_other_members_have_other_tags() -> None:
    flows = [
        flow(),
        flow(description=""),
        flow(description="y", organism_yaml=""),
        flow(name="ny", organism_yaml=""),
        flow(canvas_state={}),
        flow(canvas_state={"a": 1}),
    ]
    assert len({etag_of(each) for each in flows}) == len(flows)


def test_canvas_has_the_same_tag_as_text() -> None:
    assert etag_of(flow(canvas_state={"a": [1]})) == etag_of(flow(canvas_state=RawJson('{"a": [1]}')))


def test_header_is_a_list() -> None:
    tag = etag_of(flow())
    assert read_etags(f' "a" ,{tag},, ') == {'"a"', tag}
    assert matches(flow(), read_etags(f'"a", {tag}'))
    assert not matches(flow(), read_etags(f'"a", W/{tag}'))
    assert matches(flow(), {"*"})
