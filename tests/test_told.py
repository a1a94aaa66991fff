"""A card that was refused once, beside a blob that the Hub had lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubsync.errors import DefectError
from hubsync.plan import Plan
from tests.simulated import SimulatedHub
from tests.test_committer import anyio_backend, ids, open_uploader, simulated

__all__ = ["anyio_backend", "simulated"]

pytestmark = pytest.mark.anyio


async def test_a_lost_blob_takes_the_card_with_it_for_one_commit_only(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated.mode = "lfs"
    commit, left = simulated.commit, [2]

    async def refuse(plan: Plan) -> str:
        if plan.shards and left[0]:
            left[0] -= 1
            raise DefectError("400, unknown blob", status=400)
        return await commit(plan)

    monkeypatch.setattr(simulated, "commit", refuse)
    async with open_uploader(tmp_path) as up:
        await up.put([{"id": 1}])
        await up.flush()
        await up.put([{"id": 2}])
    assert ids(simulated) == [1, 2]
    assert "README.md" in simulated.files
