"""JSON Lines for standard input."""

from __future__ import annotations


def jsonl(start: int, stop: int) -> str:
    """Return a row for each number, as JSON Lines."""
    return "".join(f'{{"id": {n}}}\n' for n in range(start, stop))
