"""huggingface_hub, unmodified, against the embedded Hub."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    HfFileSystem,
    snapshot_download,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from hubsync.localhub import LocalHub
from hubsync.localhub.storage.git import object_oid
from tests.localhub.conftest import REPO, commit, file_line, ndjson


def add(api: HfApi, path: str, content: bytes, **kwargs: object) -> str:
    operations = [CommitOperationAdd(path, content)]
    return api.create_commit(REPO, operations, commit_message=f"add {path}", repo_type="dataset", **kwargs).oid


def test_the_default_token_belongs_to_the_default_user(api: HfApi) -> None:
    me = api.whoami()
    assert (me["name"], me["auth"]["accessToken"]["role"]) == ("user", "write")


def test_a_new_repo_has_one_commit_with_the_default_gitattributes(api: HfApi, repo: str) -> None:
    assert [item.title for item in api.list_repo_commits(repo, repo_type="dataset")] == ["initial commit"]
    assert api.list_repo_files(repo, repo_type="dataset") == [".gitattributes"]


def test_creating_a_repo_twice_is_a_conflict_unless_exist_ok(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(repo, repo_type="dataset")
    assert refused.value.response.status_code == 409
    assert api.create_repo("USER/Rollouts", repo_type="dataset", exist_ok=True).repo_id == repo


def test_a_committed_file_has_the_id_that_git_gives_it(api: HfApi, repo: str) -> None:
    oid = add(api, "data/a.jsonl", b'{"a":1}\n')
    info = api.dataset_info(repo, files_metadata=True)
    assert info.sha == oid
    files = {item.rfilename: item for item in info.siblings or []}
    assert files["data/a.jsonl"].blob_id == object_oid("blob", b'{"a":1}\n')


def test_a_file_is_large_by_its_name_or_its_size(api: HfApi, repo: str, http: httpx.Client) -> None:
    sizes = {"a.jsonl": 10, "b.parquet": 10, "c.jsonl": 10 * 1024 * 1024, "d.jsonl": 10 * 1024 * 1024 - 1}
    files = [{"path": path, "size": size, "sample": ""} for path, size in sizes.items()]
    answer = http.post(f"/api/datasets/{repo}/preupload/main", json={"files": files}).json()
    modes = {item["path"]: item["uploadMode"] for item in answer["files"]}
    assert modes == {"a.jsonl": "regular", "b.parquet": "lfs", "c.jsonl": "lfs", "d.jsonl": "regular"}


def test_preupload_shows_existing_files_and_ignored_paths(api: HfApi, repo: str, http: httpx.Client) -> None:
    add(api, "a.txt", b"hello")
    files = [{"path": path, "size": 5, "sample": "aGVsbG8="} for path in ("a.txt", "cache/b.txt")]
    body = {"files": files, "gitIgnore": "cache/\n"}
    first, second = http.post(f"/api/datasets/{repo}/preupload/main", json=body).json()["files"]
    assert first["oid"] == object_oid("blob", b"hello")
    assert (first["shouldIgnore"], second["shouldIgnore"]) == (False, True)


def test_a_tree_is_listed_in_pages(api: HfApi, repo: str, http: httpx.Client) -> None:
    operations = [CommitOperationAdd(f"data/{number:03}.txt", b"x") for number in range(120)]
    api.create_commit(repo, operations, commit_message="many", repo_type="dataset")
    page = http.get(f"/api/datasets/{repo}/tree/main", params={"recursive": "true", "limit": 50})
    assert len(page.json()) == 50
    assert page.links["next"]["url"].startswith(str(http.base_url))
    assert len(list(api.list_repo_tree(repo, repo_type="dataset", recursive=True))) == 122
    expanded = list(api.list_repo_tree(repo, "data", repo_type="dataset", expand=True))
    assert {item.last_commit.title for item in expanded if item.last_commit} == {"many"}


def test_the_last_commit_of_a_path_is_the_one_that_changed_it(api: HfApi, repo: str) -> None:
    add(api, "a/one.txt", b"1")
    add(api, "b/two.txt", b"2")
    add(api, "a/one.txt", b"3")
    infos = api.get_paths_info(repo, ["a/one.txt", "b", "b/two.txt", "nowhere"], repo_type="dataset", expand=True)
    titles = {item.path: item.last_commit.title for item in infos if item.last_commit}
    assert titles == {"a/one.txt": "add a/one.txt", "b": "add b/two.txt", "b/two.txt": "add b/two.txt"}


def test_files_and_folders_are_deleted_and_missing_ones_refused(api: HfApi, repo: str) -> None:
    add(api, "data/a.txt", b"1")
    add(api, "keep.txt", b"2")
    api.delete_folder("data", repo, repo_type="dataset")
    assert set(api.list_repo_files(repo, repo_type="dataset")) == {".gitattributes", "keep.txt"}
    with pytest.raises(EntryNotFoundError):
        api.create_commit(repo, [CommitOperationDelete("nope")], commit_message="x", repo_type="dataset")


def test_a_commit_without_changes_is_still_a_commit(repo: str, api: HfApi, http: httpx.Client) -> None:
    before = api.dataset_info(repo).sha
    answer = commit(http, ndjson(summary="nothing"))
    assert answer.status_code == 200
    assert answer.json()["commitOid"] == api.dataset_info(repo).sha != before


def test_two_commits_at_once_both_land_one_after_the_other(api: HfApi, repo: str, http: httpx.Client) -> None:
    first = commit(http, ndjson(file_line("a")))
    second = commit(http, ndjson(file_line("b")))
    log = [item.commit_id for item in api.list_repo_commits(repo, repo_type="dataset")]
    assert log[:2] == [second.json()["commitOid"], first.json()["commitOid"]]


def test_ranges_of_a_regular_file_are_served(api: HfApi, repo: str, http: httpx.Client) -> None:
    add(api, "a.txt", b"0123456789")
    http.follow_redirects = True
    url = f"/datasets/{repo}/resolve/main/a.txt"
    part = http.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert http.get(url, headers={"Range": "bytes=-3"}).content == b"789"
    assert http.get(url, headers={"Range": "bytes=10-"}).status_code == 416
    head = http.head(url)
    assert (head.headers["Content-Length"], head.content) == ("10", b"")
    assert head.headers["X-Repo-Commit"] == api.dataset_info(repo).sha


def test_branches_tags_and_old_commits_can_be_read(api: HfApi, repo: str) -> None:
    first = add(api, "a.txt", b"1")
    api.create_tag(repo, tag="v1", repo_type="dataset")
    api.create_branch(repo, branch="side/branch", repo_type="dataset")
    add(api, "a.txt", b"2")
    for revision in (first, first[:8], "v1", "side/branch", "refs/heads/side/branch"):
        assert api.dataset_info(repo, revision=revision).sha == first
    add(api, "only.txt", b"3", revision="side/branch")
    assert not api.file_exists(repo, "only.txt", repo_type="dataset")
    assert api.file_exists(repo, "only.txt", repo_type="dataset", revision="side/branch")
    refs = api.list_repo_refs(repo, repo_type="dataset")
    assert {item.name for item in refs.branches} == {"main", "side/branch"}
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(repo, revision="nowhere")


def test_a_squash_leaves_one_commit_with_all_files(api: HfApi, repo: str) -> None:
    for number in range(3):
        add(api, f"{number}.txt", b"x")
    api.super_squash_history(repo, repo_type="dataset", commit_message="squashed")
    assert [item.title for item in api.list_repo_commits(repo, repo_type="dataset")] == ["squashed"]
    assert len(api.list_repo_files(repo, repo_type="dataset")) == 4


def test_a_pull_request_is_opened_extended_and_merged(api: HfApi, repo: str) -> None:
    made = api.create_commit(
        repo, [CommitOperationAdd("pr.txt", b"1")], commit_message="proposal", repo_type="dataset", create_pr=True
    )
    assert made.pr_num == 1
    assert not api.file_exists(repo, "pr.txt", repo_type="dataset")
    add(api, "more.txt", b"2", revision="refs/pr/1")
    details = api.get_discussion_details(repo, 1, repo_type="dataset")
    assert [event.type for event in details.events] == ["comment", "commit", "commit"]
    api.merge_pull_request(repo, 1, repo_type="dataset")
    assert api.file_exists(repo, "pr.txt", repo_type="dataset")
    assert api.get_discussion_details(repo, 1, repo_type="dataset").status == "merged"


def test_a_pull_request_that_conflicts_with_its_base_is_not_merged(api: HfApi, repo: str) -> None:
    api.create_pull_request(repo, "A draft", repo_type="dataset")
    for revision in ("main", "refs/pr/1"):
        add(api, "same.txt", revision.encode(), revision=revision)
        add(api, f"only-{revision[-1]}.txt", b"x", revision=revision)
    api.change_discussion_status(repo, 1, "open", repo_type="dataset")
    assert api.get_discussion_details(repo, 1, repo_type="dataset").conflicting_files == ["same.txt"]
    with pytest.raises(HfHubHTTPError, match=r"conflicts: same\.txt"):
        api.merge_pull_request(repo, 1, repo_type="dataset")


def test_a_private_repo_looks_missing_to_everyone_else(local_hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO, repo_type="dataset", private=True)
    stranger = HfApi(endpoint=local_hub.endpoint, token=local_hub.add_user("mallory"))
    for other, status in ((stranger, 404), (HfApi(endpoint=local_hub.endpoint, token=False), 401)):
        with pytest.raises(RepositoryNotFoundError) as refused:
            other.dataset_info(REPO)
        assert refused.value.response.status_code == status


def test_members_of_an_organization_write_to_its_repos(local_hub: LocalHub, api: HfApi) -> None:
    local_hub.add_org("lab", ["user"])
    api.create_repo("lab/shared", repo_type="dataset", private=True)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="lab/shared", repo_type="dataset")
    assert [org["name"] for org in api.whoami()["orgs"]] == ["lab"]


def test_a_moved_repo_is_found_under_both_names(api: HfApi, repo: str) -> None:
    add(api, "a.txt", b"1")
    api.move_repo(repo, "user/renamed", repo_type="dataset")
    assert api.dataset_info(repo).id == api.dataset_info("user/renamed").id == "user/renamed"


def test_a_deleted_repo_is_gone(api: HfApi, repo: str) -> None:
    api.delete_repo(repo, repo_type="dataset")
    assert not api.repo_exists(repo, repo_type="dataset")


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_every_type_of_repo_stores_files(api: HfApi, repo_type: str) -> None:
    api.create_repo("user/thing", repo_type=repo_type, space_sdk="static" if repo_type == "space" else None)
    api.upload_file(path_or_fileobj=b"x" * 100, path_in_repo="d/w.bin", repo_id="user/thing", repo_type=repo_type)
    local = api.hf_hub_download("user/thing", "d/w.bin", repo_type=repo_type)
    assert Path(local).read_bytes() == b"x" * 100


def test_upload_folder_and_snapshot_download_are_inverse(api: HfApi, repo: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/a.txt").write_bytes(b"hello")
    (source / "b.bin").write_bytes(b"\0" * 70_000)
    api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=source)
    copy = Path(snapshot_download(repo, repo_type="dataset"))
    assert (copy / "deep/er/a.txt").read_bytes() == b"hello"
    assert (copy / "b.bin").read_bytes() == b"\0" * 70_000


def test_the_file_system_reads_lists_and_writes(local_hub: LocalHub, repo: str) -> None:
    system = HfFileSystem(endpoint=local_hub.endpoint, token=local_hub.token)
    with system.open(f"datasets/{repo}/data/a.txt", "wb") as file:
        file.write(b"written through fsspec")
    with system.open(f"datasets/{repo}/data/a.txt", "rb") as file:
        file.seek(8)
        assert file.read() == b"through fsspec"
    assert system.ls(f"datasets/{repo}/data", detail=False) == [f"datasets/{repo}/data/a.txt"]


def test_readme_metadata_is_shown_and_checked(api: HfApi, repo: str, http: httpx.Client) -> None:
    card = b"---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files: data/*\n---\n# Hello\n"
    add(api, "README.md", card)
    assert api.dataset_info(repo).card_data.license == "mit"
    bad = commit(http, ndjson(file_line("README.md", "---\nlicense: [unclosed\n---\n")))
    assert bad.status_code == 400
    assert "Invalid metadata in README.md" in bad.json()["error"]


@pytest.mark.usefixtures("local_hub")
def test_a_card_can_be_validated_before_it_is_pushed() -> None:
    DatasetCard("---\nlicense: mit\n---\n").validate("dataset")
    with pytest.raises(ValueError, match=r'^- Error: "license" must be one of'):
        DatasetCard("---\nlicense: asdf\n---\n").validate("dataset")


def test_fields_of_a_card_become_tags(api: HfApi, repo: str) -> None:
    card = b"""---
