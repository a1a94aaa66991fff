"""`hubsync agent`: upload for all jobs of this host and user."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from hubsync._runtime.exceptions import root_cause
from hubsync.cli.console import Seconds, message

if TYPE_CHECKING:
    from hubsync.agent.agent import Agent


@click.command()
@click.argument("directories", nargs=-1, metavar="[SPOOL]...", type=click.Path(path_type=Path))
@click.option("--health", metavar="HOST:PORT", help="Serve a page of JSON for supervisors; port 0 takes a free one.")
@click.option("--exit-when-idle", type=Seconds(), metavar="SECONDS", help="End once no spool has changed for so long.")
def agent(directories: tuple[Path, ...], health: str | None, exit_when_idle: float | None) -> None:
    """Upload for all jobs of this host and user.

    It serves your default spools, those of running jobs with committer="agent", and SPOOL, which may also be a
    directory of spools. The token is that of HF_TOKEN or `hf auth login`. After SIGTERM it finishes the running
    commits; a second signal ends it at once.
    """
    from hubsync.agent.agent import Agent
    from hubsync.agent.health import serve_health

    serving = Agent(directories)
    with ExitStack() as stack:
        if health is not None:
            host, _, port = health.rpartition(":")
            if not host or not port.isdigit() or int(port) > 65535:
                raise click.BadParameter("expected HOST:PORT, such as 127.0.0.1:7871.", param_hint="--health")
            message(stack.enter_context(serve_health(host.strip("[]"), int(port), serving.health)))
        try:
            anyio.run(_run, serving, exit_when_idle)
        except BaseExceptionGroup as group:
            error = root_cause(group)
            raise error from error.__cause__


async def _run(serving: Agent, exit_when_idle: float | None) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_by_signal, serving)
        await serving.run(exit_when_idle_s=exit_when_idle)
        tasks.cancel_scope.cancel()


async def _stop_by_signal(serving: Agent) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        number = await anext(signals)
        message("Finishing the running commits. A second signal ends the agent at once; the rows stay in the spools.")
        serving.stop()
        number = await anext(signals)
        os._exit(128 + number)
