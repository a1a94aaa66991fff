"""`hubsync hf-extension`: make this installation available as `hf hubsync`, in huggingface_hub's command line.

`hf extensions install` installs only from GitHub. What it leaves behind is a manifest that names an executable;
`register` writes such a manifest for the `hf-hubsync` of this environment.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import click

from hubsync.errors import ConfigError

# GitHub does not allow this account name, so `hf extensions update` never finds somebody else's code under it.
_OWNER = "_local"


@click.command("hf-extension")
def hf_extension() -> None:
    """Make this hubsync available as `hf hubsync`."""
    click.echo(f"`hf hubsync` works now (registered in {register()}).")


def register() -> Path:
    """Make `hf hubsync` run this environment's `hf-hubsync`, for this user.

    You can call it again. `hf extensions remove hubsync` undoes it.

    Returns:
        The path of the manifest.

    Raises:
        ConfigError: huggingface_hub is too old for extensions, this environment has no `hf-hubsync`, or an extension of
            that name is installed from GitHub.
    """
    try:
        from huggingface_hub.cli.extensions import EXTENSIONS_ROOT, MANIFEST_FILENAME, ExtensionManifest
    except ImportError:
        import huggingface_hub

        version = huggingface_hub.__version__
        raise ConfigError(
            f"the `hf` of huggingface_hub {version} has no extensions. Upgrade it: pip install -U huggingface_hub"
        ) from None
    executable = Path(sys.executable).parent / "hf-hubsync"
    if not executable.is_file():
        raise ConfigError(f"{executable} does not exist. Install hubsync into this environment: pip install hf-hubsync")
    directory = Path(EXTENSIONS_ROOT).expanduser() / "hf-hubsync"
    manifest = directory / MANIFEST_FILENAME
    if manifest.exists() and (owner := ExtensionManifest.load(directory).owner) != _OWNER:
        raise ConfigError(
            f"hf already has the extension {owner}/hf-hubsync, so `hf hubsync` works. To use this environment's "
            "instead, first run: hf extensions remove hubsync"
        )
    ExtensionManifest(
        owner=_OWNER,
        repo="hf-hubsync",
        repo_id=f"{_OWNER}/hf-hubsync",
        short_name="hubsync",
        executable_path=str(executable),
        type="python",
        installed_at=datetime.datetime.now(datetime.UTC),
        description="Upload rows from a running job to a dataset.",
    ).save(directory)
    return manifest
