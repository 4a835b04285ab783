"""Measures a loop: an execution that sends a request for each of many items, and the memory of its worker."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import sqlalchemy as sa

from benchmarks.installation import BenchmarkEnvironment, Installation
from benchmarks.processes import Process
from benchmarks.results import Result
from benchmarks.sizes import Sizes
from benchmarks.timings import read_timings, total_seconds
from benchmarks.waiting import slow_server
from benchmarks.workload import Flow, accept_backlog, create_flows
from bloxserver.models.tables import ExecutionRecord

SERVER_SECONDS = 0.1
PARALLEL = 50

LOOP = f"""\
organism: {{{{name: loop}}}}
listeners:
  - name: ask
    description: Sends a request for each row.
    handler: http.request
    for_each: payload.rows
    parallel: {PARALLEL}
    config: {{{{url: "{{url}}?id={{{{{{{{ payload.id }}}}}}}}"}}}}
"""


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Executions run one after the other. Memory is compared between the first tenth and the last one."""
    payload = json.dumps({"rows": [{"id": number} for number in range(sizes.items)]})
    async with slow_server(SERVER_SECONDS) as (server, url), environment.installation(kind) as installation:
        (flow,) = await create_flows(installation, 1, LOOP.format(url=url))
        async with installation.workers(settings={"SSRF_ALLOW_CIDRS": "127.0.0.0/8"}) as [process]:
            seconds: list[float] = []
            resident: list[float] = []
            for _ in range(sizes.loops):
                seconds.append(await _run(installation, process, flow, payload))
                resident.append(_resident_mebibytes(process))
    early = resident[max(0, len(resident) // 10 - 1)]
    description = f"{sizes.items:,} items, parallel: {PARALLEL}, responses after {SERVER_SECONDS:g} s"
    return [
        Result("loops", kind, f"{description}: first execution", f"{seconds[0]:.1f} s", "<= 4 s"),
        Result("loops", kind, "median of the others", f"{median(seconds[1:] or seconds):.1f} s", "<= 4 s"),
        Result("loops", kind, "most requests at once", str(server.peak), f"{min(PARALLEL, sizes.items)}"),
        Result(
            "loops",
            kind,
            f"memory of the worker after a tenth of {sizes.loops} executions, and after all",
            f"{early:.0f} MiB, {resident[-1]:.0f} MiB",
        ),
    ]


async def _run(installation: Installation, process: Process, flow: Flow, payload: str) -> float:
    """Run an execution; returns the seconds from its claim to its end."""
    await accept_backlog(installation, [flow], 1, payload=payload)
    await installation.wait_for_end([process])
    seconds = total_seconds(await read_timings(installation))
    async with installation.database.transaction() as session:
        await session.execute(sa.delete(ExecutionRecord))
    return seconds


def _resident_mebibytes(process: Process) -> float:
    """Return the memory of the process itself, without the processes of its pool; 0 where it is not known."""
    path = Path(f"/proc/{process.pid}/status")
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    kibibytes = (int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return next(kibibytes, 0) / 1024
