"""A writer learns the outcome of its rows when the process that committed for it dies."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
import pytest

from hubsync.destinations.hub import card
from tests.test_model import _inline
from tests.world import World


def test_a_new_committer_learns_what_its_predecessor_settled_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.preload()
    monkeypatch.setattr(anyio.to_thread, "run_sync", _inline)
    world = World(tmp_path)
    first, second = world.start(0), world.start(1)

    def answer_all(seconds: float) -> None:
        for call in world.calls():
            world.answer(call, "ok")
        world.run()
        world.pass_time(seconds)

    for _ in range(20):
        answer_all(0.5)
    assert first.spool.lease.is_held
    receipt = second.put(b'{"id":"b"}\n')
    flushed = second.engine.flush()
    second._spool()
    second.paused = True  # it sees nothing while the other one settles its shard
    while first.spool.depth().rows:
        answer_all(0.02)
    world.kill(0)
    second.paused = False
    for _ in range(40):
        answer_all(0.5)
    assert world.hub.ids["b"] == 1
    assert (receipt.state, flushed.state) == ("committed", "committed")
    world.close()
