"""`hf hubsync …`: this installation as an extension of huggingface_hub's command line.

`hf extensions install` takes extensions from GitHub repositories alone; what it leaves behind is a manifest that names
an executable. `register` writes that manifest for the `hf-hubsync` of this environment.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

from hubsync.errors import ConfigError

# No account of GitHub can have this name, so `hf extensions update` never finds another's code under it.
_NOBODY = "_local"


def register() -> Path:
    """Makes `hf hubsync` run this environment's `hf-hubsync`, for this user; returns the manifest's path. Again is the
    same; `hf extensions remove hubsync` undoes it.

    Raises:
        ConfigError: huggingface_hub is too old for extensions, this environment has no `hf-hubsync`, or an extension
            of that name is installed from GitHub.
    """
    try:
        from huggingface_hub.cli.extensions import EXTENSIONS_ROOT, MANIFEST_FILENAME, ExtensionManifest
    except ImportError:
        import huggingface_hub

        version = huggingface_hub.__version__
        raise ConfigError(f"the `hf` of huggingface_hub {version} knows no extensions; a newer one does.") from None
    executable = Path(sys.executable).parent / "hf-hubsync"
    if not executable.is_file():
        raise ConfigError(f"{executable} is not there: install hubsync into this environment with pip.")
    directory = Path(EXTENSIONS_ROOT).expanduser() / "hf-hubsync"
    manifest = directory / MANIFEST_FILENAME
    if manifest.exists() and (owner := ExtensionManifest.load(directory).owner) != _NOBODY:
        raise ConfigError(
            f"hf has the extension {owner}/hf-hubsync already: `hf hubsync` works. To have this environment's instead, "
            "first: hf extensions remove hubsync"
        )
    ExtensionManifest(
        owner=_NOBODY,
        repo="hf-hubsync",
        repo_id=f"{_NOBODY}/hf-hubsync",
        short_name="hubsync",
        executable_path=str(executable),
        type="python",
        installed_at=datetime.datetime.now(datetime.UTC),
        description="Rows from a running job to a dataset, while it runs.",
    ).save(directory)
    return manifest
