"""The first commit into a dataset that hubsync did not create: what loaded before loads the same, and our rows load."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubsync import DatasetConflict, HubsyncError, SchemaPolicy, Uploader
from hubsync.destinations.hub import existing
from hubsync.localhub import LocalHub
from hubsync.localhub.pytest_plugin import point_at
from tests.conftest import FAST

pytestmark = pytest.mark.slow("loads with datasets")

Rows = list[dict[str, Any]]


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def xs(*values: int) -> bytes:
    return lines(*({"x": value} for value in values))


def parquet(*values: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": list(values)}), sink)
    return sink.getvalue()


def card(yaml: str, body: str = "# Words\n") -> bytes:
    return f"---\n{yaml}---\n{body}".encode()


class Repo:
    """One dataset on the test's Hub, used as its owner and its readers would."""

    def __init__(self, hub: LocalHub, home: Path, name: str = "user/rows") -> None:
        self.name, self._hub, self._home = name, hub, home
        self.api = HfApi(endpoint=hub.endpoint, token=hub.token)
        self._loads = 0

    def add(self, files: Mapping[str, bytes]) -> None:
        self.api.create_repo(self.name, repo_type="dataset", exist_ok=True)
        for path, content in files.items():
            self.api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=self.name, repo_type="dataset")

    def put(self, rows: Rows, **options: Any) -> None:
        given = {"endpoint": self._hub.endpoint, "token": self._hub.token, "spool": self._home / "spool", **FAST}
        with Uploader(self.name, **{**given, **options}) as up:
            up.put(rows)

    def read(self, path: str = "README.md") -> str:
        local = self.api.hf_hub_download(self.name, path, repo_type="dataset", force_download=True)
        return Path(local).read_bytes().decode()

    def head(self) -> str | None:
        return self.api.dataset_info(self.name).sha

    def load(self, *config: str, streaming: bool = False, **how: Any) -> dict[str, Rows]:
        self._loads += 1
        cache = str(self._home / f"cache {self._loads}")
        loaded = datasets.load_dataset(self.name, *config, streaming=streaming, cache_dir=cache, **how)
        return {split: list(rows) for split, rows in loaded.items()}

    def x(self, *config: str, split: str = "train") -> list[int]:
        """The values of the column x, which are the same with and without streaming."""
        found = [sorted(row["x"] for row in self.load(*config, streaming=how)[split]) for how in (False, True)]
        assert found[0] == found[1]
        return found[0]

    def everything(self) -> dict[tuple[str | None, bool], Any]:
        """What every config loads, and what loads without naming one; or why not."""
        found: dict[tuple[str | None, bool], Any] = {}
        try:
            names = [None, *datasets.get_dataset_config_names(self.name)]
        except Exception as error:
            return {(None, False): type(error)}
        for name in names:
            for streaming in (False, True):
                try:
                    found[name, streaming] = self.load(*([name] if name else []), streaming=streaming)
                except Exception as error:
                    found[name, streaming] = type(error)
        return found


