"""What a checkpoint folder says about itself: architecture, pooling, dense head, prompts, lengths.

Reads JSON and the headers of weight files; weights are loaded by `loading.py`. A folder is either in the layout of
sentence-transformers (`modules.json`, `1_Pooling/config.json`, …) or bare (`config.json`, weights, tokenizer), where
the registry's entry, and without one the architecture's convention, fills the gaps.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.prompts import check_default_prompt, find_prompt
from akidb_mlx_plugin.checkpoints.sentence_transformers import (
    DenseLayer,
    Module,
    dense_inside,
    dense_layers,
    pooling_modes,
    read_json,
    read_modules,
    read_transformer_settings,
)
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.manifest import digest_of_folder
from akidb_mlx_plugin.models.architectures import attends_both_ways, find_architecture
from akidb_mlx_plugin.pooling_names import parse_pooling
from akidb_mlx_plugin.registry import ModelSpec, trained_dimensions
from akidb_mlx_plugin.types import ModelInfo

_UNBOUNDED = 1 << 30
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read but not loaded.

    Attributes:
        name: what the model was asked for by.
        root: where it lies.
        folder: where the encoder's configuration, weights and tokenizer lie; the same, or a folder in it.
        spec: the registry's entry, if it has one.
        config: `config.json`.
        model_type: its architecture.
        max_tokens: longest text in tokens.
        pooling: one or more modes, concatenated.
        pool_prompt: whether the tokens of a prompt are pooled too.
        dense: layers behind the pooling.
        normalize: whether vectors are scaled to unit length.
        similarity: what the model was trained to be compared by, "cosine", "dot", "euclidean" or "manhattan".
        prompts: by kind or task name.
        truncate_dim: length of the vectors where the caller names none, if it is not the native one.
        lowercase: fold case before tokenizing.
        repo: repository id or folder it came from.
        revision: commit, or digest of the weights.
        known_digest: digest of the weights where it was recorded before.
    """

    name: str
    root: Path
    folder: Path
    spec: ModelSpec | None
    config: Mapping[str, Any]
    model_type: str
    max_tokens: int
    pooling: tuple[str, ...]
    pool_prompt: bool = True
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = True
    similarity: str = "cosine"
    prompts: Mapping[str, str] = field(default_factory=dict)
    truncate_dim: int | None = None
    lowercase: bool = False
    repo: str = ""
    revision: str = ""
    known_digest: str = ""

    @property
    def native_dimension(self) -> int:
        """Length of the vectors before any matryoshka cut."""
        if self.dense:
            return self.dense[-1].out_features
        return int(self.config["hidden_size"]) * len(self.pooling)

    @property
    def default_dimension(self) -> int:
        """Length of the vectors where the caller names none."""
        if self.spec and len(self.pooling) == 1:
            return self.spec.dimension
        return self.truncate_dim or self.native_dimension

    @property
    def end_token(self) -> str | None:
        """Token that must end every text, whatever the tokenizer's template says; None: as that says."""
        if self.spec and self.spec.end_token:
            return self.spec.end_token
        settings = _tokenizer_settings(self.folder)
        end = settings.get("eos_token") if settings.get("add_eos_token") else None
        return end.get("content") if isinstance(end, dict) else end

    @cached_property
    def weights_digest(self) -> str:
        """Identity of the weights: 16 hex digits, equal for equal weights, wherever they came from."""
        return self.known_digest or digest_of_folder(self.root)

    def prompt_for(self, kind: str) -> str:
        """Return the text to put before a "document", a "query" or a named task.

        Raises:
            InvalidInputError: no such task.
        """
        prompt = find_prompt(self.prompts, kind)
        if prompt is None:
            raise InvalidInputError(f"{self.name} has no prompt {kind!r}; it has {', '.join(self.prompts) or 'none'}")
        return prompt

    def check_dimension(self, dimension: int | None) -> int:
        """Return the length of the vectors for a requested one.

        Args:
            dimension: None for the default.
        Raises:
            InvalidInputError: the model was not trained to be cut to it.
        """
        if dimension is None:
            return self.default_dimension
        if isinstance(dimension, bool) or not isinstance(dimension, int):
            raise InvalidInputError(f"dimension must be a whole number, got {dimension!r}")
        allowed = self.allowed_dimensions
        if dimension in allowed:
            return dimension
        if isinstance(allowed, range):
            raise InvalidInputError(
                f"{self.name} gives {allowed.start} to {allowed.stop - 1} dimensions, not {dimension}"
            )
        raise InvalidInputError(f"{self.name} gives {' or '.join(map(str, allowed))} dimensions, not {dimension}")

    @property
    def allowed_dimensions(self) -> range | tuple[int, ...]:
        """Lengths its vectors may have."""
        known = self.spec.dimensions if self.spec else trained_dimensions(self.repo)
        # Only vectors of one pooling were trained to be cut; of several, a cut would drop the last ones.
        if known and len(self.pooling) == 1:
            return known
        trained = self.config.get("matryoshka_dimensions") or ()
        return tuple(sorted({*map(int, trained), self.default_dimension, self.native_dimension}))

    def fingerprint(self, dimension: int, normalize: bool, prompts: Mapping[str, str]) -> str:
        """Name the vector space: equal fingerprints mean comparable vectors."""
        space = {
            "weights": self.weights_digest,
            "max_tokens": self.max_tokens,
            "pooling": list(self.pooling),
            "pool_prompt": self.pool_prompt,
            "prompts": {kind: prompts[kind] for kind in ("document", "query")},
            "dimension": dimension,
            "normalize": normalize,
        }
        return hashlib.sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()[:16]

    def info(
        self,
        *,
        dimension: int | None = None,
        normalize: bool | None = None,
        prompts: Mapping[str, str] | None = None,
        tasks: Mapping[str, str] | None = None,
        device: str = "",
        dtype: str = "",
        parameters: int = 0,
    ) -> ModelInfo:
        """Describe the model and the vector space that these settings select.

        Args:
            dimension: matryoshka cut; None: the default.
            normalize: None: as the checkpoint says.
            prompts: of the caller's own, in place of the checkpoint's, by "document" and "query".
            tasks: names of other prompts of the checkpoint's to use, by "document" and "query".
            device, dtype, parameters: known once the model is loaded.
        """
        length = self.check_dimension(dimension)
        unit = self.normalize if normalize is None else normalize
        named = {kind: self.prompt_for((tasks or {}).get(kind, kind)) for kind in ("document", "query")}
        effective = named | dict(prompts or {})
        return ModelInfo(
            model=self.name,
            dimension=length,
            max_tokens=self.max_tokens,
            native_dimension=self.native_dimension,
            dimensions=tuple(self.allowed_dimensions),
            pooling="+".join(self.pooling),
            normalize=unit,
            similarity=self.similarity,
            prompts=effective,
            repo=self.repo,
            revision=self.revision or self.weights_digest,
            device=device,
            dtype=dtype,
            parameters=parameters,
            fingerprint=self.fingerprint(length, unit, effective),
        )


