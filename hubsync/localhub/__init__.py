"""The embedded Hub: a Hugging Face Hub on 127.0.0.1, in a directory, for demos, tests and benchmarks.

with LocalHub(directory) as hub:
    os.environ.update(hub.environ())
    hub.faults.add(Fault.reset(when="after", on="commit", times=1))
"""

from hubsync.localhub.faults import Fault, Faults
from hubsync.localhub.record import Served
from hubsync.localhub.routing import Operation
from hubsync.localhub.server import LocalHub, serve

__all__ = ["Fault", "Faults", "LocalHub", "Operation", "Served", "serve"]
