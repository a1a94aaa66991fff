"""The embedded Hub: a Hugging Face Hub on 127.0.0.1, in a directory, for demos, tests and benchmarks.

with LocalHub(directory) as hub:
    os.environ.update(hub.environ())
    hub.faults.add(Fault.reset(when="after", on="commit", times=1))
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hubsync.localhub.control import Served
    from hubsync.localhub.faults import Fault, Faults
    from hubsync.localhub.routing import Operation
    from hubsync.localhub.server import LocalHub, serve

__all__ = ["Fault", "Faults", "LocalHub", "Operation", "Served", "serve"]

_HOMES = {
    "Fault": "faults",
    "Faults": "faults",
    "LocalHub": "server",
    "Operation": "routing",
    "Served": "control",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    """Import on first use: every pytest run imports this package for its plugin, and must not pay for a web server."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
