"""What a checkpoint folder says about itself: architecture, pooling, dense head, prompts, lengths.

Reads JSON alone; weights are loaded by `loading.py`. A folder is either in the layout of sentence-transformers
(`modules.json`, `1_Pooling/config.json`, …) or bare (`config.json`, weights, tokenizer), where the registry's entry,
and without one the architecture's convention, fills the gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.registry import ModelSpec
from akidb_mlx_plugin.types import ModelInfo

# sentence-transformers `Pooling`: the order is that in which several modes are concatenated.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Encoders that attend in both directions; every other architecture is a causal decoder, whose last token alone has
# seen the whole text.
_BIDIRECTIONAL = {"bert", "roberta", "xlm-roberta", "camembert", "modernbert"}
# Position ids start behind the padding id there, so that many fewer positions are left for tokens.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert"}
_UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class DenseLayer:
    """A sentence-transformers `Dense` module behind the pooling.

    Attributes:
        folder: where its weights lie; None: inside the model's own files as `dense.{i}.*`.
        in_features, out_features: its sides.
        bias: whether it has one.
        activation: "identity", "tanh", "relu", "gelu" or "sigmoid".
    """

    folder: Path | None
    in_features: int
    out_features: int
    bias: bool = False
    activation: str = "identity"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read but not loaded.

    Attributes:
        name: what the model was asked for by.
        folder: where it lies.
        spec: the registry's entry, if it has one.
        config: `config.json`.
        model_type: its architecture.
        max_tokens: longest text in tokens.
        pooling: one or more modes, concatenated.
        pool_prompt: whether the tokens of a prompt are pooled too.
        dense: layers behind the pooling.
        normalize: whether vectors are scaled to unit length.
        prompts: by kind or task name.
        default_prompt: used where `prompts` has no entry for a kind.
        lowercase: fold case before tokenizing.
        repo: repository id or folder it came from.
        revision: commit, or digest of the weights.
        known_digest: digest of the weights where it was recorded before.
    """

    name: str
    folder: Path
    spec: ModelSpec | None
    config: Mapping[str, Any]
    model_type: str
    max_tokens: int
    pooling: tuple[str, ...]
    pool_prompt: bool = True
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
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
        return self.spec.dimension if self.spec else self.native_dimension

    @property
    def weight_files(self) -> list[Path]:
        """The model's own safetensors files, those of dense layers not among them.

        Raises:
            ModelNotFoundError: there is none, or the index names one that is missing.
        """
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            missing = [name for name in names if not (self.folder / name).is_file()]
            if missing:
                raise ModelNotFoundError(f"{index} names {', '.join(missing)}, which {self.folder} does not have")
            return [self.folder / name for name in names]
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise ModelNotFoundError(
                f"{self.folder} has no *.safetensors; convert other formats with transformers' save_pretrained"
            )
        return files

    @cached_property
    def weights_digest(self) -> str:
        """Short sha256 over the weight files: the identity of the weights, wherever they came from."""
        if self.known_digest:
            return self.known_digest
        digest = hashlib.sha256()
        for file in self.weight_files:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()[:16]

    def prompt_for(self, kind: str) -> str:
        """Return the text to put before a "document", a "query" or a named task.

        Raises:
            InvalidInputError: no such task.
        """
        for name in _PROMPT_NAMES.get(kind, (kind,)):
            if name in self.prompts:
                return self.prompts[name]
        if kind in _PROMPT_NAMES:
            return self.default_prompt
        raise InvalidInputError(f"{self.name} has no prompt {kind!r}; it has {', '.join(self.prompts) or 'none'}")

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
        if self.spec and self.spec.dimensions:
            return self.spec.dimensions
        trained = self.config.get("matryoshka_dimensions") or ()
        return tuple(sorted({*map(int, trained), self.native_dimension}))

    def fingerprint(self, dimension: int, normalize: bool, prompts: Mapping[str, str]) -> str:
        """Name the vector space: equal fingerprints mean comparable vectors."""
        space = {
            "weights": self.weights_digest,
            "max_tokens": self.max_tokens,
            "pooling": list(self.pooling),
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
        device: str = "",
        dtype: str = "",
        parameters: int = 0,
    ) -> ModelInfo:
        """Describe the model and the vector space that these settings select.

        Args:
            dimension: matryoshka cut; None: the default.
            normalize: None: as the checkpoint says.
            prompts: of the caller's own, in place of the checkpoint's, by "document" and "query".
            device, dtype, parameters: known once the model is loaded.
        """
        length = self.check_dimension(dimension)
        unit = self.normalize if normalize is None else normalize
        effective = {kind: self.prompt_for(kind) for kind in ("document", "query")} | dict(prompts or {})
        return ModelInfo(
            model=self.name,
            dimension=length,
            max_tokens=self.max_tokens,
            native_dimension=self.native_dimension,
            dimensions=tuple(self.allowed_dimensions),
            pooling="+".join(self.pooling),
            normalize=unit,
            prompts=effective,
            repo=self.repo,
            revision=self.revision or self.weights_digest,
            device=device,
            dtype=dtype,
            parameters=parameters,
            fingerprint=self.fingerprint(length, unit, effective),
        )


_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


