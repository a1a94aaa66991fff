"""A short run of the damage benchmark: a job whose spool is damaged ends, finished or with an error that says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.damage import Round

SEED = 1


@pytest.mark.slow("runs jobs whose spools are damaged")
# 7 and 8: a segment grows, and is cut, while the job writes. 17: the catalogue's log is deleted after SIGKILL.
@pytest.mark.parametrize("number", [0, 7, 8, 16, 17, 20])
def test_a_job_on_a_damaged_spool_ends_and_names_what_is_lost(tmp_path: Path, number: int) -> None:
    outcome = Round(tmp_path, SEED, number).run()
    assert outcome.faults
    assert outcome.wrong == [], outcome.log
