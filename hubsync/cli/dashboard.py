"""`hubsync dashboard`: the live page."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hubsync.cli.console import needs_extra


@click.command()
@click.argument("directories", nargs=-1, metavar="[SPOOL]...", type=click.Path(path_type=Path))
@click.option("--port", default=7870, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 for a free one.")
@click.option("--open", "browse", is_flag=True, help="Open the page in a browser.")
def dashboard(directories: tuple[Path, ...], port: int, browse: bool) -> None:
    """Serve a live page of your spools on 127.0.0.1.

    It shows SPOOL, or all your spools, and only reads them. To open it from another machine, forward the port:

    \b
        ssh -L 7870:127.0.0.1:7870 HOST, then http://127.0.0.1:7870
    """
    with needs_extra("the page", "dashboard"):
        from hubsync.dashboard.server import serve

    def print_address(address: str) -> None:
        click.echo(address)
        sys.stdout.flush()
        if browse:
            click.launch(address)

    serve(directories, port, print_address)
