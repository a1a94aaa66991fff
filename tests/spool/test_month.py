"""A short run of the month simulation: the catalogue and the memory are as large after outages as before."""

from __future__ import annotations

import pytest

from benchmarks.month import simulate
from tests.conftest import rounds


@pytest.mark.slow("seals thousands of shards")
def test_nothing_grows_over_days_with_outages() -> None:
    samples = simulate(rounds(3, 6) / 4, writers=8, outage_h=2.0, sample_h=1.0)
    calm = [sample for sample in samples if not sample["away"]]
    catalogue = [sample["catalogue, MB"] for sample in calm[len(calm) // 3 :]]
    assert max(catalogue) < 2  # a thousand settled segments and a backlog of 600
    assert catalogue[-1] <= 1.5 * catalogue[0]
    memory = [sample["memory, MB"] for sample in calm[len(calm) // 3 :]]
    assert memory[-1] <= memory[0] + 10
