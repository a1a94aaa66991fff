"""Constructors reject arguments that can never work, and say what to write instead."""

from __future__ import annotations

import pytest

from hubsync import CommitPolicy, ConfigError, QueuePolicy, RetryPolicy, ShardPolicy, SpoolPolicy, Uploader
from hubsync._runtime.validation import check_repo_id
from hubsync.model.layout import Layout


@pytest.mark.parametrize(
    "repo", ["", "rows", "a/b/c", "user/", "/rows", "user/ro ws", "user/a--b", "user/a..b", "user/.x", "üser/rows",
             "user/rows.git", "user/rows-", None, 5]
)  # fmt: skip
def test_an_invalid_repo_id_is_rejected(repo: str) -> None:
    with pytest.raises(ConfigError, match="namespace/name"):
        check_repo_id(repo)


@pytest.mark.parametrize("config", ["", "a/b", "../x", ".hidden", "a b", "a*"])
def test_a_config_that_cannot_be_a_folder_is_rejected(config: str) -> None:
    with pytest.raises(ConfigError, match="config"):
        Layout(config=config)


@pytest.mark.parametrize("split", ["", "a-b", "a/b", "train set", "..", "a."])
def test_a_split_that_datasets_rejects_is_rejected(split: str) -> None:
    with pytest.raises(ConfigError, match="split"):
        Layout(split=split)


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("data/{split}.jsonl", "same path"),
        ("data/{seq}.jsonl", "mix"),
        ("data/{split}-{seq}.json", "must end"),
        ("../{split}-{seq}.jsonl", "relative"),
        ("/{split}-{seq}.jsonl", "relative"),
        (".x/{split}-{seq}.jsonl", "hidden"),
        ("__x/{split}-{seq}.jsonl", "__"),
        ("a//{split}-{seq}.jsonl", "relative"),
        ("a\\{split}-{seq}.jsonl", "relative"),
        ("*/{split}-{seq}.jsonl", "glob"),
        ("{split}-{seq}-{host}.jsonl", "host"),
        ("{split}-{seq:q}.jsonl", "filled in"),
        ("{split}-{seq.__class__}.jsonl", "same path|relative|numbers"),
        ("{split}-{seq", "filled in"),
        ("{split}-{}-{seq}.jsonl", "filled in"),
    ],
)
def test_a_template_that_collides_or_escapes_is_rejected(template: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Layout(template=template)


def test_each_config_gets_its_own_folder() -> None:
    assert Layout().path("ab12", 7) == "data/train-ab12-00007.jsonl"
    assert Layout().glob == "data/train-*.jsonl"
    assert Layout("config-1", "test").path("ab12", 0) == "config-1/test-ab12-00000.jsonl"
    assert Layout("config-1", "test").glob == "config-1/test-*.jsonl"
    checkpointer = Layout("config-0", "train", "{config}/{split}-{seq:05d}.jsonl")
    assert (checkpointer.path("ab12", 3), checkpointer.glob) == ("config-0/train-00003.jsonl", "config-0/train-*.jsonl")
    assert checkpointer.series("ab12") == checkpointer.series("cd34")
    with pytest.raises(ConfigError, match="mix"):
        Layout("config-1", "train", "data/{split}-{seq}.jsonl")


@pytest.mark.parametrize(
    "make",
    [
        lambda: QueuePolicy(max_bytes=0),
        lambda: QueuePolicy(when_full="wait"),  # type: ignore[arg-type]
        lambda: ShardPolicy(linger_s=-1),
        lambda: ShardPolicy(max_rows=0),
        lambda: CommitPolicy(per_hour=0),
        lambda: RetryPolicy(max_s=0),
        lambda: SpoolPolicy(durability="maybe"),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", private="true"),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", private=1),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", progress="no"),  # type: ignore[arg-type]
        lambda: QueuePolicy(max_batches="9"),  # type: ignore[arg-type]
        lambda: ShardPolicy(max_bytes="64MB"),  # type: ignore[arg-type]
        lambda: ShardPolicy(max_bytes=None),  # type: ignore[arg-type]
        lambda: ShardPolicy(max_rows=True),
        lambda: ShardPolicy(max_rows=1.5),  # type: ignore[arg-type]
        lambda: ShardPolicy(linger_s=float("nan")),
        lambda: SpoolPolicy(directory=3),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", spool=b"x"),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", shard={"max_rows": 3}),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", retry=CommitPolicy()),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", schema="refuse"),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", grace_s="25"),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", config=1),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", split=None),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", path=1),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", revision=1),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", endpoint=1),  # type: ignore[arg-type]
        lambda: Uploader("user/rows").known(3),  # type: ignore[arg-type]
        lambda: Uploader("user/rows", endpoint="ftp://x"),
        lambda: Uploader("user/rows", revision=""),
        lambda: Uploader("user/rows", token=True),  # type: ignore[arg-type]
    ],
)
def test_an_invalid_limit_is_rejected(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


def test_no_repr_shows_the_token() -> None:
    up = Uploader("user/rows", token="hf_secret")
    assert "hf_secret" not in repr(up)


def test_sibling_configs_have_their_own_folder() -> None:
    assert next(Layout().siblings()) == Layout("default-2", "train", "{config}/{split}-{writer}-{seq:05d}.jsonl")
    assert next(Layout("a", "test").siblings()).path("w", 1) == "a-2/test-w-00001.jsonl"
    assert next(Layout(template="mine/{split}-{seq}.jsonl").siblings()).path("w", 1) == "default-2/mine/train-1.jsonl"
    assert next(Layout("a", template="{config}/{split}/{seq}.jsonl").siblings()).path("w", 1) == "a-2/train/1.jsonl"
