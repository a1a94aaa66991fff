"""Git's formats against git itself, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hubsync.localhub.storage import git
from hubsync.localhub.storage.git import Entry


def real_git(directory: Path, *arguments: str, stdin: bytes = b"") -> str:
    environment = {"GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(directory), "PATH": "/usr/bin:/bin:/usr/local/bin"}
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "user", f"GIT_{who}_EMAIL": "user@users.noreply.huggingface.co"}
        environment |= {f"GIT_{who}_DATE": "1700000000 +0000"}
    command = ["git", "-C", str(directory), *arguments]
    return (
        subprocess.run(command, input=stdin, capture_output=True, check=True, env=environment).stdout.decode().strip()
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_blobs_trees_and_commits_have_gits_ids(tmp_path: Path) -> None:
    real_git(tmp_path, "init", "-q")
    oid = real_git(tmp_path, "hash-object", "-w", "--stdin", stdin=b"hello")
    assert git.object_oid("blob", b"hello") == oid
    inner = {"b": Entry(git.FILE, oid), "a": Entry(git.FILE, oid)}
    inner_oid = real_git(tmp_path, "mktree", stdin="".join(f"100644 blob {oid}\t{name}\n" for name in inner).encode())
    assert git.object_oid("tree", git.encode_tree(inner)) == inner_oid
    # "a.txt" comes before the folder "a": git compares the folder as "a/".
    outer = {"a": Entry(git.DIRECTORY, inner_oid), "a.txt": Entry(git.FILE, oid), "a0": Entry(git.FILE, oid)}
    listing = f"040000 tree {inner_oid}\ta\n100644 blob {oid}\ta.txt\n100644 blob {oid}\ta0\n"
    outer_oid = real_git(tmp_path, "mktree", stdin=listing.encode())
    assert git.object_oid("tree", git.encode_tree(outer)) == outer_oid
    first = real_git(tmp_path, "commit-tree", outer_oid, "-m", "title")
    assert git.commit_oid(outer_oid, [], "user", 1_700_000_000, "title\n") == first


def test_a_tree_is_read_as_it_was_written() -> None:
    entries = {"é": Entry(git.FILE, "1" * 40), "d": Entry(git.DIRECTORY, "2" * 40)}
    assert git.decode_tree(git.encode_tree(entries)) == entries


@pytest.mark.parametrize(
    ("pattern", "path", "tracked"),
    [
        ("*.bin", "a.bin", True),
        ("*.bin", "deep/er/a.bin", True),
        ("*.bin", "a.bin.txt", False),
        ("saved_model/**/*", "saved_model/x/y", True),
        ("saved_model/**/*", "saved_model/x", True),
        ("saved_model/**/*", "other/x", False),
        ("*.tar.*", "a.tar.gz", True),
        ("data/*.json", "data/a.json", True),
        ("data/*.json", "data/b/a.json", False),
        ("[ab].txt", "a.txt", True),
        ("[!ab].txt", "a.txt", False),
    ],
)
def test_gitattributes_patterns_match_as_gits(pattern: str, path: str, tracked: bool) -> None:
    assert git.lfs_tracked(f"# comment\n{pattern} filter=lfs diff=lfs merge=lfs -text\n", path) is tracked


def test_a_later_line_of_gitattributes_overrides_an_earlier_one() -> None:
    text = "*.json filter=lfs\nsmall/*.json -filter\n"
    assert git.lfs_tracked(text, "a.json")
    assert not git.lfs_tracked(text, "small/a.json")


def test_gitignore_covers_folders_and_negations() -> None:
    text = "# comment\ncache/\n*.log\n!keep.log\n/root.txt\n"
    verdicts = {path: git.ignored(text, path) for path in ("cache/a", "x/cache/a", "a.log", "x/keep.log", "root.txt")}
    assert verdicts == {"cache/a": True, "x/cache/a": True, "a.log": True, "x/keep.log": False, "root.txt": True}
    assert not git.ignored(text, "x/root.txt")


def test_a_jsonl_is_regular_in_a_new_dataset_and_an_image_is_not() -> None:
    text = git.default_gitattributes("dataset").decode()
    assert not git.lfs_tracked(text, "data/train.jsonl")
    assert git.lfs_tracked(text, "images/a.png")
    assert not git.lfs_tracked(git.default_gitattributes("model").decode(), "images/a.png")
