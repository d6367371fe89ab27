"""Find a checkpoint's family by the base model that its README.md names.

Format: YAML between two lines of `---`, https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.families import Family, find_family

_LARGEST_FRONT_MATTER = 1 << 16
# Written by sentence-transformers' training scripts.
_TRAINED_TAGS = {"generated_from_trainer"}


def find_family_in_readme(folder: Path) -> tuple[Family, str] | None:
    """Return the family and the repository of the model that a checkpoint is a copy or conversion of.

    A fine-tuned model does not inherit a family this way: it may be used differently from its base.
    """
    for repo in base_models(folder):
        if family := find_family(repo):
            return family, repo
    return None


def base_models(folder: Path) -> list[str]:
    """Return the repositories that a checkpoint is a copy or conversion of; none for a fine-tuned model."""
    facts = read_front_matter(folder)
    tags = facts.get("tags")
    trained = isinstance(tags, list) and _TRAINED_TAGS & {str(tag) for tag in tags}
    if trained or facts.get("base_model_relation", "quantized") != "quantized":
        return []
    named = facts.get("base_model")
    return [repo for repo in (named if isinstance(named, list) else [named]) if isinstance(repo, str)]


def read_front_matter(folder: Path) -> Mapping[str, Any]:
    """Return the YAML at the beginning of a folder's README.md; empty if there is none that can be read."""
    # Imported here: most checkpoints give all of this in their own files.
    import yaml

    try:
        with (folder / "README.md").open(encoding="utf-8") as stream:
            head = stream.read(_LARGEST_FRONT_MATTER)
        opening, matter, *_ = head.split("---\n", 2)
        facts = yaml.safe_load(matter) if not opening.strip() else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
