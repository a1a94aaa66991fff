"""The entry point: global options, and the commands, each loaded from its file when it is called.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM; `status` and `drain` also use those of
`telemetry.condition.ExitCode`.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from pathlib import Path

import click

from hubsync import __version__
from hubsync.cli.console import Interruptible, report_errors

# In the order of the help page: the module in `hubsync.cli`, and the function if it has another name.
COMMANDS = {
    "demo": "demo",
    "pipe": "pipe",
    "status": "status",
    "dashboard": "dashboard",
    "drain": "drain",
    "agent": "agent",
    "prune": "prune",
    "dead-letter": "dead_letter",
    "verify": "verify",
    "compact": "compact",
    "squash": "squash",
    "ls": "read:ls",
    "read": "read",
    "tail": "read:tail",
    "hub": "hub",
    "hf-extension": "hf_extension",
}


class _LazyGroup(Interruptible):
    """A group that imports a command when it is called, or when its help is shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; return None if there is no command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(f"hubsync.cli.{module}"), function or module)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", count=True, help="Log more: -v state changes and progress, -vv everything.")
def cli(verbose: int) -> None:
    """Upload rows from running jobs to the Hugging Face Hub, and read them back."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for library in ("httpx", "httpx2"):  # whichever huggingface_hub uses: it logs a line per request
        logging.getLogger(library).setLevel(logging.WARNING)


def main() -> None:
    """Run the command line, as `hubsync`, `python -m hubsync` or `hf hubsync`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    program = "hf hubsync" if Path(sys.argv[0]).name == "hf-hubsync" else "hubsync"
    with report_errors():
        cli(prog_name=program)
