"""A checkpoint's description: architecture, pooling, dense layers, prompts, lengths, and the vectors it produces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.families import Family
from akidb_mlx_plugin.checkpoints.fingerprint import fingerprint
from akidb_mlx_plugin.checkpoints.head import DenseLayer
from akidb_mlx_plugin.checkpoints.prompts import find_prompt
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.hub.files import digest_of_folder
from akidb_mlx_plugin.hub.registry import ModelSpec
from akidb_mlx_plugin.types import ModelInfo, Similarity

# How `origins["pooling"]` begins where no file specified it.
CONVENTION = "convention"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read but not loaded.

    Attributes:
        name: the name that the caller asked for.
        root: the checkpoint folder.
        folder: folder of the encoder's configuration, weights and tokenizer; the root or a subfolder.
        spec: its registry entry, if any.
        family: the known family it belongs to, if any.
        config: `config.json`.
        model_type: its architecture.
        max_tokens: longest text in tokens.
        pooling: one or more modes, concatenated.
        pool_prompt: whether the tokens of a prompt are pooled too.
        dense: layers after pooling.
        normalize: whether vectors are scaled to unit length.
        similarity: function that compares its vectors.
        prompts: by kind or task name.
        truncate_dim: default length of the vectors, if it is not the native one.
        lowercase: fold case before tokenizing.
        repo: repository id or folder it came from.
        revision: commit, or digest of the weights.
        known_digest: digest of the weights, if it was recorded before.
        origins: where "family", "pooling" and "prompts" come from, in words; "" for none.
    """

    name: str
    root: Path
    folder: Path
    spec: ModelSpec | None
    family: Family | None
    config: Mapping[str, Any]
    model_type: str
    max_tokens: int
    pooling: tuple[str, ...]
    pool_prompt: bool = True
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = True
    similarity: Similarity = "cosine"
    prompts: Mapping[str, str] = field(default_factory=dict)
    truncate_dim: int | None = None
    lowercase: bool = False
    repo: str = ""
    revision: str = ""
    known_digest: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def pooling_is_convention(self) -> bool:
        """Whether no file specifies the pooling, so that the architecture's usual one is used."""
        return self.origins.get("pooling", "").startswith(CONVENTION)

    @property
    def native_dimension(self) -> int:
        """Length of the vectors before any Matryoshka truncation."""
        if self.dense:
            return self.dense[-1].out_features
        return int(self.config["hidden_size"]) * len(self.pooling)

    @property
    def widest_layer(self) -> int:
        """Numbers per token in the widest layer, which decide how much memory a batch takes."""
        inner = self.config.get("intermediate_size")
        return inner if isinstance(inner, int) else 4 * self.native_dimension

    @property
    def default_dimension(self) -> int:
        """Length of the vectors if the caller requests none."""
        if self.spec and len(self.pooling) == 1:
            return self.spec.dimension
        return self.truncate_dim or self.native_dimension

    @property
    def end_token(self) -> str | None:
        """Token that must end every text whatever the tokenizer's template says; None to follow the template."""
        return self.family.end_token if self.family else None

    @cached_property
    def weights_digest(self) -> str:
        """Identity of the weights: 16 hex digits, equal for equal weights from any source."""
        return self.known_digest or digest_of_folder(self.root)

    def prompt_for(self, kind: str) -> str:
        """Return the prompt of a "document", a "query" or a named task.

        Raises:
            InvalidInputError: no such task.
        """
        prompt = find_prompt(self.prompts, kind)
        if prompt is None:
            raise InvalidInputError(f"{self.name} has no prompt {kind!r}; it has {', '.join(self.prompts) or 'none'}")
        return prompt

    def check_dimension(self, dimension: int | None) -> int:
        """Return the length of the vectors for a requested dimension.

        Args:
            dimension: None for the default.
        Raises:
            InvalidInputError: the model's vectors cannot be truncated to it.
        """
        if dimension is None:
            return self.default_dimension
        if isinstance(dimension, bool) or not isinstance(dimension, int):
            raise InvalidInputError(f"dimension must be an integer, got {dimension!r}")
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
        """Lengths that its vectors may have."""
        # Only vectors of a single pooling mode were trained for truncation, which would drop the last of several.
        known = self.family.dimensions_within(self.native_dimension) if self.family else ()
        if known and len(self.pooling) == 1:
            return known
        trained = self.config.get("matryoshka_dimensions")
        named = [d for d in trained if isinstance(d, int) and d > 0] if isinstance(trained, list) else []
        lengths = {*named, self.default_dimension, self.native_dimension}
        return tuple(sorted(length for length in lengths if length <= self.native_dimension))

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
            dimension: length after Matryoshka truncation; None for the default.
            normalize: None for the checkpoint's setting.
            prompts: the caller's prompts for "document" and "query", overriding the checkpoint's.
            tasks: names of other prompts of the checkpoint to use for "document" and "query".
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
            fingerprint=fingerprint(
                weights_digest=self.weights_digest,
                max_tokens=self.max_tokens,
                pooling=self.pooling,
                pool_prompt=self.pool_prompt,
                prompts=effective,
                dimension=length,
                normalize=unit,
            ),
        )
