"""`hubsync hub`: the embedded Hub."""

from __future__ import annotations

from pathlib import Path

import click

from hubsync.cli.console import needs_extra


@click.group()
def hub() -> None:
    """Run the embedded Hub, for tests, demos and offline work."""


def _pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Return NAME -> what follows the first "=", or the empty string."""
    pairs = {name: text for name, _, text in (value.partition("=") for value in values)}
    if "" in pairs:
        raise click.BadParameter(f"a value has no name; write {option.metavar}.", param=option)
    return pairs


@hub.command()
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), default=Path("localhub"), show_default=True,
    help="Directory of its repos; created if it does not exist.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 for a free one.")
@click.option(
    "--user", "users", multiple=True, callback=_pairs, metavar="NAME[=TOKEN]",
    help="A user and a write token. Without TOKEN, each start makes a new one and prints it once. Repeatable.",
)  # fmt: skip
@click.option(
    "--org", "orgs", multiple=True, callback=_pairs, metavar="NAME=USER[,USER...]",
    help="An organization, and the users who may write to its repos. Repeatable.",
)  # fmt: skip
@click.option(
    "--commits-per-hour", type=click.IntRange(1), help="Commit quota of each user; the real Hub's is about 128."
)
def serve(
    directory: Path, host: str, port: int, users: dict[str, str], orgs: dict[str, str], commits_per_hour: int | None
) -> None:
    """Serve a Hub from a directory until Ctrl-C."""
    with needs_extra("the embedded Hub", "localhub"):
        from hubsync.localhub.server import DEFAULT_USERS
        from hubsync.localhub.server import serve as run
    tokens = {name: token or None for name, token in users.items()} or dict(DEFAULT_USERS)
    members = {org: [name for name in names.split(",") if name] for org, names in orgs.items()}
    for org, names in members.items():
        if org in tokens:
            raise click.BadParameter(f"{org} is already a user. Choose another name.", param_hint="--org")
        if unknown := [name for name in names if name not in tokens]:
            raise click.BadParameter(f"no user {', '.join(unknown)}. Add --user {unknown[0]}.", param_hint="--org")
    try:
        run(directory, host, port, tokens, members, commits_per_hour=commits_per_hour, say=click.echo)
    except OSError as error:
        raise click.ClickException(f"cannot serve {directory} at {host}, port {port}: {error}") from None
