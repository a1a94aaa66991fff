"""Dataset, model and space cards: the YAML at the top of a README.md, checked as the Hub checks it."""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*$", re.DOTALL | re.MULTILINE)
_TEXT_FIELDS = ("pretty_name", "pipeline_tag", "library_name", "title", "sdk", "license_name")
_LIST_FIELDS = ("datasets", "language", "tags", "task_categories", "metrics", "base_model")

# The fields that become tags: "name:value" for these, and for models and spaces also bare values of the plain ones.
_DATASET_TAGS = (
    "task_categories", "task_ids", "annotations_creators", "language_creators", "multilinguality", "source_datasets",
    "language", "license", "size_categories",
)  # fmt: skip
_PLAIN_TAGS = ("library_name", "pipeline_tag", "language")
_MODEL_TAGS = ("datasets", "base_model", "license")
# In the order of the Hub's refusal (2026); it accepts no others, not even in capital letters.
_LICENSES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research",
    "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0",
    "openmdw-1.1", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr",
    "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "grok2-community", "gemma", "unknown", "other",
)  # fmt: skip


def problems(readme: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Return (errors, warnings) on a README's metadata; the Hub refuses a commit with an error."""
    metadata, errors = _parse(readme)
    if errors:
        return errors, []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = [f'"{name}" must be a string' for name in _TEXT_FIELDS if not isinstance(metadata.get(name, ""), str)]
    for name in _LIST_FIELDS:
        value = metadata.get(name, "")
        if not isinstance(value, str | list) or not all(isinstance(item, str) for item in value):
            errors.append(f'"{name}" must be a string or a list of strings')
    model_index = metadata.get("model-index", [])
    if not isinstance(model_index, list) or not all(isinstance(item, dict) for item in model_index):
        errors.append('"model-index" must be an array of mappings')
    if not all(item in _LICENSES for item in _as_list(metadata.get("license"))):
        errors.append(f'"license" must be one of [{", ".join(_LICENSES)}, array]')
    configs = metadata.get("configs", [])
    if repo_type == "dataset" and (
        not isinstance(configs, list) or not all(isinstance(item, dict) and "config_name" in item for item in configs)
    ):
        errors.append('"configs" must be a list of mappings with a "config_name"')
    return errors, []


def metadata(readme: str) -> dict[str, Any]:
    """Return a README's metadata as JSON can hold it; empty if it has none or is invalid."""
    found, _ = _parse(readme)
    return dict(json.loads(json.dumps(found, default=_as_text)))  # YAML has dates; the Hub shows them as text


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


def tags(metadata: dict[str, Any], repo_type: str) -> list[str]:
    """Return the tags that the Hub shows and filters by: the card's own, and those made of other fields."""
    if repo_type == "dataset":
        made = [f"{name}:{item}" for name in _DATASET_TAGS for item in _as_list(metadata.get(name))]
    else:
        made = [str(item) for name in _PLAIN_TAGS for item in _as_list(metadata.get(name))]
        made += [f"{name.removesuffix('s')}:{item}" for name in _MODEL_TAGS for item in _as_list(metadata.get(name))]
    return list(dict.fromkeys([*made, "region:us", *map(str, _as_list(metadata.get("tags")))]))


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _parse(readme: str) -> tuple[dict[str, Any], list[str]]:
    """Return (metadata, errors); without a valid front matter, the metadata is empty."""
    match = _FRONT_MATTER.match(readme)
    if match is None:
        return {}, []
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return {}, [f"YAML metadata is invalid: {str(error).splitlines()[0]}"]
    if metadata is not None and not isinstance(metadata, dict):
        return {}, ["YAML metadata must be a mapping"]
    return metadata or {}, []
