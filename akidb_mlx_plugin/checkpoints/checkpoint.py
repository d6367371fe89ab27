"""A checkpoint as it is described: architecture, pooling, dense layers, prompts, lengths, and the vectors it makes."""

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

# How `origins["pooling"]` begins where nothing said it.
CONVENTION = "convention"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read but not loaded.

    Attributes:
        name: what the model was asked for by.
        root: where it lies.
        folder: where the encoder's configuration, weights and tokenizer lie; the same, or a folder in it.
        spec: the registry's entry, if it has one.
        family: what model cards say of its kind, if it belongs to a known one.
        config: `config.json`.
        model_type: its architecture.
        max_tokens: longest text in tokens.
        pooling: one or more modes, concatenated.
        pool_prompt: whether the tokens of a prompt are pooled too.
        dense: layers behind the pooling.
        normalize: whether vectors are scaled to unit length.
        similarity: what its vectors are compared by.
        prompts: by kind or task name.
        truncate_dim: length of the vectors where the caller names none, if it is not the native one.
        lowercase: fold case before tokenizing.
        repo: repository id or folder it came from.
        revision: commit, or digest of the weights.
        known_digest: digest of the weights where it was recorded before.
        origins: where "family", "pooling" and "prompts" come from, in words; "" where there is none.
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
        """Whether nothing said how token vectors become one, so that what is usual for the architecture was taken."""
        return self.origins.get("pooling", "").startswith(CONVENTION)

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
        return self.family.end_token if self.family else None

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
        # Only vectors of one pooling were trained to be cut; of several, a cut would drop the last ones.
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
