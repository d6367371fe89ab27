"""The LanceDB registry function."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lancedb.embeddings import TextEmbeddingFunction
from lancedb.embeddings.registry import register
from pydantic import PrivateAttr

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.inputs import list_inputs
from akidb_mlx_plugin.service import EmbeddingService, shared_service
from akidb_mlx_plugin.stored import config_of, settings_of
from akidb_mlx_plugin.types import Kind, ModelInfo, Vector


@register("akidb-mlx")
class MLXEmbeddings(TextEmbeddingFunction):
    """Embeds a table's source column and its text queries with MLX.

        function = get_registry().get("akidb-mlx").create(name="minilm-l6-v2")

        class Note(LanceModel):
            text: str = function.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()

    Make it by `create`, which writes every setting down, so that a table keeps its vector space whatever a later
    version's defaults are. Making one is free: the model is loaded with the first text, once for the whole process.

    Attributes:
        name: the model: a short name (`akidb-mlx models list`), "org/repo", or a folder.
        mode: "mlx"; "user_provided" for tables whose vectors are always given; "mock" for tests.
        dimension: length of the vectors; None: the model's default.
        normalize: scale vectors to unit length.
        query_prompt, document_prompt: text put before each text in place of the model's.
        max_retries: LanceDB's field, without effect: errors arrive as they are, at once.
    """

    name: str | None = None
    mode: str = "mlx"
    dimension: int | None = None
    normalize: bool | None = True
    query_prompt: str | None = None
    document_prompt: str | None = None
    max_retries: int = 0
    _trusted: bool = PrivateAttr(default=True)
    _config: EmbeddingConfig | None = PrivateAttr(default=None)

    @classmethod
    def create(cls, **settings: Any) -> MLXEmbeddings:
        """Make a function; the arguments are the attributes above.

        Raises:
            InvalidInputError: an unknown argument, or a value that cannot be used.
        """
        # LanceDB calls this with what a table stores, and that is data from a stranger: no model outside the registry
        # is downloaded on its word. A caller of one's own may ask for any.
        stored = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "lancedb"
        return cls._make(settings, trusted=not stored)

    @classmethod
    def from_config(cls, path: str | Path) -> MLXEmbeddings:
        """Make a function from a YAML file and the environment; see `EmbeddingConfig.load` for errors."""
        return cls._from_embedding_config(EmbeddingConfig.load(path), trusted=True)

    @classmethod
    def _make(cls, settings: dict[str, Any], *, trusted: bool) -> MLXEmbeddings:
        given = dict(settings)
        given.pop("max_retries", None)
        if "model" in given:
            raise InvalidInputError(f"the model goes in as name=, got model={given['model']!r}")
        if "name" in given:
            given["model"] = str(given.pop("name")) if given["name"] is not None else given.pop("name")
        return cls._from_embedding_config(config_of(given), trusted=trusted)

    @classmethod
    def _from_embedding_config(cls, config: EmbeddingConfig, *, trusted: bool) -> MLXEmbeddings:
        """Make a function with every field given, because LanceDB stores only what `create` was given."""
        fields = {("name" if key == "model" else key): value for key, value in settings_of(config).items()}
        for key, value in fields.items():
            if isinstance(value, str) and value.startswith("$var:"):
                raise InvalidInputError(
                    f"{key}={value!r}: LanceDB's variables differ between sessions, and a table must keep its vector "
                    "space; give the value itself"
                )
        function: MLXEmbeddings = super().create(**fields)  # type: ignore[no-untyped-call]
        function._config, function._trusted = config, trusted
        return function

    @property
    def service(self) -> EmbeddingService:
        """The process-wide service behind this function."""
        if self._config is None:
            fields = self.model_dump(exclude={"max_retries"})
            self._config = config_of({"model": fields.pop("name"), **fields})
        return shared_service(self._config, trusted=self._trusted)

    def model_info(self) -> ModelInfo:
        """Describe the model and the vectors it gives; downloads the model where needed, loads nothing."""
        return self.service.model_info()

    def ndims(self) -> int:
        """Return the length of the vectors.

        Raises:
            InvalidInputError: mode "user_provided" without a dimension.
        """
        if self.dimension is not None:
            return self.dimension
        dimension = self.model_info().dimension
        if not dimension:
            raise InvalidInputError("mode 'user_provided' needs dimension=, the length of the vectors you bring")
        return dimension

    def generate_embeddings(self, texts: Iterable[str | None], *_: Any, **__: Any) -> list[Vector | None]:
        """Embed documents.

        Args:
            texts: a row without a text (null) gets no vector (None).
        Returns:
            (D,) float32 vectors in order.
        """
        return self._embed(list_inputs(texts), "document")

    def compute_query_embeddings(self, query: Any) -> list[Vector | None]:
        """Embed one query or several, with the model's query prompt before each."""
        return self._embed(list_inputs(self.sanitize_input(query)), "query")

    def compute_source_embeddings(self, texts: Any) -> list[Vector | None]:
        """Embed a column, an array or a list of texts."""
        return self.generate_embeddings(self.sanitize_input(texts))

    def compute_source_embeddings_with_retry(self, texts: Any) -> list[Vector | None]:
        """Embed without LanceDB's retries: nothing that fails here passes by waiting, and errors keep their type."""
        return self.compute_source_embeddings(texts)

    def compute_query_embeddings_with_retry(self, query: Any) -> list[Vector | None]:
        """Embed without LanceDB's retries: nothing that fails here passes by waiting, and errors keep their type."""
        return self.compute_query_embeddings(query)

    def _embed(self, texts: list[str | None], kind: Kind) -> list[Vector | None]:
        present = [text for text in texts if text is not None]
        if not present:
            return [None] * len(texts)
        vectors = iter(np.asarray(self.service.embed_batch(present, kind=kind).embeddings))
        return [None if text is None else next(vectors) for text in texts]
