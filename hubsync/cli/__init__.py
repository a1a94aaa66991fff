"""The command line: one file per command, which ``main`` loads when it is called.

``console`` holds what the commands share (streams, options, errors). The logic behind ``pipe`` is in ``stdin_reader``,
behind ``read`` and ``tail`` in ``jsonl_writer``. The demo's job, which it runs as a process, is ``demo_job``.
"""

from hubsync.cli.main import main

__all__ = ["main"]
