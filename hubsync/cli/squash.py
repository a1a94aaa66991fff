"""`hubsync squash`: replace the history of a dataset by one commit."""

from __future__ import annotations

import click

from hubsync._runtime.formatting import count_text


@click.command()
@click.argument("repo")
@click.option("--yes", is_flag=True, help="Do it. Without, only show what would be lost.")
@click.option("--revision", default="main", show_default=True, help="Branch.")
@click.option("--endpoint", help="URL of the Hub.", show_default="HF_ENDPOINT, else huggingface.co")
def squash(repo: str, yes: bool, revision: str, endpoint: str | None) -> None:
    """Replace the history of a dataset by one commit.

    A history of thousands of commits makes a dataset slow. Squashing keeps every file as it is now. It cannot be
    undone: earlier revisions can no longer be loaded, nor what was deleted be restored, and `hubsync ls` no longer
    knows the rows, commit and time of today's shards. Jobs and followers may continue meanwhile.
    """
    from hubsync.errors import ConfigError
    from hubsync.maintenance.squash import squash as replace_history

    try:
        found = replace_history(repo, apply=yes, revision=revision, endpoint=endpoint)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    where = f"{found.repo} ({found.revision})"
    if found.commits < 2:
        click.echo(f"{where}: {count_text(found.commits, 'commit')}; there is nothing to squash.")
    elif found.commit is None:
        click.echo(
            f"{where}: {count_text(found.commits, 'commit')} would become 1, permanently: no earlier revision could be "
            "loaded or restored. Nothing was changed. To do it, add --yes."
        )
    else:
        click.echo(f"{where}: {count_text(found.commits, 'commit')} became 1: {found.commit}.")
