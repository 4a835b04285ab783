"""Several byte strings as one."""

import pytest

from bloxserver.isolation.parts import join_parts, split_parts


@pytest.mark.parametrize("parts", [[], [b""], [b"a", b"", b"\0" * 1_000], [b"\xff"] * 100])
def test_parts_are_split_as_they_were_joined(parts: list[bytes]) -> None:
    assert split_parts(join_parts(parts)) == parts