@pytest.fixture
def repo(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Repo:
    point_at(hub, monkeypatch, tmp_path / "reader")
    return Repo(hub, tmp_path)


FEATURES = "  features:\n  - name: x\n    dtype: int64\n"
SIZES = "dataset_info:\n" + FEATURES + "  splits:\n  - name: train\n    num_examples: 2\n" \
        "    num_bytes: 16\n  download_size: 16\n  dataset_size: 16\n"  # fmt: skip
MAIN = "configs:\n- config_name: main\n  data_files: main/t.jsonl\n"


@pytest.mark.parametrize(
    ("files", "options", "loads"),
    [
        ({"train.jsonl": xs(1, 2)}, {}, {"default": {"train": [1, 2, 9]}}),
        ({"train.jsonl": xs(1, 2)}, {"split": "test"}, {"default": {"train": [1, 2], "test": [9]}}),
        ({"rows.jsonl": xs(1)}, {"config": "more"}, {"default": {"train": [1]}, "more": {"train": [9]}}),
        ({"data/a.jsonl": xs(1), "data/b.jsonl": xs(2), "README.md": card("license: mit\n")}, {},
         {"default": {"train": [1, 2, 9]}}),
        ({"data/a.jsonl": xs(1), "README.md": b"# only words\n"}, {"split": "test"},
         {"default": {"train": [1], "test": [9]}}),
        ({"train/a.jsonl": xs(1), "train/b.jsonl": xs(2), "test/c.jsonl": xs(3)}, {"split": "test"},
         {"default": {"train": [1, 2], "test": [3, 9]}}),
        ({"data/train.jsonl": xs(1), "data/dev.jsonl": xs(2)}, {}, {"default": {"train": [1, 9], "validation": [2]}}),
        ({"data/train-00000-of-00001.parquet": parquet(1), "data/extra-00000-of-00001.parquet": parquet(2)}, {},
         {"default": {"train": [1, 9], "extra": [2]}}),
        ({"data/train-00000-of-00001.parquet": parquet(1), "train.parquet": parquet(2), "test.parquet": parquet(3)}, {},
         {"default": {"train": [1, 9]}}),
        ({"a.parquet": parquet(1)}, {"split": "test"}, {"default": {"train": [1], "test": [9]}}),
        ({"a.jsonl": xs(1), "b.jsonl": xs(2), "notes.csv": b"y\n1\n"}, {}, {"default": {"train": [1, 2, 9]}}),
        ({"main/t.jsonl": xs(1), "README.md": card(MAIN + "  default: true\n")}, {},
         {"main": {"train": [1]}, "default": {"train": [9]}}),
        ({"main/t.jsonl": xs(1), "README.md": card(MAIN)}, {"config": "more"},
         {"main": {"train": [1]}, "more": {"train": [9]}, None: {"train": [1]}}),
        ({"a.jsonl": xs(1), "b.jsonl": xs(2), "README.md": card("configs:\n- config_name: a\n  data_files: a.jsonl\n"
          "- config_name: b\n  data_files: b.jsonl\ndataset_info:\n  config_name: b\n" + FEATURES)}, {"config": "a"},
         {"a": {"train": [1, 9]}, "b": {"train": [2]}, None: {"train": [2]}}),
        ({"mydata/train.jsonl": xs(1), "README.md": card("configs:\n- config_name: default\n  data_dir: mydata\n")}, {},
         {"default": {"train": [1, 9]}}),
        ({"main/t.jsonl": xs(1), "README.md": card("configs:\n- config_name: m\n  data_dir: main\n")},
         {"config": "main"}, {"m": {"train": [1]}, "main": {"train": [9]}, None: {"train": [1]}}),
        ({"data/p.jsonl": xs(1), "README.md": card('configs:\n- config_name: default\n  data_files: "data/*.jsonl"\n')},
         {"split": "test"}, {"default": {"train": [1], "test": [9]}}),
        ({"data/p.jsonl": xs(1), "README.md": card('configs:\n- config_name: default\n  data_files: "data/*.jsonl"\n')},
         {}, {"default": {"train": [1, 9]}}),
        ({"data/train-0.jsonl": xs(1, 2), "README.md": card("configs:\n- config_name: default\n  data_files:\n"
          "  - split: train\n    path: data/train-*\n" + SIZES)}, {}, {"default": {"train": [1, 2, 9]}}),
        ({"data/train-0.jsonl": xs(1, 2), "README.md": card("configs:\n- config_name: default\n  data_files:\n"
          "  - split: train\n    path: data/train-*\n" + SIZES)}, {"split": "new"},
         {"default": {"train": [1, 2], "new": [9]}}),
        ({"data/train-0.parquet": parquet(1, 2), "README.md": card("configs:\n- config_name: default\n  data_files:\n"
          "  - split: train\n    path: data/train-*\n" + SIZES)}, {"split": "new"},
         {"default": {"train": [1, 2], "new": [9]}}),
        ({"data/train-old.jsonl": xs(1), "main/t.jsonl": xs(2), "README.md": card(MAIN)}, {},
         {"main": {"train": [2]}, "default": {"train": [9]}}),
        ({"a.jsonl": xs(1), "README.md": card("configs:\n- config_name: m\n  data_files: none/*.jsonl\n")}, {},
         {"default": {"train": [9]}}),
        ({"dev/p.jsonl": xs(1), "README.md": card("configs:\n- config_name: a\n  data_dir: dev\n  data_files: p.jsonl\n"
          "- config_name: b\n  data_files: dev/*.jsonl\n")}, {"config": "c"},
         {"b": {"train": [1]}, "c": {"train": [9]}}),
        ({"t.jsonl": xs(1), "README.md": b"\xef\xbb\xbf---\nlicense: mit\n---\n"}, {"config": "c", "split": "test"},
         {"default": {"train": [1]}, "c": {"test": [9]}}),
        ({"t.jsonl": xs(1), "README.md": card("? license\n: mit\n")}, {"config": "c"},
         {"default": {"train": [1]}, "c": {"train": [9]}}),
        ({"old/t.jsonl": xs(1), "configs": b"a file", "README.md": card("configs:\n- config_name: a\n"
          "  data_files: old/*.jsonl\n")}, {"config": "data"}, {"a": {"train": [1]}, "data": {"train": [9]}}),
    ],
)  # fmt: skip
def test_everything_loads_as_before_and_our_rows_where_we_said(
    repo: Repo, files: dict[str, bytes], options: dict[str, Any], loads: dict[str | None, dict[str, list[int]]]
) -> None:
    repo.add(files)
    repo.put([{"x": 9}], **options)
    for config, splits in loads.items():
        named = [config] if config else []
        for streaming in (False, True):
            found = repo.load(*named, streaming=streaming)
            assert {split: sorted(row["x"] for row in rows) for split, rows in found.items()} == splits
    repo.put([{"x": 9}], **options)  # the next job finds its entry in the card
    (config, split), *_ = [(c, s) for c, splits in loads.items() for s, values in splits.items() if 9 in values]
    assert repo.x(*([config] if config else []), split=split) == sorted([*loads[config][split], 9])


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        entry = tarfile.TarInfo("0.json")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"{}"))
    return sink.getvalue()


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("rows.csv", "x\n1\n")
    return sink.getvalue()


