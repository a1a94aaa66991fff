"""`hubsync prune`: remove empty spools."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubsync._runtime.formatting import count_text
from hubsync.cli.console import DIRECTORY, message, print_lines

if TYPE_CHECKING:
    from hubsync.maintenance.prune import Pruned

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Age(click.ParamType[float]):
    """An age such as 90s, 30m, 12h, 7d or 2w, in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw])", str(value))
        if match is None:
            self.fail(f"{value!r} is not an age, such as 30m, 12h or 7d.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.command()
@click.argument("spools", nargs=-1, metavar="[SPOOL]...", type=DIRECTORY)
@click.option("--yes", is_flag=True, help="Do it. Without, only show what would be done.")
@click.option(
    "--older-than", type=Age(), default="0s", help="Only spools that no job used for this long: 30m, 12h, 7d."
)
@click.option("--keys", "forget_keys", is_flag=True, help="Also spools that remember the keys of batches.")
@click.option(
    "--export", "out", type=click.Path(path_type=Path, dir_okay=False),
    help="Write all rows of one SPOOL to this file (JSON Lines) first.",
)  # fmt: skip
@click.option("--discard", is_flag=True, help="Remove one SPOOL with all its rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per spool and line.")
def prune(
    spools: tuple[Path, ...], yes: bool, older_than: float, forget_keys: bool, out: Path | None, discard: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Remove empty spools (default: all of yours).

    Shows what would be removed; --yes removes it. A spool stays if a process has it open, if it holds rows or rejected
    rows, or if it cannot be read. What was committed stays on the Hub.

    \b
    If the rows of a spool can never be uploaded, since its repo is gone for example:
        hubsync prune SPOOL --export rows.jsonl
        hubsync prune SPOOL --discard --yes
    """
    from hubsync.maintenance.inspect import default_spools
    from hubsync.maintenance.prune import export_rows
    from hubsync.maintenance.prune import prune as find_empty

    if (out is not None or discard) and len(spools) != 1:
        raise click.UsageError("--export and --discard take one SPOOL.")
    if out is not None:
        rows = export_rows(spools[0], out)
        message(f"Exported to {out}: {count_text(rows, 'row')}. They are still in {spools[0]}.")
    if discard:
        _discard(spools[0], yes)
    elif out is None:
        found = list(
            find_empty(
                spools or list(default_spools()), older_than_s=older_than, forget_keys=forget_keys, dry_run=not yes
            )
        )
        _print(found, yes, as_json)
        sys.exit(1 if spools and not all(one.is_removed for one in found) else 0)


def _discard(spool: Path, yes: bool) -> None:
    from hubsync.maintenance.inspect import inspect_spool
    from hubsync.maintenance.prune import discard_spool

    if yes:
        message(f"Removed {spool}, and {count_text(discard_spool(spool), 'row')} that were not on the Hub.")
        return
    depth = inspect_spool(spool).depth
    lost = count_text(depth.rows + depth.dead_rows, "row")
    message(f"This would remove {spool}, and {lost} that are not on the Hub. Nothing was changed; add --yes to do it.")


def _print(found: Sequence[Pruned], yes: bool, as_json: bool) -> None:
    removed = [one for one in found if one.is_removed]
    if as_json:
        for one in found:
            action = "kept" if not one.is_removed else "removed" if yes else "would be removed"
            click.echo(json.dumps({"spool": str(one.directory), "action": action, "why": one.why, "rows": one.rows}))
        return
    parts = {
        "Kept:": [one for one in found if not one.is_removed],
        "Removed:" if yes else "Would be removed:": removed,
    }
    for heading, spools in parts.items():
        if spools:
            click.echo(heading)  # where the list goes, so that a pipe keeps them together
            print_lines([("", f"{one.directory}: {one.why}") for one in spools])
    if not removed:
        message("There is no empty spool.")
    elif not yes:
        message(f"Nothing was changed. To remove {count_text(len(removed), 'empty spool')}, add --yes.")
