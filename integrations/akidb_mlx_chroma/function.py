"""The Chroma embedding function."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from akidb_mlx_plugin.argument_names import named_arguments
from akidb_mlx_plugin.config import Device, EmbeddingConfig, Mode
from akidb_mlx_plugin.display import facts_table
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.hub.registry import check_name
from akidb_mlx_plugin.stores.settings import check_same_settings, check_settings, config_from_stored, stored_settings
from akidb_mlx_plugin.types import Kind, ModelInfo, Overflow, TextPiece
from akidb_mlx_plugin.validation import list_inputs

if TYPE_CHECKING:
    from akidb_mlx_plugin.service import EmbeddingService

# The distance a model was trained for, in Chroma's terms; it has none for "manhattan", and l2 is the nearest.
_SPACES: dict[str, Space] = {"cosine": "cosine", "dot": "ip", "euclidean": "l2", "manhattan": "l2"}

logger = logging.getLogger(__name__)


@register_embedding_function
class MLXEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds a collection's documents and queries with MLX, for Chroma, and for LangChain's vector stores.

        ef = MLXEmbeddingFunction(model="minilm-l6-v2")
        collection = client.create_collection("docs", embedding_function=ef)

    Making one is free, and Chroma makes several with every write: the model is loaded with the first text, once for
    the whole process. Reopening the collection rebuilds the function from what the collection stores; for that, the
    package must be imported, and a model outside the registry must be on the machine already or named in
    `AKIDB_ALLOWED_MODELS`.
    """

    @named_arguments
    def __init__(
        self,
        model: str | Path | None = None,
        dimension: int | None = None,
        normalize: bool | None = None,
        *,
        mode: Mode | None = None,
        pooling: str | Sequence[str] | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        query_task: str | None = None,
        document_task: str | None = None,
        overflow: Overflow | None = None,
        device: Device | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Choose a model; None stands for the environment's value, else the default.

        Args:
            model: a short name (`akidb-mlx models list`), a Hugging Face repository "org/repo", or a folder.
            dimension: length of the vectors, by matryoshka truncation where the model was trained for it.
            normalize: scale vectors to unit length, or leave them unchanged. Defaults to the checkpoint's.
            mode: "mlx"; "user_provided" for collections whose vectors are always given; "mock" for tests.
            pooling: how token vectors become one, instead of what the checkpoint says: "cls", "max", "mean",
                "mean_sqrt_len_tokens", "weightedmean" or "lasttoken"; several as a list or "cls+mean".
            query_prompt: text put before each query instead of the model's.
            document_prompt: text put before each document instead of the model's.
            query_task, document_task: name of another of the model's prompts (`akidb-mlx models info NAME`), such as
                "clustering".
            overflow: "truncate" cuts texts that are longer than the model takes, and counts them; "error" refuses them
                before anything is embedded; not stored.
            device: "auto", "gpu" or "cpu"; not stored.
            cache_dir: where models are kept; not stored.
        Raises:
            ModelNotFoundError: a misspelled name, which a plain collection would store permanently.
            InvalidInputError: an unusable value, or a name that is not one of these.
        """
        config = EmbeddingConfig.from_arguments(
            model,
            mode=mode,
            dimension=dimension,
            normalize=normalize,
            pooling=pooling,
            overflow=overflow,
            device=device,
            cache_dir=cache_dir,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            query_task=query_task,
            document_task=document_task,
        )
        if config.mode == "mlx" and isinstance(model, str):
            check_name(model)
        self._use(config, trusted=True)

    @classmethod
    def from_config(cls, config: str | Path | EmbeddingConfig) -> MLXEmbeddingFunction:
        """Make a function from a YAML file and the environment, or from a configuration.

        Raises:
            InvalidInputError: as `EmbeddingConfig.load`.
        """
        effective = config if isinstance(config, EmbeddingConfig) else EmbeddingConfig.load(config)
        return cls._from_embedding_config(effective, trusted=True)

    @classmethod
    def _from_embedding_config(cls, config: EmbeddingConfig, *, trusted: bool) -> MLXEmbeddingFunction:
        function = cls.__new__(cls)
        function._use(config, trusted=trusted)
        return function

    def _use(self, config: EmbeddingConfig, *, trusted: bool) -> None:
        self._config = config
        self._trusted = trusted
        self._space_is_guessed = False

    @property
    def service(self) -> EmbeddingService:
        """The process-wide service behind this function."""
        # Imported with the first text: opening a database takes half as long without it.
        from akidb_mlx_plugin.service import shared_service

        return shared_service(self._config, trusted=self._trusted)

    def __call__(self, input: Documents) -> Embeddings:
        """Embed documents: a list of (D,) float32 vectors, in order."""
        return self._embed(input, "document")

    @overload
    def embed_query(self, input: str) -> list[float]: ...

    @overload
    def embed_query(self, input: Documents) -> Embeddings: ...

    def embed_query(self, input: str | Documents) -> list[float] | Embeddings:
        """Embed queries, with the model's query prompt before each.

        Args:
            input: a list, as Chroma calls it, or one query, as LangChain does.
        Returns:
            (D,) float32 vectors in order; for one query, its vector as a list.
        """
        if isinstance(input, str):
            return cast("list[float]", self.service.encode_query(input).tolist())
        return self._embed(input, "query")

    def split(self, text: str, max_tokens: int | None = None, overlap: int = 0) -> list[TextPiece]:
        """Split a text into pieces that the model takes whole; arguments and errors as for `EmbeddingService.split`."""
        return self.service.split(text, max_tokens, overlap)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed one query without blocking the event loop, for LangChain."""
        return cast("list[float]", (await self.service.aencode_query([text]))[0].tolist())

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed documents, for LangChain; no documents are an empty list."""
        return cast("list[list[float]]", self.service.encode_document(list_inputs(texts)).tolist())

    async def aembed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed documents without blocking the event loop, for LangChain."""
        return cast("list[list[float]]", (await self.service.aencode_document(list_inputs(texts))).tolist())

    def model_info(self) -> ModelInfo:
        """Describe the model and its vectors; downloads the model if needed, loads nothing."""
        return self.service.model_info()

    @staticmethod
    def name() -> str:
        """Return the name that collections store this function under."""
        return "akidb_mlx"

    def default_space(self) -> Space:
        """Return the distance the model was trained for: nearly always "cosine", or "ip" for dot products.

        Vectors of unit length are compared by cosine. For a model neither in the registry nor on this machine, the
        distance is unknown before its download, which this does not start: it returns "cosine", and the first text
        embedded logs a warning if that was wrong. Chroma stores the answer permanently when it makes the collection.
        This package's `create_collection` downloads first.
        """
        similarity = self._find_similarity()
        self._space_is_guessed = similarity is None
        return _SPACES[similarity or "cosine"]

    def supported_spaces(self) -> list[Space]:
        """Return the distances that suit these vectors."""
        return ["cosine", "l2", "ip"]

    def is_legacy(self) -> bool:
        """Return False: the function can be rebuilt from its configuration."""
        return False

    def get_config(self) -> dict[str, Any]:
        """Return what a collection stores: model, mode, dimension, normalize, pooling and prompts, all spelled out."""
        return stored_settings(self._config)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> MLXEmbeddingFunction:
        """Rebuild the function from what a collection stores.

        Raises:
            InvalidInputError: settings that this version does not know or cannot use.
        """
        return MLXEmbeddingFunction._from_embedding_config(config_from_stored(config), trusted=False)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise InvalidInputError for settings or a pooling that this version does not know."""
        check_settings(config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Raise InvalidInputError for a change that would mix two vector spaces in one collection."""
        try:
            check_same_settings(old_config, new_config)
        except InvalidInputError as error:
            from akidb_mlx_plugin.stores.compatibility import has_same_normalization

            if has_same_normalization(old_config, new_config):
                return
            # Chroma asks after it has written, and does not roll back.
            raise InvalidInputError(
                f"{error}. Chroma has already stored the new settings: restore the old ones by calling modify on this "
                f"collection again, with a function that has the settings {old_config}"
            ) from error

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items() if v is not None)
        return f"MLXEmbeddingFunction({settings})"

    def _repr_html_(self) -> str:
        """Show in a notebook what a collection stores about it."""
        distance = _SPACES[self._find_similarity() or "cosine"]
        return facts_table("MLXEmbeddingFunction", {**self.get_config(), "distance": distance})

    def _embed(self, texts: Documents, kind: Kind) -> Embeddings:
        vectors = self.service.embed_batch(texts, kind=kind).embeddings
        if self._space_is_guessed:
            self._check_space()
        return cast(Embeddings, list(vectors))

    def _find_similarity(self) -> str | None:
        """Return the vectors' similarity, or None if finding out takes a download."""
        if self._config.mode != "mlx":
            return "cosine"
        from akidb_mlx_plugin.checkpoints.lookup import find_similarity

        mlx = self._config.mlx
        return find_similarity(mlx.model, cache_dir=mlx.cache_dir, normalize=mlx.normalize, pooling=mlx.pooling)

    def _check_space(self) -> None:
        """Warn, now that the model is here, if its default space is not "cosine"."""
        self._space_is_guessed = False
        space = _SPACES[self.model_info().compared_by]
        if space != "cosine":
            logger.warning(
                "%s was not available locally when Chroma asked for a collection's distance, so it got 'cosine', "
                "but the model's vectors should be compared by %r. If that collection is new, delete it and create it "
                "again, or give configuration={'hnsw': {'space': %r}}",
                self._config.mlx.model,
                space,
                space,
            )
