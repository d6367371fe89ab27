"""`akidb-mlx models`: which models there are, and having them here."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from akidb_mlx_plugin.cache import CachedModel, find_cached, list_cached_models, resolve_cache_dir
from akidb_mlx_plugin.cli.cache import CacheDirOption, human_size
from akidb_mlx_plugin.cli.output import JsonOption, print_json, print_rows
from akidb_mlx_plugin.errors import DownloadError, ModelNotFoundError
from akidb_mlx_plugin.hub import download_model
from akidb_mlx_plugin.manifest import damaged_files, read_manifest
from akidb_mlx_plugin.registry import ModelSource, ModelSpec, list_models, resolve

NameArgument = Annotated[str, typer.Argument(help="Short name, Hugging Face repository or checkpoint folder.")]

# What of a checkpoint's config.json tells models apart.
_CONFIG_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "quantization")

app = typer.Typer(help="List, download and check models.", no_args_is_help=True)


@app.command("list")
def list_command(cache_dir: CacheDirOption = None, as_json: JsonOption = False) -> None:
    """List the models with a short name, and others that are cached.

    Example: akidb-mlx models list
    """
    cached = {model.repo: model for model in list_cached_models(cache_dir)}
    rows = [_spec_row(spec, spec.repo in cached, as_json) for spec in list_models()]
    known = {spec.repo for spec in list_models()}
    rows += [_other_row(model, as_json) for repo, model in sorted(cached.items()) if repo not in known]
    print_rows(rows, as_json=as_json)


@app.command()
def download(
    name: NameArgument,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Ask the hub for the branch's newest commit.")] = False,
    cache_dir: CacheDirOption = None,
) -> None:
    """Download a model, or verify every byte of it if it is cached, and print its folder.

    Example: akidb-mlx models download minilm-l6-v2
    """
    folder = download_model(
        name, cache_dir=cache_dir, revision=revision, show_progress=sys.stderr.isatty(), force=force
    )
    typer.echo(folder)


@app.command()
def info(name: NameArgument, cache_dir: CacheDirOption = None, as_json: JsonOption = False) -> None:
    """Print what is known of a model, without loading or downloading it.

    Example: akidb-mlx models info gemma-300m-4bit
    """
    source = resolve(name)
    facts = {**_registry_facts(source), **_local_facts(source, cache_dir)}
    if as_json:
        print_json(facts)
    else:
        print_rows([{"field": key, "value": _text(value)} for key, value in facts.items()])


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    cache_dir: CacheDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of the cached models and compare it with what was downloaded.

    Example: akidb-mlx models verify
    """
    repo = resolve(name).repo if name else None
    models = [model for model in list_cached_models(cache_dir) if name is None or model.repo == repo]
    if name and not models:
        raise ModelNotFoundError(f"{name} is not in the model cache; 'akidb-mlx models download {name}' brings it")
    damage = [(model, _damage(model)) for model in models]
    print_rows(
        [
            {
                "model": model.name,
                "revision": model.revision,
                "state": f"damaged: {', '.join(files)}" if files else "whole",
                "folder": str(model.folder),
            }
            for model, files in damage
        ],
        as_json=as_json,
    )
    damaged = sorted({model.name for model, files in damage if files})
    if damaged:
        raise DownloadError(f"damaged: {', '.join(damaged)}; repair with 'akidb-mlx models download {damaged[0]}'")


def _spec_row(spec: ModelSpec, is_cached: bool, as_json: bool) -> dict[str, Any]:
    return {
        "model": spec.name,
        "dimension": spec.dimension,
        "max_tokens": spec.max_tokens,
        **_size(spec.size_mb * 1_000_000, as_json),
        "licence": spec.licence,
        "cached": is_cached if as_json else ("yes" if is_cached else "no"),
        "summary": spec.summary,
    }


def _other_row(model: CachedModel, as_json: bool) -> dict[str, Any]:
    return {
        "model": model.name,
        "dimension": None,
        "max_tokens": None,
        **_size(model.size_bytes, as_json),
        "licence": None,
        "cached": True if as_json else "yes",
        "summary": None,
    }


def _size(size_bytes: int, as_json: bool) -> dict[str, Any]:
    return {"size_bytes": size_bytes} if as_json else {"size": human_size(size_bytes)}


def _registry_facts(source: ModelSource) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": source.name, "repo": source.repo}
    spec = source.spec
    if spec is None:
        return facts
    choices = spec.dimensions
    return {
        **facts,
        "dimension": spec.dimension,
        "native_dimension": spec.native_dimension,
        "dimensions": f"{choices[0]} to {choices[-1]}" if isinstance(choices, range) else list(choices),
        "max_tokens": spec.max_tokens,
        "pooling": spec.pooling,
        "prompts": dict(spec.prompts),
        "licence": spec.licence,
        "download_bytes": spec.size_mb * 1_000_000,
        "summary": spec.summary,
    }


def _local_facts(source: ModelSource, cache_dir: Path | None) -> dict[str, Any]:
    """Return what lies on this machine: a cached copy, or the local folder itself."""
    if source.folder is not None:
        return {"folder": str(source.folder), **_config_facts(source.folder)}
    assert source.repo is not None
    revision = source.spec.revision if source.spec else "main"
    found = find_cached(resolve_cache_dir(cache_dir), source.repo, revision)
    if found is None:
        return {"cached": False}
    folder, manifest = found
    return {
        "cached": True,
        "folder": str(folder),
        "revision": manifest.revision,
        "weights_digest": manifest.weights_digest,
        "source": manifest.source,
        "size_bytes": sum(file.size for file in manifest.files),
        **_config_facts(folder),
    }


def _config_facts(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return {key: config[key] for key in _CONFIG_KEYS if key in config}
    except (OSError, ValueError, TypeError) as error:
        raise ModelNotFoundError(f"{folder} is no checkpoint, its config.json cannot be read: {error}") from error


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _damage(model: CachedModel) -> list[str]:
    manifest = read_manifest(model.folder)
    return damaged_files(model.folder, manifest, deep=True) if manifest else ["akidb-model.json"]
