"""The demo's job, run as `python -m hubsync.cli.demo_job REPO SPOOL ROWS`, and its corpus.

The rows are real: the documented functions and classes of the standard library, with their source.
"""

from __future__ import annotations

import ast
import json
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

BATCH = 20
_THINK_S = 0.02  # the time of a model call, scaled down


def corpus() -> Iterator[dict[str, str]]:
    """Yield the documented functions and classes of the standard library in a fixed order, again and again."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        file
        for file in root.rglob("*.py")
        if not {"site-packages", "test", "tests", "idle_test"} & set(file.relative_to(root).parts)
    )
    for lap in count():
        for file in files:
            module = ".".join(file.relative_to(root).with_suffix("").parts)
            for row in _rows_of(file, module):
                yield {**row, "id": row["id"] + (f"#{lap}" if lap else "")}


def _rows_of(file: Path, module: str) -> Iterator[dict[str, str]]:
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (doc := ast.get_docstring(node)):
            yield {
                "id": f"{module}:{node.name}:{node.lineno}",
                "kind": "class" if isinstance(node, ast.ClassDef) else "function",
                "module": module,
                "name": node.name,
                "doc": doc,
                "source": "\n".join(lines[node.lineno - 1 : node.end_lineno]),
            }


def main(repo: str, spool: str, rows: int) -> None:
    """Generate rows and upload them, as a user's job would; print what happens as JSON Lines, for the demo."""
    from hubsync import CommitPolicy, RetryPolicy, ShardPolicy, Uploader

    shard, commit = ShardPolicy(linger_s=0.5), CommitPolicy(per_hour=3_600)
    retry = RetryPolicy(open_timeout_s=120)  # a busy machine
    with Uploader(repo, spool=spool, shard=shard, commit=commit, retry=retry) as up:
        done = up.offset()
        start = 0 if done is None else done + 1
        source = islice(corpus(), start, rows)
        for position in range(start, rows, BATCH):
            batch = list(islice(source, BATCH))
            time.sleep(_THINK_S)
            before = time.perf_counter()
            up.put(batch, offset=position + len(batch) - 1)
            put_ms = (time.perf_counter() - before) * 1e3
            print(json.dumps({"rows": position + len(batch), "put_ms": put_ms}), flush=True)
        up.flush()
        counts = up.stats().counts
        print(json.dumps({"commits": counts.commits, "retries": counts.retries}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