license: mit
language: [en, fr]
task_categories: [text-generation]
task_ids: [language-modeling]
size_categories: [n<1K]
language_creators: machine-generated
tags: [synthetic]
---
"""
    add(api, "README.md", card)
    assert set(api.dataset_info(repo).tags) == {
        "license:mit", "language:en", "language:fr", "task_categories:text-generation", "task_ids:language-modeling",
        "size_categories:n<1K", "language_creators:machine-generated", "synthetic", "region:us",
    }  # fmt: skip
    model = api.create_repo("user/model").repo_id
    api.upload_file(
        path_or_fileobj=b"---\nlanguage: en\ndatasets: [user/rollouts]\n---\n", path_in_repo="README.md", repo_id=model
    )
    assert set(api.model_info(model).tags) == {"en", "dataset:user/rollouts", "region:us"}


def test_a_listing_in_pages_leaves_no_repo_out(api: HfApi, http: httpx.Client) -> None:
    names = {api.create_repo(f"user/d{number}", repo_type="dataset").repo_id for number in range(101)}
    assert {found.id for found in api.list_datasets(author="user")} == names
    assert http.get("/api/datasets", params={"cursor": "?"}).status_code == 400
    pages, url = [], "/api/datasets?limit=40&search=d"
    while url:
        answer = http.get(url)
        pages.append([found["id"] for found in answer.json()])
        url = answer.links.get("next", {}).get("url", "")
    assert [len(page) for page in pages] == [40, 40, 21]
    assert set().union(*pages) == names


def test_a_listing_is_filtered_and_sorted(api: HfApi, repo: str, http: httpx.Client) -> None:
    for name in ("tagged", "gated"):
        api.create_repo(f"user/{name}", repo_type="dataset")
    card = b"---\nlanguage: en\ntags: [synthetic]\n---\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="user/tagged", repo_type="dataset")
    api.update_repo_settings("user/gated", repo_type="dataset", gated="auto")

    def listed(**wanted: object) -> list[str]:
        return [found.id for found in api.list_datasets(**wanted)]  # type: ignore[arg-type]

    assert listed(filter="synthetic") == listed(language="en") == ["user/tagged"]
    assert listed(language="en", filter="other") == []
    assert listed(gated=True) == ["user/gated"]
    assert listed(gated=False) == ["user/tagged", repo]
    assert listed(dataset_name="user", search="agg") == ["user/tagged"]
    assert listed(sort="last_modified")[0] == "user/tagged"
    assert listed(sort="created_at") == ["user/gated", "user/tagged", repo]
    assert http.get("/api/datasets?sort=size").status_code == 400


def test_a_listing_shows_card_and_files_only_on_request(api: HfApi, repo: str) -> None:
    add(api, "README.md", b"---\nlicense: mit\n---\n")
    (short,) = api.list_datasets()
    (full,) = api.list_datasets(full=True)
    (chosen,) = api.list_datasets(expand=["author", "downloadsAllTime"])
    assert (short.card_data, short.siblings) == (None, None)
    assert full.card_data.license == "mit"
    assert [file.rfilename for file in full.siblings] == [".gitattributes", "README.md"]
    assert (chosen.author, chosen.downloads_all_time, chosen.downloads, chosen.sha) == ("user", 0, None, None)


def test_an_unknown_field_cannot_be_expanded(api: HfApi, repo: str, http: httpx.Client) -> None:
    assert api.dataset_info(repo, expand=["author"]).sha is None
    for path in (f"/api/datasets/{repo}?expand=author&expand=foo", "/api/datasets?expand[]=author&expand[]=foo"):
        refused = http.get(path)
        assert refused.status_code == 400
        assert '"author"|"cardData"' in refused.json()["error"]
        assert refused.json()["error"].endswith("at expand[1]")


def test_a_small_public_file_is_served_after_a_redirect(api: HfApi, repo: str, http: httpx.Client) -> None:
    sha = add(api, "deep/ä b.txt", b"0123")
    for method in ("GET", "HEAD"):
        answer = http.request(method, f"/datasets/{repo}/resolve/main/deep/%C3%A4%20b.txt")
        assert (answer.status_code, answer.headers["X-Repo-Commit"]) == (307, sha)
        location = answer.headers["Location"]
        assert location.startswith(f"/api/resolve-cache/datasets/{repo}/{sha}/deep/%C3%A4%20b.txt?")
    there = http.get(location)
    assert (there.status_code, there.content, there.headers["ETag"]) == (200, b"0123", answer.headers["ETag"])
    add(api, "empty", b"")
    assert http.get(f"/datasets/{repo}/resolve/main/empty").status_code == 200
    api.update_repo_settings(repo, repo_type="dataset", private=True)
    assert http.get(f"/datasets/{repo}/resolve/main/deep/%C3%A4%20b.txt").content == b"0123"


def test_the_raw_address_of_a_large_file_shows_its_pointer(api: HfApi, repo: str, http: httpx.Client) -> None:
    add(api, "a.bin", b"\0" * 100)
    add(api, "a.txt", b"text")
    raw = http.get(f"/datasets/{repo}/raw/main/a.bin")
    assert raw.status_code == 200
    assert raw.text.startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
    assert http.get(f"/datasets/{repo}/raw/main/a.txt").text == "text"