ENTRY = card("configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n")
OUR_ENTRY = ENTRY.replace(b"train-*", b"train-*.jsonl")
PARQUET = {"data/train-0.parquet": parquet(1), "README.md": ENTRY}


def entry(info: str, more: str = "") -> bytes:
    """Return a card with one entry for the split train, and perhaps more."""
    front = ENTRY.decode().split("---\n")[1]
    return card(front + more + info)


def sizes(download_size: int, **splits: int) -> str:
    listed = "".join(f"  - name: {name}\n    num_bytes: 8\n    num_examples: {rows}\n" for name, rows in splits.items())
    return f"dataset_info:\n  splits:\n{listed}  download_size: {download_size}\n  dataset_size: 8\n"


@pytest.mark.parametrize(
    ("files", "options"),
    [
        ({"a.csv": b"x\n1\n"}, {}),
        ({"a.txt": b"some text\n"}, {}),
        ({"a.png": b"\x89PNG", "metadata.jsonl": lines({"file_name": "a.png", "x": 1})}, {}),
        ({"shard.tar": tar()}, {}),
        ({"rows.py": b"# a loading script", "a.jsonl": xs(1)}, {}),
        ({"a.jsonl": xs(1), ".huggingface.yaml": b"configs: []\n"}, {}),
        ({"a/t.csv": b"x\n1\n", "README.md": card("configs:\n- config_name: a\n  data_files: a/t.csv\n")}, {}),
        ({"a/t.csv": b"x\n1\n", "README.md": card("configs:\n- config_name: m\n  data_dir: a\n")}, {}),
        (PARQUET, {"format": "jsonl"}),
        (PARQUET, {"config": "other", "format": "jsonl.gz"}),
        ({"a.jsonl": xs(1)}, {"format": "parquet"}),
        ({"a.jsonl": xs(1), "README.md": card('configs:\n- config_name: a\n  data_files: "**/*.jsonl"\n')}, {}),
        ({"a.jsonl": xs(1), "README.md": card('configs:\n- config_name: a\n  data_files: "out/*.jsonl"\n')},
         {"path": "out/{split}-{seq}.jsonl"}),
        ({"a.json": b'{"data": [{"x": 1}]}', "README.md": card("configs:\n- config_name: default\n"
          "  data_files: a.json\n  field: data\n")}, {}),
        ({"README.md": b"# long\n" + b"x" * (9 << 20)}, {}),
        ({"a.jsonl": xs(1), "README.md": card("a: &a\n  configs: []\n<<: *a\n")}, {}),
        ({"data.zip": zipped()}, {}),
        ({"data/train-0.jsonl": b"no JSON\n"}, {}),
        ({"data/train-0.jsonl": b"no JSON\n"}, {"schema": None}),
        ({"data/train-0.jsonl": xs(1), "data/train-1.jsonl": xs(1) + b"{'x': 2}\n", "README.md": ENTRY}, {}),
        ({"data/train-0.jsonl": xs(1), "data/train-1.jsonl": xs(1) + b"{'x': 2}\n", "README.md": OUR_ENTRY}, {}),
        ({"data/train-0.jsonl": xs(1), "data/train-1.jsonl.gz": xs(1), "README.md": ENTRY}, {}),
        ({"data/train-0.jsonl": b"version https://git-lfs.github.com/spec/v1\n", "README.md": ENTRY}, {}),
        ({"data/train-0.parquet": b"PAR1 and no more", "data/train-1.parquet": parquet(1), "README.md": ENTRY}, {}),
        ({"data/train-0.parquet": b"PAR1 and PAR1", "README.md": entry(SIZES)}, {}),
        ({"a.jsonl": xs(1), "README.md": card(MAIN + "  default: true\n- config_name: default\n"
          "  data_files: a.jsonl\n")}, {}),
    ],
)  # fmt: skip
def test_what_cannot_load_is_refused_before_any_row_is_accepted(
    repo: Repo, files: dict[str, bytes], options: dict[str, Any]
) -> None:
    repo.add(files)
    before = repo.head()
    with pytest.raises(DatasetConflict) as caught:
        repo.put([{"x": 9}], **options)
    assert "README.md" in str(caught.value)
    assert "Nothing was changed" in str(caught.value)
    assert repo.head() == before


