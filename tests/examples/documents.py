"""Run the commands of documents: all ```bash blocks in order in one shell. A ```text block is the expected output of
the block before it.

Ids, tokens, times and durations are masked on both sides.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END = "---- end of block ----"
SHELL_SECONDS = 600
MASKS = {
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "ID",
    r"(?<=/webhooks/)[\w-]{43}": "TOKEN",
    r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?": "TIME",
    r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} 20\d\d \d\d:\d\d:\d\d (GMT|\+0000)": "TIME",
    r"\b\d+ ms": "N ms",
    r"(?<=<)[0-9a-f]{32}(?=@)|(?<=msg_)[0-9a-f]{32}": "ID",
}


class Block(NamedTuple):
    language: str
    text: str


def blocks_of(document: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(document.read_text(encoding="utf-8"))]


def masked(text: str) -> str:
    for pattern, mask in MASKS.items():
        text = re.sub(pattern, mask, text)
    return text


class Shell(NamedTuple):
    """The environment in which the commands of a document run."""

    directory: Path
    replaced: Mapping[str, str]
    """Maps the addresses in documents to those of the test."""

    def outputs(self, blocks: list[Block], environment: Mapping[str, str]) -> list[str]:
        """Return the output of each bash block. A yaml block is written to the file that its first line names."""
        script = ["exec 2>&1", "trap 'kill $(jobs -p) 2>/dev/null' EXIT"]
        for block in blocks:
            if block.language == "bash":
                script += [self._here(block.text), f"echo '{END}'"]
            elif block.language == "yaml" and (name := re.match(r"# (\S+\.yaml)\n", block.text)):
                script += [f"cat > {name[1]} <<'YAML'\n{self._here(block.text)}YAML"]
        ended = subprocess.run(
            ["bash"],
            input="\n".join(script),
            cwd=self.directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=SHELL_SECONDS,
            check=False,
        )
        return self._documented(ended.stdout).split(f"{END}\n")[:-1]

    def _here(self, text: str) -> str:
        for documented, here in self.replaced.items():
            text = text.replace(documented, here)
        return text

    def _documented(self, text: str) -> str:
        for documented, here in self.replaced.items():
            text = text.replace(here, documented)
        return text


def shown(blocks: list[Block]) -> list[str | None]:
    """Return the output that the document shows for each bash block, if any."""
    following = [*blocks[1:], Block("", "")]
    return [
        after.text if after.language == "text" else None
        for block, after in zip(blocks, following, strict=True)
        if block.language == "bash"
    ]
