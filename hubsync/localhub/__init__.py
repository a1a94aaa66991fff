"""The embedded Hub: a Hugging Face Hub on 127.0.0.1, stored in a directory, for demos, tests and benchmarks.

    with LocalHub(directory) as hub:
        os.environ.update(hub.environ())
        hub.faults.add(Fault.reset(when="after", on="commit", times=1))

How a request travels, and the modules it passes:

    server          LocalHub: a thread with an event loop that accepts the connection and parses HTTP
      v
    app             one ASGI application: finds the operation, draws the faults, writes the log
      | control     requests under /_localhub/ that read the log, and set faults and limits
      | faults      what goes wrong with this request, if anything
      | limits      what is allowed: requests, commits, sizes
      v
    api/            the handlers, one module per part of the API: repos, commits, files, refs, lfs, xet, discussions
      v
    routing         method and path -> handler; what a handler gets (Call): the caller, the repo, what they may do
      v
    state           HubState: revisions, signed addresses; owns everything below
      v
    xet/            xorbs and shards: their formats, and the store of the files made from them
    storage/        the SQLite database, git history, and content on disk

`protocol` has what all of them share: the operations, JSON responses and refusals (HubError).

A module imports only from modules further down (`limits` and `faults` import no handler and no state).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hubsync.localhub.control import Served
    from hubsync.localhub.faults import Fault, Faults
    from hubsync.localhub.limits import Limits
    from hubsync.localhub.protocol import Operation
    from hubsync.localhub.server import LocalHub, serve

__all__ = ["Fault", "Faults", "Limits", "LocalHub", "Operation", "Served", "serve"]

_MODULES = {
    "Fault": "faults",
    "Faults": "faults",
    "Limits": "limits",
    "LocalHub": "server",
    "Operation": "protocol",
    "Served": "control",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    """Import on first use: every pytest run imports this package for its plugin, and must not load a web server."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