DEV = "  - split: dev\n    path: data/dev-*\n"
TWO = {"data/train-0.parquet": parquet(1, 2)}
TOTAL = len(TWO["data/train-0.parquet"])


@pytest.mark.parametrize(
    ("files", "split", "is_counted"),
    [
        ({**TWO, "README.md": entry(sizes(TOTAL, train=3))}, "train", True),
        ({**TWO, "README.md": entry(sizes(TOTAL, train=2, gone=1))}, "new", True),
        ({**TWO, "README.md": entry(sizes(TOTAL, train=2, gone=1))}, "train", False),
        ({**TWO, "data/dev-0.parquet": parquet(3), "README.md": entry(sizes(TOTAL, train=2), DEV)}, "train", True),
        ({**TWO, "data/dev-0.parquet": parquet(3), "README.md": entry(sizes(TOTAL, train=2), DEV)}, "new", False),
        ({**TWO, "data/train-1.parquet": parquet(3), "README.md": entry(sizes(TOTAL, train=2))}, "train", False),
        ({**TWO, "data/train-1.parquet": parquet(3), "README.md": card(sizes(TOTAL, train=2))}, "train", True),
        ({"data/train-0.jsonl": xs(1, 2), "README.md": entry(sizes(12, train=5))}, "train", True),
    ],
)
def test_sizes_that_let_nothing_load_are_put_right(
    repo: Repo, files: dict[str, bytes], split: str, is_counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_counted:  # as for many large files
        monkeypatch.setattr(existing, "_MAX_COUNTED_BYTES", 0)
    repo.add(files)
    with pytest.raises(Exception) as caught:
        repo.load()
    assert "Split" in type(caught.value).__name__
    repo.put([{"x": 9}], split=split)
    old = {"train": [1, 2, 3] if "data/train-1.parquet" in files else [1, 2]}
    old |= {"dev": [3]} if "data/dev-0.parquet" in files else {}
    want = {**old, split: [*old.get(split, ()), 9]}
    assert {name: sorted(row["x"] for row in rows) for name, rows in repo.load().items()} == want
    repo.put([{"x": 10}], split=split)
    assert repo.x(split=split) == [*want[split], 10]


def test_sizes_that_someone_made_wrong_are_put_right_by_the_next_job(repo: Repo) -> None:
    repo.put([{"x": 1}], format="parquet")
    repo.add({"README.md": repo.read().replace("num_examples: 1", "num_examples: 5").encode()})
    repo.put([{"x": 2}])
    assert repo.x() == [1, 2]
    datasets.Dataset.from_dict({"x": [6]}).push_to_hub(repo.name, split="more")
    assert repo.x(split="more") == [6]


def test_a_repo_of_push_to_hub_takes_more_rows_of_its_format(repo: Repo) -> None:
    datasets.Dataset.from_dict({"x": [1, 2, 3]}).push_to_hub(repo.name)
    repo.put([{"x": 4}])
    assert repo.x() == [1, 2, 3, 4]
    repo.put([{"x": 5}], split="test")
    assert repo.x(split="test") == [5]
    datasets.Dataset.from_dict({"x": [6]}).push_to_hub(repo.name, split="more")
    repo.put([{"x": 7}], format="parquet")
    assert {split: len(rows) for split, rows in repo.load().items()} == {"train": 5, "test": 1, "more": 1}


def test_push_to_hub_adds_splits_and_configs_to_ours(repo: Repo) -> None:
    for value in (1, 2):
        repo.put([{"x": value}], format="parquet")
    datasets.Dataset.from_dict({"x": [9]}).push_to_hub(repo.name, split="test")
    assert (repo.x(split="test"), repo.x(split="train")) == ([9], [1, 2])
    datasets.Dataset.from_dict({"y": ["a"]}).push_to_hub(repo.name, "other")
    repo.put([{"x": 3}], format="parquet")
    assert repo.x(split="train") == [1, 2, 3]
    assert repo.load("other") == {"train": [{"y": "a"}]}


def test_a_config_called_data_does_not_meet_the_default_one(repo: Repo) -> None:
    for config in ("default", "data", "default"):
        repo.put([{"x": len(config)}], config=config)
    assert (repo.x("default"), repo.x("data")) == ([7, 7], [4])


def test_old_rows_keep_their_types_and_ours_are_checked_against_them(repo: Repo) -> None:
    repo.add({"a.jsonl": lines({"x": 1, "at": "2024-01-01 00:00:00", "y": None})})
    before = repo.everything()
    repo.put([{"x": 2, "at": "2024-01-02 00:00:00"}])
    after = repo.everything()
    for key, found in before.items():
        assert found["train"][0] in after[key]["train"]
    with pytest.raises(HubsyncError):
        repo.put([{"x": "text"}])


def test_the_sizes_of_an_old_dataset_infos_json_do_not_stop_it(repo: Repo) -> None:
    features = {"x": {"dtype": "int32", "_type": "Value"}}
    splits = {"train": {"name": "train", "num_bytes": 4, "num_examples": 1}}
    infos = {"user--rows": {"features": features, "splits": splits, "download_size": 4, "dataset_size": 4}}
    repo.add({"data/train-0.jsonl": xs(1), "dataset_infos.json": json.dumps(infos).encode()})
    assert repo.x() == [1]
    repo.put([{"x": 2}])
    assert repo.x() == [1, 2]
    assert datasets.load_dataset(repo.name, split="train").features["x"].dtype == "int32"


def test_without_schemas_the_old_rows_load_as_well(repo: Repo) -> None:
    repo.add({"a.jsonl": xs(1)})
    repo.put([{"x": 2}], schema=None)
    assert repo.x() == [1, 2]
    assert "features" not in repo.read()


def test_rows_spooled_offline_move_to_where_they_load(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"x": [1]}).push_to_hub(repo.name)
    repo.add({"README.md": repo.read().replace("data/train-*", "data/*").encode()})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repo.put([{"x": 2}])
    repo.put([{"x": 3}], split="test")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    repo.put([])
    assert (repo.x(), repo.x(split="test")) == ([1, 2], [3])


