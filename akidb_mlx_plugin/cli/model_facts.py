"""Facts for `akidb-mlx models info`: from the registry and the model's files, and whether it is supported."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.cross_encoder import (
    CrossEncoderCheckpoint,
    check_cross_encoder,
    read_cross_encoder,
)
from akidb_mlx_plugin.checkpoints.families import find_family
from akidb_mlx_plugin.checkpoints.loading import estimate_memory
from akidb_mlx_plugin.checkpoints.reader import check_settings, read_checkpoint
from akidb_mlx_plugin.checkpoints.rerankers import is_reranker
from akidb_mlx_plugin.checkpoints.sentence_transformers import read_json
from akidb_mlx_plugin.errors import DownloadError, EmbeddingError
from akidb_mlx_plugin.hub.client import is_offline
from akidb_mlx_plugin.hub.download import fetch_settings
from akidb_mlx_plugin.hub.models import find_snapshot
from akidb_mlx_plugin.hub.registry import ModelSource
from akidb_mlx_plugin.inference.pair_tokenizer import load_pair_tokenizer
from akidb_mlx_plugin.inference.tokenizer import load_text_tokenizer

# Settings in a checkpoint's config.json that characterize a model.
_CONFIG_KEYS = ("hidden_size", "num_hidden_layers", "vocab_size", "quantization")


def collect_facts(source: ModelSource, cache_dir: Path | None) -> dict[str, Any]:
    """Return the known facts about a model by field; without "supported" if nothing could be read."""
    registry = _registry_facts(source)
    if source.folder is not None:
        return registry | {"folder": str(source.folder)} | _folder_facts(source, source.folder, str(source.folder))
    assert source.repo is not None
    snapshot = find_snapshot(source, cache_dir)
    if snapshot is None:
        return registry | {"cached": False} | _remote_facts(source, source.repo)
    return {
        **registry,
        "cached": True,
        "folder": str(snapshot.folder),
        "revision": snapshot.revision,
        "weights_digest": snapshot.weights_digest,
        "source": snapshot.source,
        "size_bytes": snapshot.size_bytes,
        **_folder_facts(source, snapshot.folder, source.repo),
    }


def _registry_facts(source: ModelSource) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": source.name, "repo": source.repo}
    if spec := source.spec:
        vectors = {"dimension": spec.dimension, "native_dimension": spec.native_dimension}
        facts |= {
            "kind": spec.kind,
            **(vectors if spec.kind == "embedding" else {}),
            "max_tokens": spec.max_tokens,
            "licence": spec.licence,
            "download_bytes": spec.size_mb * 1_000_000,
            "summary": spec.summary,
        }
    return facts


def _remote_facts(source: ModelSource, repo: str) -> dict[str, Any]:
    """Return facts from a repository's settings; its weights are not checked."""
    if is_offline():
        return _family_facts(repo)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = fetch_settings(repo, source.revision, Path(scratch))
        except DownloadError as error:
            return {**_family_facts(repo), "not_read": str(error)}
        try:
            if _scores_pairs(folder, repo):
                check_cross_encoder(folder, repo)
                return _describe_reranker(read_cross_encoder(folder, spec=source.spec, repo=repo)) | {"supported": True}
            check_settings(folder, repo)
            return _describe(read_checkpoint(folder, name=source.name, spec=source.spec, repo=repo)) | {
                "supported": True
            }
        except EmbeddingError as error:
            return _unsupported(error, folder, repo)


def _folder_facts(source: ModelSource, folder: Path, repo: str) -> dict[str, Any]:
    try:
        checkpoint: Checkpoint
        if _scores_pairs(folder, repo):
            checkpoint = reranker = read_cross_encoder(folder, name=source.name, spec=source.spec, repo=repo)
            load_pair_tokenizer(reranker)
            facts = _describe_reranker(reranker)
        else:
            checkpoint = read_checkpoint(folder, name=source.name, spec=source.spec, repo=repo)
            load_text_tokenizer(checkpoint)
            facts = _describe(checkpoint)
        facts["memory_bytes"] = estimate_memory(checkpoint)
        return facts | {"supported": True}
    except EmbeddingError as error:
        return _unsupported(error, folder, str(folder))


def _unsupported(error: EmbeddingError, folder: Path, shown_as: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"supported": False, "reason": str(error).replace(str(folder), shown_as)}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return {**{key: config[key] for key in ("model_type", *_CONFIG_KEYS) if key in config}, **facts}
    except (OSError, ValueError, TypeError, RecursionError):
        return facts


def _scores_pairs(folder: Path, repo: str) -> bool:
    file = folder / "config.json"
    return file.is_file() and is_reranker(folder, read_json(file), repo)


def _describe_reranker(checkpoint: CrossEncoderCheckpoint) -> dict[str, Any]:
    return {
        "kind": "reranker",
        "model_type": checkpoint.model_type,
        **{key: checkpoint.config[key] for key in _CONFIG_KEYS if key in checkpoint.config},
        "max_tokens": checkpoint.max_tokens,
        "scores": checkpoint.scores,
        "activation": checkpoint.activation,
        **({"instruction": checkpoint.asks.instruction} if checkpoint.asks else {}),
    }


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    choices = checkpoint.allowed_dimensions
    return {
        "model_type": checkpoint.model_type,
        **{key: checkpoint.config[key] for key in _CONFIG_KEYS if key in checkpoint.config},
        "family": checkpoint.origins["family"] or "none known",
        "dimension": checkpoint.default_dimension,
        "native_dimension": checkpoint.native_dimension,
        "dimensions": f"{choices[0]} to {choices[-1]}" if isinstance(choices, range) else list(choices),
        "max_tokens": checkpoint.max_tokens,
        "pooling": "+".join(checkpoint.pooling),
        "pooling_from": checkpoint.origins["pooling"],
        "normalize": checkpoint.normalize,
        "similarity": checkpoint.similarity,
        "prompts": dict(checkpoint.prompts),
        "prompts_from": checkpoint.origins["prompts"] or "nowhere",
    }


def _family_facts(repo: str) -> dict[str, Any]:
    """Return facts from the family of a repository that cannot be read."""
    family = find_family(repo)
    if family is None:
        return {}
    return {"family": repo, "pooling": family.pooling, "prompts": dict(family.prompts)}
