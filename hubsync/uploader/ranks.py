"""The default name of a source: one for each part of a job that runs at the same time.

If the ranks of a job shared a name, one rank's offsets would make the others' batches replays, and lose their rows.
"""

from __future__ import annotations

import os

# What counts the parts, and what says how many there are; a part of one needs no name of its own.
_RANKS = (
    ("RANK", ("WORLD_SIZE",)),
    ("SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")),
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    ("PMIX_RANK", ("PMIX_SIZE",)),
    ("PMI_RANK", ("PMI_SIZE",)),
    ("MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)),
)
_ARRAYS = (("SLURM_ARRAY_TASK_ID", ("SLURM_ARRAY_TASK_COUNT",)), ("JOB_COMPLETION_INDEX", ()))


def default_source() -> str:
    """Return "default"; in a job of several parts with this part's number, such as "default-array2-rank3"."""
    parts = (("array", _first_of(_ARRAYS)), ("rank", _first_of(_RANKS)))
    return "".join(["default", *(f"-{what}{number}" for what, number in parts if number is not None)])


def _first_of(variables: tuple[tuple[str, tuple[str, ...]], ...]) -> str | None:
    for variable, sizes in variables:
        number = os.environ.get(variable, "").strip()
        if number.isdecimal():
            size = next((value for name in sizes if (value := os.environ.get(name, "").strip())), None)
            return None if size == "1" else number
    return None
