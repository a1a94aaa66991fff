"""The pages in `docs/` and what they are made from."""

from __future__ import annotations

from benchmarks.guarantees import PAGE, crash_points, with_block


def test_the_crash_point_table_is_the_codes_own() -> None:
    page = PAGE.read_text()
    assert with_block(page, "crash points", crash_points()) == page
