"""A plan is written down before it is sent, and settled exactly once."""

from __future__ import annotations

from collections.abc import Callable

from hubsync.spool.spool import Spool
from tests.spool.conftest import all_sealed, batch, plans_of, shards_of, writer_of


def test_a_plan_is_in_the_catalogue_before_it_is_sent(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, 2, offset=4)])
    writer.seal()
    shards = all_sealed(spool)
    shards_of(spool).mark_staged({shards[0].segment: "regular"})
    staged = shards_of(spool).ready(10, 1 << 30)
    plan = plans_of(spool).write(staged, None, "parent", "Add")
    spool.close()
    spool = open_spool()
    found = plans_of(spool).open()
    assert found is not None
    assert (found.id, found.parent, found.shards, found.sidecars) == (plan.id, "parent", staged, plan.sidecars)
    assert shards_of(spool).ready(10, 1 << 30) == []
    assert b'"default": 4' in plan.sidecars[0].content
    plans_of(spool).settle(found, {staged[0].segment: "sha"})
    assert spool.segments.outcome(staged[0].segment) == ("committed", "sha", None)
    assert (plans_of(spool).open(), spool.depth().rows, spool.depth().committed_rows) == (None, 0, 2)
    assert not staged[0].file.exists()


def test_a_plan_that_did_not_land_releases_its_shards(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1)])
    writer.seal()
    shards_of(spool).mark_staged({s.segment: "lfs" for s in all_sealed(spool)})
    before = shards_of(spool).ready(10, 1)
    plans_of(spool).settle(plans_of(spool).write(before, None, None, ""), {})
    assert shards_of(spool).ready(10, 1) == before


def test_a_claim_needs_no_writer_to_have_opened_the_spool(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    plan = plans_of(spool).claim("parent")
    (name,) = spool.writers.names()
    assert (plan.shards, plan.parent, plan.sidecars[0].path) == ((), "parent", f".hubsync/{name}.json")
