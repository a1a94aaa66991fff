"""Blobs that the Hub lost, or wrongly claims to have."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from hubsync.errors import DefectError, ShardsRefused
from hubsync.model.commit import Plan
from tests.committer.test_committer import anyio_backend, ids, open_uploader, simulated
from tests.simulated import SimulatedHub

__all__ = ["anyio_backend", "simulated"]

pytestmark = pytest.mark.anyio


async def test_a_lost_blob_delays_the_card_by_one_commit_only(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated.mode = "lfs"
    commit, left = simulated._commit, [2]  # with the card, and without

    async def refuse(plan: Plan) -> str:
        if plan.shards and left[0]:
            left[0] -= 1
            raise DefectError("400, unknown blob", status=400)
        return await commit(plan)

    monkeypatch.setattr(simulated, "_commit", refuse)
    async with open_uploader(tmp_path) as up:
        await up.put([{"id": 1}])
        await up.flush()
        await up.put([{"id": 2}])
    assert ids(simulated) == [1, 2]
    assert "README.md" in simulated.files


@pytest.mark.parametrize(("times", "found"), [(5, [1, 2]), (100, [2])])
async def test_a_blob_that_the_store_lost_is_uploaded_again_a_bounded_number_of_times(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, found: list[int]
) -> None:
    simulated.mode = "lfs"
    # Five times whatever happens: how many commits with the card are among them depends on which blob is staged first.
    commit, left = simulated._commit, [times]

    async def refuse(plan: Plan) -> str:
        if left[0] and any(shard.rows == 1 and shard.file.read_bytes() == b'{"id":1}\n' for shard in plan.shards):
            left[0] -= 1
            raise DefectError("400, an LFS pointer pointed to a file that does not exist", status=400)
        return await commit(plan)

    monkeypatch.setattr(simulated, "_commit", refuse)
    with pytest.raises(ShardsRefused) if found == [2] else nullcontext():
        async with open_uploader(tmp_path) as up:
            await up.put([{"id": 1}])
            await up.put([{"id": 2}])
    assert ids(simulated) == found
