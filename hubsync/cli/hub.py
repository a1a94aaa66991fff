"""`hubsync hub`: the embedded Hub."""

from __future__ import annotations

from pathlib import Path

import click

from hubsync.cli.console import needs_extra


@click.group()
def hub() -> None:
    """Run the embedded Hub, for tests, demos and offline work."""


@hub.command()
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), default=Path("localhub"), show_default=True,
    help="Directory of its repos; created if it does not exist.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 for a free one.")
@click.option("--user", "users", multiple=True, metavar="NAME=TOKEN", help="A user and a write token; repeatable.")
@click.option("--commits-per-hour", type=click.IntRange(1), help="Commit quota; the real Hub's is about 128.")
def serve(directory: Path, host: str, port: int, users: tuple[str, ...], commits_per_hour: int | None) -> None:
    """Serve a Hub from a directory until Ctrl-C."""
    with needs_extra("the embedded Hub", "localhub"):
        from hubsync.localhub.server import serve as run
    tokens = {}
    for user in users:
        name, separator, token = user.partition("=")
        if not (name and separator and token):
            raise click.BadParameter(f"{user!r} is not NAME=TOKEN.", param_hint="--user")
        tokens[name] = token
    try:
        run(directory, host, port, tokens or None, commits_per_hour=commits_per_hour, say=click.echo)
    except OSError as error:
        raise click.ClickException(f"cannot serve {directory} at {host}, port {port}: {error}") from None