def test_a_person_may_change_the_card_between_two_commits(repo: Repo, hub: LocalHub, tmp_path: Path) -> None:
    with Uploader(repo.name, endpoint=hub.endpoint, token=hub.token, spool=tmp_path / "s", **FAST) as up:
        up.put([{"x": 1}], ack="committed")
        repo.add({"theirs/t.jsonl": xs(5)})
        theirs = "license: mit\nconfigs:\n# theirs\n- config_name: m\n  data_files: theirs/*"
        text = repo.read().replace("configs:", theirs)
        repo.add({"README.md": text.encode()})
        up.put([{"x": 2, "new": "column"}], ack="committed")
        repo.add({"README.md": b"---\nlicense: mit # and nothing else\n---\n"})
        up.put([{"x": 3}], ack="committed")
    assert repo.x("default") == [1, 2, 3]
    assert "license: mit # and nothing else" in repo.read()


def test_a_card_keeps_every_byte_that_does_not_change(repo: Repo) -> None:
    front = "# keep me\r\nversion: 1.10\r\nbuild: 0123\r\nempty:\r\nextra_gated_fields:\r\n  Job: {type: text}\r\n"
    repo.add({"README.md": f"\ufeff---\r\n{front}---\r\nText\r\nmore\n".encode()})
    repo.put([{"x": 1}])
    text = repo.read()
    assert text.startswith(f"\ufeff---\r\n{front}")
    assert repo.load("default") == {"train": [{"x": 1}]}
    assert text.endswith("---\r\nText\r\nmore\n")
    assert text.count("\n---") == 1


