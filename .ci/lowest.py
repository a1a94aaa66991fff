"""Prints the lowest versions that pyproject.toml admits, as pip's constraints: one end of what is supported."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["demo"],
                    *project["optional-dependencies"]["localhub"], *project["optional-dependencies"]["parquet"],
                    *project["optional-dependencies"]["zstd"]]:  # fmt: skip
    if found := re.match(r"([\w.-]+)>=([\w.]+)", requirement):
        print(f"{found[1]}=={found[2]}")
