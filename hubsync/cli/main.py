"""The command line. Rich for people, plain lines where there is no terminal, JSON for programs. Everything it does is a
few calls into the library; exit code 0 is success, 1 a failure, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubsync import __version__
from hubsync._runtime.formatting import count_text, size_text
from hubsync.cli.console import Interruptible, Seconds, errors_told, new_file, printable, say, told
from hubsync.cli.dead_letter import dead_letter
from hubsync.model.layout import FORMATS

if TYPE_CHECKING:
    from rich.console import Console

    from hubsync.cli.stdin_reader import BadLine
    from hubsync.maintenance.verify import Report

_DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.group(cls=Interruptible, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", count=True, help="Say more: -v what changes, -vv everything.")
def cli(verbose: int) -> None:
    """Rows from a running job, safe and visible on the Hugging Face Hub while it runs."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for library in ("httpx", "httpx2"):  # whichever huggingface_hub has: a line a request
        logging.getLogger(library).setLevel(logging.WARNING)


@cli.command()
@click.option("--rows", default=4_000, show_default=True, type=click.IntRange(1), help="Rows that the job generates.")
@click.option("--crash", is_flag=True, help="Kill the job with SIGKILL in the middle, and start it again.")
@click.option("--outage", default=3.0, show_default=True, type=Seconds(), help="Seconds that the Hub is gone.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Keep the Hub and the spool here, to look at afterwards.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo(rows: int, crash: bool, outage: float, directory: Path | None, as_json: bool) -> None:
    """A real job against an embedded Hub, offline: killed, cut off, and every row there exactly once."""
    try:
        import hubsync.localhub.server  # noqa: F401
        from hubsync.cli.demo import run
    except ImportError as error:
        raise click.ClickException(f"{error}: the demo needs `pip install 'hf-hubsync[demo]'`.") from None
    sys.exit(0 if run(rows=rows, crash=crash, outage_s=outage, directory=directory, as_json=as_json) else 1)


@cli.command()
@click.argument("repo")
@click.option("--config", default="default", show_default=True)
@click.option("--split", default="train", show_default=True)
@click.option("--path", help="Template of the shards' paths, such as {config}/{split}-{writer}-{seq:05d}.jsonl.")
@click.option("--format", type=click.Choice(FORMATS), default="jsonl", show_default=True, help="What the shards are.")
@click.option("--private/--public", default=None, help="For a repo that is made now.")
@click.option("--revision", default="main", show_default=True)
@click.option("--spool", type=_DIRECTORY, help="Where rows are kept until they are committed.")
@click.option(
    "--linger", default=60.0, show_default=True, type=Seconds(), help="Seconds until a row is brought up at the latest."
)
@click.option("--source", help="A name for this stream: run again, it goes on after the lines it already brought.")
@click.option(
    "--bad-lines",
    type=click.Choice(["fail", "set-aside"]),
    default="fail",
    show_default=True,
    help="What to do with a line that is no JSON object.",
)
@click.option(
    "--aside",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=new_file,
    help="Where bad lines go [SPOOL/dead-letter/lines.txt].",
)
@click.option("--timeout", type=Seconds(), help="Seconds to drain at the end; then the rest stays in the spool.")
@click.option(
    "--grace",
    default=25.0,
    show_default=True,
    type=Seconds(),
    help="Seconds to drain after SIGTERM or Ctrl-C; a second one ends it.",
)
@click.option("--progress/--no-progress", default=None, help="Bars all the time, or never [where draining takes long].")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pipe(
    repo: str,
    config: str,
    split: str,
    path: str | None,
    format: Any,
    private: bool | None,
    revision: str,
    spool: Path | None,
    linger: float,
    source: str | None,
    bad_lines: Any,
    aside: Path | None,
    timeout: float | None,
    grace: float,
    progress: bool | None,
    as_json: bool,
) -> None:
    """JSON Lines from standard input to the dataset REPO.

    \b
    my-job | hubsync pipe user/rollouts
    """
    from hubsync.cli.stdin_reader import BadLine
    from hubsync.cli.stdin_reader import pipe as run
    from hubsync.errors import HubsyncError, ShardsRefused
    from hubsync.policies import ShardPolicy
    from hubsync.uploader.sync import Uploader

    if sys.stdin is None:
        raise click.UsageError("standard input is closed: there is nothing to read.")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the uploader's to handle
    up = Uploader(
        repo,
        config=config,
        split=split,
        path=path,
        format=format,
        private=private,
        revision=revision,
        spool=spool,
        shard=ShardPolicy(linger_s=linger),
        grace_s=grace,
        progress=progress,
    )
    with up:
        where, offline = up.spool, up.stats().state.kind == "offline"
        try:
            done = run(sys.stdin.fileno(), up, source=source, bad_lines=bad_lines, aside=aside)
        except HubsyncError as error:
            place = f"in {where}" if offline else f"on the Hub in {repo}"
            try:
                up.close(timeout)
            except HubsyncError as left:
                place = f"in {where}"
                error.add_note(str(left))
            if isinstance(error, BadLine):
                error.add_note(_after(error, place, source))
            raise
        try:
            up.close(timeout)
        except ShardsRefused as error:
            error.add_note(f"{_counted(done.rows - error.rows, 'row')} on the Hub in {repo}; {error.rows:,} refused.")
            raise
    if as_json:
        click.echo(json.dumps({"repo": repo, "lines": done.read, "rows": done.rows, "skipped": done.skipped,
                               "set_aside": done.set_aside}))  # fmt: skip
        return
    if offline:
        them = "it" if done.rows == 1 else "them"
        notes = [
            f"{_counted(done.rows, 'row')} in {where} (HF_HUB_OFFLINE is set)",
            f"bring {them} up with: hubsync drain {where}",
        ]
    else:
        notes = [f"{_counted(done.rows, 'row')} on the Hub in {repo}"]
    if done.skipped:
        notes.append(f"{count_text(done.skipped, 'line')} {'was' if done.skipped == 1 else 'were'} there already")
    if done.set_aside:
        notes.append(f"{_counted(done.set_aside, 'bad line')} in {aside or where / 'dead-letter' / 'lines.txt'}")
    say("; ".join(notes) + ".")


def _counted(number: int, what: str) -> str:
    return f"{count_text(number, what)} {'is' if number == 1 else 'are'}"


def _after(bad: BadLine, place: str, source: str | None) -> str:
    """What is to be known where a bad line has ended a stream."""
    again = (
        f"Run again with --source {source}, it goes on behind them."
        if source
        else f"Run again with what is from line {bad.number:,} on: only with --source they would be passed over."
    )
    before = f"The lines before it are {place}. {again} " if bad.number > 1 else ""
    return f"{before}To put such lines into a file and go on: --bad-lines set-aside."


@cli.command()
@click.argument("spool", required=False, type=_DIRECTORY)
@click.option("--timeout", type=Seconds(), help="Seconds; then the rest stays in the spool.")
@click.option("--rescue", "broken", is_flag=True, help="The catalogue is corrupt or gone: go by the segments' files.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def drain(spool: Path | None, timeout: float | None, broken: bool, as_json: bool) -> None:
    """Brings up what SPOOL still holds; without SPOOL, what all spools at the usual place hold."""
    if broken:
        _rescue(spool)
    from hubsync.errors import HubsyncError
    from hubsync.maintenance.inspect import spools

    results = _drained([spool] if spool is not None else list(spools()), timeout)
    for result in results:
        if (error := result.get("error")) is not None:
            if spool is not None or not isinstance(error, HubsyncError):
                raise error
            result["error"] = told(error)
    if as_json:
        click.echo(json.dumps(results))
    elif not results:
        say("There is no spool; nothing to bring up.")
    for result in results if not as_json else ():
        dead = f"; {count_text(result['dead_shards'], 'shard')} in the dead letter" if result.get("dead_shards") else ""
        outcome = f"not brought up: {result['error']}" if "error" in result else f"all on the Hub{dead}."
        say(f"{result['spool']}: {outcome}")
        if dead:
            say(f"To look at them, or put them again: hubsync dead-letter list {result['spool']}")
    if any("error" in result or result["dead_shards"] for result in results):
        sys.exit(1)


def _drained(directories: list[Path], timeout: float | None) -> list[dict[str, Any]]:
    """All at once, since one may wait for its Hub, or its quota, for hours."""
    from hubsync.maintenance.drain import drain as run
    from hubsync.maintenance.drain import shown
    from hubsync.maintenance.inspect import spool_facts

    def bring_up(directory: Path) -> dict[str, Any]:
        say(f"{directory}")
        try:
            with shown(directory, say) as progress:
                depth = run(directory, timeout=timeout, progress=progress)
        except Exception as error:  # noqa: BLE001  (which is no reason to leave the others)
            return {"spool": str(directory), "error": error}
        return {
            "spool": str(directory), "rows_left": depth.rows, "dead_shards": depth.dead,
            "committed_rows": depth.committed_rows,
        }  # fmt: skip

    results: dict[Path, dict[str, Any]] = {}
    threads = [
        threading.Thread(target=lambda at=directory: results.update({at: bring_up(at)}), daemon=True)
        for directory in directories
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for directory in [directory for directory in directories if directory not in results]:
            left = count_text(spool_facts(directory)["rows_waiting"], "row")
            say(f"Interrupted: {left} not yet on the Hub, and safe in {directory}.")
            say(f"To go on: hubsync drain {directory}")
        sys.exit(130)
    return [results[directory] for directory in directories]


def _rescue(spool: Path | None) -> None:
    from hubsync.maintenance.rebuild import rebuild

    if spool is None or not (spool / "segments").is_dir():
        raise click.BadParameter("--rescue needs the directory of a spool.", param_hint="SPOOL")
    found = rebuild(spool)
    if found is None:
        say(f"{spool}: its catalogue is sound; nothing to rescue.")
        return
    kept = f" The broken catalogue is kept as {found.kept}." if found.kept else ""
    say(
        f"Rescued: {count_text(found.rows, 'row')} in {count_text(found.segments, 'file')}; on the Hub already: "
        f"{count_text(found.on_hub, 'file')}.{kept}"
    )
    for line in found.unknown:
        say(f"  could not be known: {line}")


@cli.command()
@click.argument("spool", required=False, type=_DIRECTORY)
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    type=Seconds(min_open=True),
    help="Seconds between two looks with --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a spool, one line each.")
def status(spool: Path | None, watch: bool, interval: float, as_json: bool) -> None:
    """What SPOOL holds, how old it is, what went wrong last, when it is tried next; works while a job writes."""
    from rich.console import Console

    from hubsync.errors import HubsyncError
    from hubsync.maintenance.inspect import spool_facts, spools

    console = Console()
    while True:
        facts = [spool_facts(spool)] if spool is not None else []
        for directory in spools() if spool is None else ():
            try:
                facts.append(spool_facts(directory))
            except HubsyncError as error:  # which hides no other
                facts.append({"spool": str(directory), "error": str(error)})
        if as_json:
            for fact in facts:
                click.echo(json.dumps(fact))
        else:
            if watch and console.is_terminal:
                console.clear()
            _show(console, facts)
        if not watch:
            sys.exit(1 if any("error" in fact for fact in facts) else 0)
        sys.stdout.flush()
        time.sleep(interval)


def _show(console: Console, facts: list[dict[str, Any]]) -> None:
    from rich.text import Text

    if not facts:
        console.print("There is no spool.")
    for fact in facts:
        lines = _lines_of(fact)
        width = max(len(name) for name, _ in lines) + 2
        for name, value in lines:
            # A server's words are no markup. Nothing is broken into lines, so that a command can be copied as it is.
            console.print(Text.assemble((f"{name:<{width}}", "bold"), printable(value)), soft_wrap=True)
        console.print()


def _lines_of(fact: dict[str, Any]) -> list[tuple[str, str]]:
    from hubsync._runtime.formatting import clock_text

    if "error" in fact:
        return [("spool", fact["spool"]), ("error", fact["error"])]
    shards = ", ".join(f"{n} {state}" for state, n in fact["shards"].items() if n and state != "dead")
    age = fact["oldest_age_s"]
    jobs = ", ".join(map(str, fact["writer_pids"]))
    nobody = f"nobody (open in process {jobs})" if jobs else "nobody (no job has it open)"
    committer = f"process {fact['committer_pid']}" if fact["committer_pid"] else nobody
    state = fact["state"] if fact["committer_pid"] or jobs else f"{fact['state']} (as the last job left it)"
    lines = [
        ("repo", f"{fact['repo']} ({fact['revision']}) at {fact['endpoint']}"),
        ("spool", fact["spool"]),
        (
            "waiting",
            f"{count_text(fact['rows_waiting'], 'row')}, {size_text(fact['bytes_waiting'])}"
            + (f" ({shards})" if shards else ""),
        ),
        ("oldest", f"{age:,.0f} s" if age is not None else "nothing waits"),
        (
            "committed",
            f"{count_text(fact['committed']['rows'], 'row')}, {count_text(fact['committed']['shards'], 'shard')}",
        ),
        ("committer", committer),
        ("state", state + (f": {fact['reason']}" if fact["reason"] else "")),
    ]
    if fact["next_try_at"] and fact["next_try_at"] > time.time():
        lines.append(("next try", clock_text(fact["next_try_at"])))
    lines += [("dead letter", f"{d['path']} ({d['rows']:,} rows): {d['why']}") for d in fact["dead_letter"]]
    if fact["rows_waiting"] and not fact["committer_pid"] and not jobs:
        lines.append(("to do", f"hubsync drain {fact['spool']}"))
    if fact["dead_letter"]:
        lines.append(("to do", f"hubsync dead-letter list {fact['spool']}"))
    return lines


@cli.command()
@click.argument("directories", nargs=-1, metavar="[SPOOL]...", type=click.Path(path_type=Path))
@click.option("--port", default=7870, show_default=True, type=click.IntRange(0, 65535), help="0 for a free one.")
@click.option("--open", "browse", is_flag=True, help="Open it in the browser.")
def dashboard(directories: tuple[Path, ...], port: int, browse: bool) -> None:
    """A live page of SPOOL, or of all spools at the usual place, on 127.0.0.1; it only reads.

    \b
    From another machine: ssh -L 7870:127.0.0.1:7870 HOST, then http://127.0.0.1:7870
    """
    try:
        from hubsync.dashboard.server import serve as run
    except ImportError as error:
        raise click.ClickException(f"{error}: the page needs `pip install 'hf-hubsync[dashboard]'`.") from None

    def started(address: str) -> None:
        click.echo(address)
        sys.stdout.flush()
        if browse:
            click.launch(address)

    run(directories, port, started)


@cli.command()
@click.argument("where", nargs=-1, metavar="[SPOOL] REPO")
@click.option("--no-spool", is_flag=True, help="Compare the dataset with itself alone, also where there is a spool.")
@click.option("--revision", default="main", show_default=True)
@click.option("--endpoint", help="The Hub [HF_ENDPOINT, else huggingface.co].")
@click.option("--content", is_flag=True, help="Download every shard as well: check its bytes, count its rows.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def verify(
    where: tuple[str, ...], no_spool: bool, revision: str, endpoint: str | None, content: bool, as_json: bool
) -> None:
    """Whether the dataset REPO holds what was committed to it, whole and once.

    Compares it with itself (watermarks, numbers, rows) and with what SPOOL committed: without SPOOL, the spool that
    jobs of this host use for REPO, where there is one. Jobs may go on meanwhile. Exit code 1 where anything differs.
    """
    from hubsync.errors import ConfigError
    from hubsync.maintenance.verify import default_spool
    from hubsync.maintenance.verify import verify as run

    if not 1 <= len(where) <= 2 or (no_spool and len(where) == 2):
        raise click.UsageError("give [SPOOL] REPO, or --no-spool and REPO.")
    *given, repo = where
    spool = Path(given[0]) if given else None
    try:
        if spool is None and not no_spool:
            spool = default_spool(repo, revision=revision, endpoint=endpoint)
            said = f"comparing with the spool {spool}" if spool else "there is no spool of it here"
            say(f"{repo}: {said}")
        report = run(repo, spool=spool, revision=revision, endpoint=endpoint, content=content, progress=_read_so_far)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        click.echo(json.dumps({"ok": report.ok, **dataclasses.asdict(report)}))
    else:
        _show_report(report)
    sys.exit(0 if report.ok else 1)


def _read_so_far(read: int, shards: int) -> None:
    if sys.stderr.isatty():
        say(f"\r{read:,} of {shards:,} shards read", nl=read == shards)


def _show_report(report: Report) -> None:
    lines = [f"{d.kind:9} {d.path}: expected {d.expected}; found {d.found}. {d.hint}" for d in report.differences] + [
        f"note      {note}" for note in report.notes
    ]
    outcome = "all agrees" if report.ok else count_text(len(report.differences), "difference")
    lines.append(
        f"{report.repo} ({report.revision}) at {report.commit}: {outcome}. {count_text(report.shards, 'shard')}, "
        f"{count_text(report.rows, 'row')}, {size_text(report.bytes)}, {count_text(report.writers, 'writer')}; "
        + ("content read; " if report.content else "content not read (--content); ")
        + (f"compared with {report.spool}" if report.spool else "no spool compared")
    )
    for line in lines:
        # Paths are others' text: a terminal must not obey it.
        click.echo(printable(line))


def _of_a_dataset(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the commands that read one."""
    for option in (
        click.option("--endpoint", help="The Hub [HF_ENDPOINT, else huggingface.co]."),
        click.option("--revision", default="main", show_default=True),
        click.option("--split", help="Of this split only."),
        click.option("--config", help="Of this config only."),
        click.argument("repo"),
    ):
        command = option(command)
    return command


def _of_rows(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the commands that write rows."""
    for option in (
        click.option("--spool", type=_DIRECTORY, help="Also what this spool has not committed yet."),
        click.option(
            "--cursor",
            "kept",
            type=click.Path(path_type=Path, dir_okay=False),
            callback=new_file,
            help="Go on behind the cursor in this file, and keep it there.",
        ),
        click.option(
            "--bad-lines", type=click.Choice(["fail", "skip"]), default="fail", show_default=True,
            help="What to do with a line that is no JSON object.",
        ),
    ):  # fmt: skip
        command = option(command)
    return _of_a_dataset(command)


@cli.command()
@_of_rows
@click.option("--since", help="Only what came after it: a commit's sha, or a time (ISO 8601).")
def read(spool: Path | None, **options: Any) -> None:
    """The rows of the dataset REPO, as JSON Lines."""
    from hubsync.cli.jsonl_writer import read as run

    run(options.pop("repo"), spool=spool or False, **options)


@cli.command()
@_of_rows
@click.option("-n", "--rows", "count", default=10, show_default=True, type=click.IntRange(0), help="So many of them.")
@click.option("-f", "--follow", "on", is_flag=True, help="Then every row that comes, until Ctrl-C.")
@click.option(
    "--poll", "poll_s", default=10.0, show_default=True, type=Seconds(min_open=True),
    help="Seconds between two looks.",
)  # fmt: skip
def tail(**options: Any) -> None:
    """The last rows of the dataset REPO, by the time of their commits, as JSON Lines."""
    from hubsync.cli.jsonl_writer import tail as run

    run(options.pop("repo"), **options)


@cli.command()
@_of_a_dataset
@click.option("--json", "as_json", is_flag=True, help="JSON Lines, as where standard output is no terminal.")
def ls(repo: str, as_json: bool, **options: Any) -> None:
    """The shards of the dataset REPO: rows, bytes, writer, number, and the commit that brought them."""
    from hubsync.cli.jsonl_writer import must_hold
    from hubsync.reader.reading import shards

    found = list(shards(repo, **options))
    must_hold(repo, found, options)
    if as_json or not sys.stdout.isatty():
        for shard in found:
            time = shard.time.isoformat() if shard.time else None
            click.echo(json.dumps({**shard._asdict(), "time": time}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("path", "rows", "size", "writer", "commit", "time"):
        table.add_column(name, justify="right" if name in ("rows", "size") else "left", overflow="fold")
    for shard in found:
        cells = (
            shard.path, "?" if shard.rows is None else f"{shard.rows:,}", size_text(shard.bytes), shard.writer or "",
            (shard.commit or "")[:8], f"{shard.time:%Y-%m-%d %H:%M:%S}" if shard.time else "",
        )  # fmt: skip
        table.add_row(*(Text(printable(cell)) for cell in cells))  # others' text, and no markup
    Console().print(table)


cli.add_command(dead_letter)


@cli.group()
def hub() -> None:
    """The embedded Hub, for tests, demos and work without a network."""


@hub.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path("localhub"), show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535), help="0 for a free one.")
@click.option("--user", "users", multiple=True, metavar="NAME=TOKEN", help="A user and a write token; repeatable.")
@click.option("--commits-per-hour", type=click.IntRange(1), help="Refuse more, as the real Hub does at about 128.")
def serve(directory: Path, host: str, port: int, users: tuple[str, ...], commits_per_hour: int | None) -> None:
    """Serves a Hub from a directory until Ctrl-C."""
    try:
        from hubsync.localhub.server import serve as run
    except ImportError as error:
        raise click.ClickException(f"{error}: the embedded Hub needs `pip install 'hf-hubsync[localhub]'`.") from None
    named = {}
    for user in users:
        name, sep, token = user.partition("=")
        if not (name and sep and token):
            raise click.BadParameter(f"{user!r} is not NAME=TOKEN.", param_hint="--user")
        named[name] = token
    try:
        run(directory, host, port, named or None, commits_per_hour=commits_per_hour, say=click.echo)
    except OSError as error:
        raise click.ClickException(f"can't serve {directory} at {host}, port {port}: {error}") from None


@cli.command("hf-extension")
def hf_extension() -> None:
    """Makes `hf hubsync …` run this hubsync."""
    from hubsync.cli.extension import register

    click.echo(f"hf hubsync works now; {register()} says so.")


def main() -> None:
    """The entry point, of `hf-hubsync` too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    named = "hf hubsync" if Path(sys.argv[0]).name == "hf-hubsync" else "hubsync"
    with errors_told():
        cli(prog_name=named)
