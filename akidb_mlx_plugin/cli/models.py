"""`akidb-mlx models`: which models there are, and which are on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from akidb_mlx_plugin.checkpoints.lookup import download_model
from akidb_mlx_plugin.cli.cache import CacheDirOption, human_size
from akidb_mlx_plugin.cli.output import JsonOption, print_json, print_rows
from akidb_mlx_plugin.errors import DownloadError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.hub.cache import (
    CachedModel,
    list_cached_models,
    list_shared_models,
    resolve_cache_dir,
)
from akidb_mlx_plugin.hub.eviction import remove_model
from akidb_mlx_plugin.hub.registry import ModelSpec, list_models, resolve

NameArgument = Annotated[str, typer.Argument(help="Short name, Hugging Face repository or checkpoint folder.")]

app = typer.Typer(help="List, download, check and remove models.", no_args_is_help=True)


@app.command("list")
def list_command(cache_dir: CacheDirOption = None, as_json: JsonOption = False) -> None:
    """List the models with a short name, and others that are on this machine.

    What lies in the Hugging Face cache, where other tools keep their models, is marked so; it is used from there.

    Example: akidb-mlx models list
    """
    cached = {model.repo: model for model in [*list_shared_models(), *list_cached_models(cache_dir)]}
    rows = [_spec_row(spec, cached.get(spec.repo), as_json) for spec in list_models(None)]
    known = {spec.repo for spec in list_models(None)}
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
    """Print what is known of a model, and whether it can be computed; exits with status 1 if it cannot.

    Neither loads nor downloads its weights; of a repository that is not cached, some kilobytes of settings are read.

    Example: akidb-mlx models info gemma-300m-4bit
    """
    # Deferred: MLX takes longer to import than the other commands to run.
    from akidb_mlx_plugin.cli.model_facts import collect_facts

    facts = collect_facts(resolve(name), cache_dir)
    if as_json:
        print_json(facts)
    else:
        print_rows([{"field": key, "value": _text(value)} for key, value in facts.items()])
    if facts.get("supported") is False:
        raise typer.Exit(1)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    cache_dir: CacheDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of the cached models and compare it with what was downloaded; needs no network.

    A model of the Hugging Face cache is read where it is named.

    Example: akidb-mlx models verify
    """
    repo = resolve(name).repo if name else None
    models = [
        model
        for model in [*list_cached_models(cache_dir), *list_shared_models()]
        if (name is None and not model.shared) or model.repo == repo
    ]
    if name and not models:
        raise ModelNotFoundError(
            f"{name} is not available locally; download it with 'akidb-mlx models download {name}'"
        )
    if not models:
        raise ModelNotFoundError(f"no models in {resolve_cache_dir(cache_dir)}; is it the right folder?")
    damage = [(model, model.snapshot.damaged_files(deep=True)) for model in models if model.snapshot]
    print_rows(
        [
            {
                "model": model.name,
                "revision": model.revision,
                "state": f"damaged: {', '.join(files)}" if files else "complete",
                "folder": str(model.folder),
            }
            for model, files in damage
        ],
        as_json=as_json,
    )
    damaged = sorted({model.name for model, files in damage if files})
    if damaged:
        raise DownloadError(
            f"damaged: {', '.join(damaged)}; repair with 'akidb-mlx models download {damaged[0]}', or copy the "
            "model cache here again"
        )


@app.command()
def remove(name: NameArgument, cache_dir: CacheDirOption = None, as_json: JsonOption = False) -> None:
    """Remove a model from the model cache, all its commits; never from the Hugging Face cache.

    Example: akidb-mlx models remove minilm-l6-v2
    """
    repo = resolve(name).repo
    removed, left = remove_model(repo, cache_dir=cache_dir) if repo else ([], [])
    if not removed and not left:
        raise ModelNotFoundError(f"{name} is not in the model cache {resolve_cache_dir(cache_dir)}")
    print_rows(
        [{"model": model.name, "revision": model.revision, "folder": str(model.folder)} for model in removed],
        as_json=as_json,
    )
    if left:
        raise ServiceUnavailableError(f"{name} was not removed: {left[0].folder} is in use or cannot be removed")


def _spec_row(spec: ModelSpec, cached: CachedModel | None, as_json: bool) -> dict[str, Any]:
    return {
        "model": spec.name,
        "kind": spec.kind,
        "dimension": spec.dimension or None,
        "max_tokens": spec.max_tokens,
        **_size(spec.size_mb * 1_000_000, as_json),
        "licence": spec.licence,
        **_place(cached, as_json),
        "summary": spec.summary,
    }


def _other_row(model: CachedModel, as_json: bool) -> dict[str, Any]:
    return {
        "model": model.name,
        "kind": None,
        "dimension": None,
        "max_tokens": None,
        **_size(model.size_bytes, as_json),
        "licence": None,
        **_place(model, as_json),
        "summary": None,
    }


def _place(cached: CachedModel | None, as_json: bool) -> dict[str, Any]:
    # By size; only `verify` reads every byte.
    damaged = cached is not None and cached.snapshot is not None and bool(cached.snapshot.damaged_files())
    if as_json:
        return {"cached": cached is not None, "shared": cached is not None and cached.shared, "damaged": damaged}
    state = "no" if cached is None else "Hugging Face cache" if cached.shared else "yes"
    return {"cached": "damaged" if damaged else state}


def _size(size_bytes: int, as_json: bool) -> dict[str, Any]:
    return {"size_bytes": size_bytes} if as_json else {"size": human_size(size_bytes)}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