def read_checkpoint(
    folder: Path, *, name: str | None = None, spec: ModelSpec | None = None, repo: str = "", revision: str = ""
) -> Checkpoint:
    """Read what a checkpoint folder says about itself.

    Args:
        folder: it must hold config.json.
        name: what the caller calls the model; None: the folder.
        spec: the registry's entry, for what the folder does not say.
        repo: where it came from; "": the folder.
        revision: which version; "": the digest of its weights.
    Raises:
        ModelNotFoundError: not a checkpoint, or one of a kind this package does not know.
    """
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} is no checkpoint: it has no config.json")
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or "hidden_size" not in config:
        raise ModelNotFoundError(f"{folder / 'config.json'} has no model_type or no hidden_size; is it a text encoder?")
    modules = _read_modules(folder)
    pooling, pool_prompt = _pooling(folder, modules, spec, model_type)
    settings = _sentence_settings(folder, modules)
    prompts_file = folder / "config_sentence_transformers.json"
    sentence_config = read_json(prompts_file) if prompts_file.is_file() else {}
    prompts = {k: v for k, v in (sentence_config.get("prompts") or {}).items() if isinstance(v, str)}
    if spec and not any(prompts.values()):
        prompts = dict(spec.prompts)
    return Checkpoint(
        name=name or str(folder),
        folder=folder,
        spec=spec,
        config=config,
        model_type=model_type,
        max_tokens=_max_tokens(folder, config, settings, spec),
        pooling=pooling,
        pool_prompt=pool_prompt,
        dense=_dense_layers(folder, modules, config),
        # A bare folder of the registry is an embedding model, and every one of those is compared by cosine.
        normalize=("Normalize" in dict(modules)) if modules else True,
        prompts=prompts,
        default_prompt=prompts.get(sentence_config.get("default_prompt_name") or "", ""),
        lowercase=bool(settings.get("do_lower_case", False)),
        repo=repo or str(folder),
        revision=revision,
    )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelNotFoundError: unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelNotFoundError(f"{file} holds a {type(value).__name__}, not a JSON object")
    return value


def _read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return (class name, folder) of each sentence-transformers module, or nothing for a bare checkpoint."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        modules = [(entry["type"].rpartition(".")[2], entry["path"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFoundError(f"{file} cannot be read as a list of modules: {error!r}") from error
    unknown = [kind for kind, _ in modules if kind not in ("Transformer", "Pooling", "Dense", "Normalize")]
    if unknown:
        raise ModelNotFoundError(
            f"{file} names the module {', '.join(unknown)}; supported are Transformer, Pooling, Dense and Normalize"
        )
    return modules


def _pooling(
    folder: Path, modules: list[tuple[str, str]], spec: ModelSpec | None, model_type: str
) -> tuple[tuple[str, ...], bool]:
    """Return the pooling modes and whether prompts are pooled: the folder's, else the registry's, else by convention."""
    paths = [path for kind, path in modules if kind == "Pooling"]
    if paths:
        config = read_json(folder / paths[0] / "config.json")
        named = config.get("pooling_mode")
        if named is None:
            modes = tuple(mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)) or ("mean",)
        else:
            modes = (named,) if isinstance(named, str) else tuple(named)
        return modes, bool(config.get("include_prompt", True))
    if spec and spec.pooling:
        return (spec.pooling,), True
    return ("mean" if model_type in _BIDIRECTIONAL else "lasttoken",), True


def _sentence_settings(folder: Path, modules: list[tuple[str, str]]) -> dict[str, Any]:
    """Return `sentence_bert_config.json` (or its `sentence_*_config.json` kin), which lies beside the Transformer."""
    place = folder / next((path for kind, path in modules if kind == "Transformer"), "")
    for file in sorted(place.glob("sentence_*_config.json")):
        return read_json(file)
    return {}


def _max_tokens(folder: Path, config: Mapping[str, Any], settings: dict[str, Any], spec: ModelSpec | None) -> int:
    """Return the longest text in tokens: the sentence-transformers setting, else registry, tokenizer and positions."""
    positions = int(config.get("max_position_embeddings") or _UNBOUNDED)
    if config["model_type"] in _OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1
    if settings.get("max_seq_length"):
        return min(int(settings["max_seq_length"]), positions)
    if spec:
        return min(spec.max_tokens, positions)
    tokenizer_file = folder / "tokenizer_config.json"
    tokenizer = read_json(tokenizer_file) if tokenizer_file.is_file() else {}
    # transformers writes 1e30 where a tokenizer has no limit of its own.
    limit = min(int(tokenizer.get("model_max_length") or _UNBOUNDED), positions)
    return limit if limit < _UNBOUNDED else 512


def _dense_layers(
    folder: Path, modules: list[tuple[str, str]], config: Mapping[str, Any]
) -> tuple[DenseLayer, ...]:
    layers = []
    for kind, path in modules:
        if kind == "Dense":
            settings = read_json(folder / path / "config.json")
            layers.append(
                DenseLayer(
                    folder / path,
                    int(settings["in_features"]),
                    int(settings["out_features"]),
                    bool(settings.get("bias", True)),
                    str(settings.get("activation_function", "tanh")).rpartition(".")[2].lower(),
                )
            )
    return tuple(layers)