def read_checkpoint(
    folder: Path,
    *,
    name: str | None = None,
    spec: ModelSpec | None = None,
    repo: str = "",
    revision: str = "",
    weights_digest: str = "",
    pooling: str | Sequence[str] | None = None,
) -> Checkpoint:
    """Read what a checkpoint folder says about itself.

    Args:
        folder: it holds modules.json, or config.json, weights and tokenizer.
        name: what the caller calls the model; None: the folder.
        spec: the registry's entry, for what the folder does not say.
        repo: where it came from; "": the folder.
        revision: which version; "": the digest of its weights.
        weights_digest: as `Checkpoint.weights_digest`, where it is known; "": computed when it is asked for.
        pooling: the caller's, in place of what the folder, the registry or a convention says; see `parse_pooling`.
    Raises:
        ModelNotFoundError: not a checkpoint, or one of a kind this package does not know.
        InvalidInputError: no such pooling, or one that the checkpoint's dense layers cannot take.
    """
    modules = read_modules(folder)
    place = modules[0].folder if modules else folder
    config = _read_config(place)
    modes, pool_prompt = _pooling(modules, spec, config, folder, pooling)
    settings = read_transformer_settings(place)
    prompts_file = folder / "config_sentence_transformers.json"
    sentence_config = read_json(prompts_file) if prompts_file.is_file() else {}
    prompts = {k: v for k, v in (sentence_config.get("prompts") or {}).items() if isinstance(v, str)}
    if spec and not any(prompts.values()):
        prompts = dict(spec.prompts)
    check_default_prompt(folder, prompts, sentence_config.get("default_prompt_name"))
    dense = dense_inside(place, modules, int(config["hidden_size"]) * len(modes)) or dense_layers(modules)
    is_own_width = len(modes) == (len(pooling_modes(modules[1].settings)) if modules else 1)
    if dense and not is_own_width:
        raise InvalidInputError(
            f"pooling {'+'.join(modes)!r} makes vectors of {len(modes)} parts, and the dense layers of {folder} were "
            "trained on another number; name as many modes as the checkpoint has"
        )
    similarity = sentence_config.get("similarity_fn_name")
    return Checkpoint(
        name=name or str(folder),
        root=folder,
        folder=place,
        spec=spec,
        config=config,
        model_type=config["model_type"],
        max_tokens=_max_tokens(place, config, settings, spec),
        pooling=modes,
        pool_prompt=pool_prompt,
        dense=dense,
        # A bare folder is an embedding model too, and every one of those is compared by cosine.
        normalize=modules[-1].kind == "Normalize" if modules else True,
        similarity=similarity if similarity in _SIMILARITIES else "cosine",
        prompts=prompts,
        truncate_dim=sentence_config.get("truncate_dim") if is_own_width else None,
        lowercase=bool(settings.get("do_lower_case", False)),
        repo=repo or str(folder),
        revision=revision,
        known_digest=weights_digest,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelNotFoundError(f"{folder} is no checkpoint: it has no config.json")
    config = read_json(file)
    key = find_architecture(str(config.get("model_type"))).hidden_size
    # The last two are what older decoders call it.
    config.setdefault("hidden_size", config.get(key) or config.get("n_embd") or config.get("d_model"))
    if not isinstance(config.get("model_type"), str) or not isinstance(config.get("hidden_size"), int):
        raise ModelNotFoundError(f"{file} has no model_type or no hidden_size; is it a text encoder?")
    if "AutoModel" in (config.get("auto_map") or {}):
        raise ModelNotFoundError(
            f"{file} has auto_map: the model is computed by code of its own, which this package does not run; the "
            "architecture's usual code would give other vectors"
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} holds an adapter beside the model; merge it (peft's merge_and_unload, then save_pretrained)"
        )
    return config


def _pooling(
    modules: list[Module], spec: ModelSpec | None, config: Mapping[str, Any], folder: Path, chosen: object
) -> tuple[tuple[str, ...], bool]:
    """Return the pooling modes, and whether prompts are pooled: as chosen, else by folder, registry or convention."""
    if modules:
        settings = modules[1].settings
        modes = pooling_modes(settings) if chosen is None else parse_pooling(chosen)
        return modes, bool(settings.get("include_prompt", True))
    if chosen is not None:
        return parse_pooling(chosen), True
    if spec and spec.pooling:
        return (spec.pooling,), True
    # The last token alone of a causal decoder has seen the whole text.
    mode = "mean" if attends_both_ways(config) else "lasttoken"
    _warn_of_convention(folder, config["model_type"], mode)
    return (mode,), True


@lru_cache(maxsize=256)
def _warn_of_convention(folder: Path, model_type: str, mode: str) -> None:
    """Say once per folder that its pooling is a convention."""
    _log.warning(
        "%s does not say how its token vectors become one (no modules.json); taking %s pooling and unit length, as is "
        "usual for %s",
        folder,
        mode,
        model_type,
    )


def _tokenizer_settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read_json(file) if file.is_file() else {}


def _max_tokens(folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], spec: ModelSpec | None) -> int:
    """Return the longest text in tokens: the sentence-transformers setting, else registry, tokenizer and positions."""
    architecture = find_architecture(config["model_type"])
    positions = int((architecture.positions and config.get(architecture.positions)) or _UNBOUNDED)
    if architecture.offset_positions:
        pad_id = config.get("pad_token_id")
        positions -= (1 if pad_id is None else int(pad_id)) + 1
    if settings.get("max_seq_length"):
        return min(int(settings["max_seq_length"]), positions)
    if spec:
        return min(spec.max_tokens, positions)
    # transformers writes 1e30 where a tokenizer has no limit of its own.
    limit = min(int(_tokenizer_settings(folder).get("model_max_length") or _UNBOUNDED), positions)
    return limit if limit < _UNBOUNDED else 512
