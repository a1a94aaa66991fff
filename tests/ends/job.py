"""What hubsync promises, once through, with whatever versions of its packages are here: run by `test_ends`."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from itertools import islice

from hubsync import ShardPolicy, Uploader
from hubsync.model.layout import FORMATS
from hubsync.pipeline import HuggingFaceHubCheckpointer, Pipeline, Step
from hubsync.reader import follow, rows, shards


class DoNothing(Step):
    def process(self, *inputs):
        yield from inputs


def main() -> None:
    from datasets import Dataset, load_dataset

    large = [{"id": 35, "text": os.urandom(8_000_000).hex()}]  # goes up as a blob
    with Uploader("user/rows", shard=ShardPolicy(max_rows=10)) as up:
        for n in range(30):
            up.put([{"id": n, "text": "é" * n}], offset=n)
        up.put(Dataset.from_list([{"id": n, "text": "of a Dataset"} for n in range(30, 35)]), offset=30)
        up.flush()
        up.put(large, offset=31)
    with Uploader("user/rows") as up:
        assert up.offset() == 31
        assert up.put(large, offset=31).replayed
    assert sum(shard.rows for shard in shards("user/rows")) == 36
    assert [row["id"] for row in rows("user/rows")] == list(range(36))
    with follow("user/rows", poll_s=0.1) as reader:
        assert len(list(islice(reader, 36))) == 36
    loaded = load_dataset("user/rows", split="train")
    assert sorted(loaded["id"][:]) == list(range(36))

    for format in FORMATS:
        repo = f"user/{format.replace('.', '-')}"
        with Uploader(repo, format=format, shard=ShardPolicy(max_rows=10)) as up:
            up.put([{"id": n, "text": "é" * n, "at": "2026-01-01T00:00:00.5"} for n in range(30)])
        assert [row["id"] for row in rows(repo)] == list(range(30))
        assert load_dataset(repo, split="train")[29] == {"id": 29, "text": "é" * 29, "at": "2026-01-01T00:00:00.5"}
        assert [row["id"] for row in load_dataset(repo, split="train", streaming=True)] == list(range(30))

    with Pipeline(name="ends") as pipeline:
        DoNothing(input_batch_size=60) >> HuggingFaceHubCheckpointer(repo_id="user/checkpoint", input_batch_size=50)
    distiset = pipeline.run(dataset=Dataset.from_dict({"a": list(range(200))}))
    distiset.push_to_hub("user/pushed")
    for repo, *config in (("user/checkpoint", "config-0"), ("user/pushed",)):
        assert load_dataset(repo, *config)["train"]["a"][:] == list(range(200)), repo
    print(json.dumps({name: version(name) for name in sys.argv[1:]}))


if __name__ == "__main__":
    main()
