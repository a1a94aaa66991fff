"""The pytest fixture `local_hub`: an embedded Hub for one test, used by huggingface_hub, hf_xet and datasets.

It is registered as an entry point, so every pytest run imports this module: at the top it imports nothing but pytest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from hubsync.localhub.server import LocalHub

_CACHES = {
    "HF_HUB_CACHE": "hub",
    "HF_ASSETS_CACHE": "assets",
    "HF_TOKEN_PATH": "token",
    "HF_STORED_TOKENS_PATH": "stored_tokens",
    "HF_XET_CACHE": "xet",
}


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Yield an embedded Hub; until the test ends, the environment and the imported libraries point at it."""
    from hubsync.localhub.server import LocalHub

    with LocalHub(tmp_path / "localhub") as hub:
        point_at(hub, monkeypatch, tmp_path / "hf-home")
        yield hub


def point_at(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Point this process and its children at `hub`, with the caches under `home`, until monkeypatch undoes it."""
    home.mkdir(parents=True, exist_ok=True)
    for name, value in {**hub.environ(), "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}.items():
        monkeypatch.setenv(name, value)
    for name, path in _CACHES.items():
        monkeypatch.setenv(name, str(home / path))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if "huggingface_hub" in sys.modules:
        _patch_huggingface_hub(hub, monkeypatch, home)
    if "datasets" in sys.modules:
        _patch_datasets(hub, monkeypatch, home)


def _patch_huggingface_hub(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Set what the library computed from the environment at import; a name that a version lacks is skipped."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http, _xet

    address = urlsplit(hub.endpoint)
    values: dict[str, object] = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": frozenset({*getattr(constants, "HF_URL_HOSTS", ()), address.hostname}),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": False,
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        **{name: str(home / path) for name, path in _CACHES.items()},
    }
    _set_known(monkeypatch, constants, values)
    _set_known(monkeypatch, hf_api.api, {"endpoint": hub.endpoint})
    origin = (address.scheme, address.hostname, address.port)
    _set_known(monkeypatch, _http, {"_HUB_ORIGINS": frozenset({*getattr(_http, "_HUB_ORIGINS", ()), origin})})
    # The cache is by address and token, and an earlier test's Hub may have used the same port.
    _set_known(monkeypatch, _xet, {"XET_CONNECTION_INFO_CACHE": {}})
    file_systems = sys.modules.get("huggingface_hub.hf_file_system")
    if file_systems is not None:
        file_systems.HfFileSystem.clear_instance_cache()


def _patch_datasets(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    values: dict[str, object] = {
        "HF_ENDPOINT": hub.endpoint,
        "HUB_DATASETS_URL": hub.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": home / "datasets",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
    }
    _set_known(monkeypatch, sys.modules["datasets"].config, values)


def _set_known(monkeypatch: pytest.MonkeyPatch, target: object, values: dict[str, object]) -> None:
    for name, value in values.items():
        if hasattr(target, name):
            monkeypatch.setattr(target, name, value)