@pytest.mark.parametrize("revision", ["v1", "short sha", "sha"])
def test_only_a_branch_takes_rows(repo: Repo, revision: str) -> None:
    repo.put([{"x": 1}])
    repo.api.create_tag(repo.name, tag="v1", repo_type="dataset")
    repo.api.create_branch(repo.name, branch="side", repo_type="dataset")
    sha = str(repo.head())
    with pytest.raises(HubsyncError, match="branch"):
        repo.put([{"x": 2}], revision={"sha": sha, "short sha": sha[:7]}.get(revision, revision))
    repo.put([{"x": 2}], revision="side", spool=None)
    assert repo.head() == sha


# Random repos.

FORMS: list[Callable[[str], str]] = [
    lambda path: f"  data_files: {path!r}\n",
    lambda path: f"  data_files:\n  - {path!r}\n",
    lambda path: f"  data_files:\n  - split: train\n    path: {path!r}  # theirs\n",
    lambda path: f"  data_files: [{{split: train, path: [{path!r}]}}]\n",
    lambda path: f"  data_dir: {path.rpartition('/')[0] or '.'}\n",
]


@st.composite
def repos(draw: st.DrawFn) -> dict[str, bytes]:
    """Return a repo as people make them: files of one kind, with a card or without."""
    kind = draw(st.sampled_from(["jsonl", "jsonl", "parquet", "csv"]))
    make: Callable[[int], bytes] = {"jsonl": xs, "parquet": parquet, "csv": lambda x: f"x\n{x}\n".encode()}[kind]
    names = draw(st.lists(
        st.sampled_from(["train", "test", "data/train", "data/a", "data/b", "main/train-0", "train/p", "dev/p",
                         "data/train-00000-of-00001", "default/train-x", "some rows"]),
        min_size=1, max_size=4, unique=True,
    ))  # fmt: skip
    files = {f"{name}.{kind}": make(number) for number, name in enumerate(names)}
    yaml = draw(st.sampled_from(["", "license: mit\n", "# a comment\nversion: 1.10\ntags: [a, b]\n"]))
    configs = draw(st.lists(st.sampled_from(["default", "main", "data", "en"]), max_size=2, unique=True))
    if configs:
        yaml += "configs:\n"
        for config in configs:
            name = draw(st.sampled_from(names))
            folder = f"{name.rpartition('/')[0]}/" if "/" in name else ""
            path = draw(st.sampled_from([f"{name}.{kind}", f"{folder}*.{kind}", f"{folder}**"]))
            yaml += f"- config_name: {config}\n" + draw(st.sampled_from(FORMS))(path)
            if draw(st.booleans()) and configs.index(config) == 0 and "default" not in configs:
                yaml += "  default: true\n"
    if yaml or draw(st.booleans()):
        text = card(yaml).decode() if yaml else "# Words\n"
        files["README.md"] = draw(st.sampled_from([text, text, text.replace("\n", "\r\n")])).encode()
    return files


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    files=repos(),
    config=st.sampled_from(["default", "main", "data", "new"]),
    split=st.sampled_from(["train", "test", "extra"]),
)
def test_any_repo_loads_as_before_or_is_refused(
    hub: LocalHub, tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], config: str, split: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("random")
        point_at(hub, patch, home / "reader")
        repo = Repo(hub, home, f"user/{home.name}")
        repo.add(files)
        before, head = repo.everything(), repo.head()
        try:
            repo.put([{"x": 99}], config=config, split=split, schema=SchemaPolicy())
        except DatasetConflict:
            assert repo.head() == head
            return
        after = repo.everything()
        assert {"x": 99} in after[config, False][split]
        assert {"x": 99} in after[config, True][split]
        for (name, streaming), loaded in before.items():
            if isinstance(loaded, type):
                continue
            if name is None and config == "default":  # a config of that name is always the one without a name
                continue
            found = {s: [row for row in rows if row != {"x": 99}] for s, rows in after[name, streaming].items()}
            if name == config or (name is None and found.keys() - loaded.keys() == {split}):
                found = {s: rows for s, rows in found.items() if rows or s in loaded}
            assert found == loaded, (name, streaming)
