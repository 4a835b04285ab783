"""The package that the guide to blocks shows."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

from tests.test_documentation import GUIDE, ROOT, read, shown_in


class TestGuide:
    def test_its_package_passes_its_tests_and_adds_its_block(self, tmp_path: Path) -> None:
        module, tests = shown_in(GUIDE, "python")
        [project], [organism] = shown_in(GUIDE, "toml"), shown_in(GUIDE, "yaml")
        package, installed = tmp_path / "package", tmp_path / "installed"
        package.mkdir()
        for name, text in {
            "acme_blocks.py": module,
            "test_acme_blocks.py": tests,
            "pyproject.toml": project,
            "order.yaml": organism,
        }.items():
            assert f"`{name}`" in read(str(GUIDE.relative_to(ROOT)))
            (package / name).write_text(text)
        [wheel] = WheelBuilder(str(package)).build(directory=str(tmp_path / "built"), versions=["standard"])
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(installed)
        (package / "acme_blocks.py").unlink()

        def run(*arguments: str) -> str:
            environment = {**os.environ, "PYTHONPATH": str(installed)}
            command = [sys.executable, "-m", *arguments]
            done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        assert "3 passed" in run("pytest", "-q", "-W", "error", "-p", "no:asyncio", "test_acme_blocks.py")
        assert "0 errors, 0 warnings" in run("bloxserver", "check", "--no-settings", "order.yaml")
