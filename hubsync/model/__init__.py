"""Immutable records that the parts exchange: target, layout, batch, shard, commit, receipt, counts."""
