"""The LanceDB registry function."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from lancedb.embeddings import TextEmbeddingFunction
from lancedb.embeddings.registry import register
from lancedb.pydantic import FixedSizeListMixin
from pydantic import GetCoreSchemaHandler, PrivateAttr, model_validator

from akidb_mlx_lancedb.trust import is_reading_table
from akidb_mlx_plugin.argument_names import explain_unknown
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import DimensionMismatchError, InvalidInputError
from akidb_mlx_plugin.hub.registry import check_name
from akidb_mlx_plugin.stores.settings import config_from_stored, stored_settings
from akidb_mlx_plugin.types import Kind, ModelInfo, TextPiece, Vector
from akidb_mlx_plugin.validation import list_inputs

if TYPE_CHECKING:
    from akidb_mlx_plugin.service import EmbeddingService

# The metric a model was trained for, in LanceDB's terms; it has none for "manhattan", and l2 is the nearest.
_DISTANCE_TYPES: dict[str, Literal["cosine", "l2", "dot"]] = {
    "cosine": "cosine",
    "dot": "dot",
    "euclidean": "l2",
    "manhattan": "l2",
}

logger = logging.getLogger(__name__)
# Settings of a machine, which a table does not store.
_MACHINE = ("device", "cache_dir", "overflow")


@register("akidb-mlx")  # type: ignore[no-untyped-call]
class MLXEmbeddings(TextEmbeddingFunction):
    """Embeds a table's source column and its text queries with MLX.

        function = get_registry().get("akidb-mlx").create(name="minilm-l6-v2")

        class Note(LanceModel):
            text: str = function.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()

    Make it with `create`, which spells out every setting, so that a table keeps its vector space whatever a later
    version's defaults are. Making one is free: the model is loaded with the first text, once for the whole process.

    LanceDB compares by l2 unless a search or an index says otherwise; a table stores no metric. For vectors of unit
    length that gives the same order as cosine. For others, if `model_info().normalize` is False, name the metric:
    `table.search("…").distance_type(function.distance_type())`, and likewise for an index.

    Attributes:
        name: the model: a short name (`akidb-mlx models list`), "org/repo", or a folder.
        mode: "mlx"; "user_provided" for tables whose vectors are always given; "mock" for tests.
        dimension: length of the vectors. Defaults to the model's.
        normalize: scale vectors to unit length, or leave them unchanged. Defaults to the checkpoint's.
        pooling: how token vectors become one, such as "mean" or "cls+mean". Defaults to the checkpoint's. `create`
            also takes a list.
        query_prompt, document_prompt: text put before each text instead of the model's.
        query_task, document_task: name of another of the model's prompts, such as "clustering".
        max_retries: LanceDB's field, without effect: errors are raised unchanged, at once.
    """

    name: str | None = None
    mode: str = "mlx"
    dimension: int | None = None
    normalize: bool | None = None
    pooling: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    query_task: str | None = None
    document_task: str | None = None
    max_retries: int = 0
    _trusted: bool = PrivateAttr(default=True)
    _config: EmbeddingConfig | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, fields: Any) -> Any:
        """Refuse what LanceDB's base class would ignore, where a function is made without `create`."""
        if isinstance(fields, Mapping):
            _check_names(fields, cls.model_fields)
        return fields

    @classmethod
    def create(cls, **settings: Any) -> MLXEmbeddings:
        """Make a function; takes the attributes above, and settings of this machine, which are not stored.

        Args:
            settings: the attributes; also `device`, "auto", "gpu" or "cpu", `cache_dir`, where models are kept, and
                `overflow`: "truncate" cuts texts that are longer than the model takes, "error" refuses them. A function
                that LanceDB makes from a table takes these three from the environment.
        Raises:
            InvalidInputError: an unknown argument, or an unusable value.
            ModelNotFoundError: a misspelled name, which a table would store permanently.
        """
        if is_reading_table():
            return cls.from_stored(settings)
        machine = {key: settings.pop(key) for key in _MACHINE if key in settings}
        _check_names(settings, cls.model_fields)
        function = cls._make(settings, trusted=True, machine=machine)
        if function.mode == "mlx" and isinstance(settings.get("name"), str):
            check_name(settings["name"])
        return function

    @classmethod
    def from_config(cls, config: str | Path | EmbeddingConfig) -> MLXEmbeddings:
        """Make a function from a YAML file and the environment, or from a configuration.

        Raises:
            InvalidInputError: as `EmbeddingConfig.load`.
        """
        effective = config if isinstance(config, EmbeddingConfig) else EmbeddingConfig.load(config)
        return cls._from_embedding_config(effective, trusted=True)

    @classmethod
    def from_stored(cls, fields: Mapping[str, Any]) -> MLXEmbeddings:
        """Make a table's stored function, which is not trusted to download a model outside the registry.

        Raises:
            InvalidInputError: fields that this version does not know or cannot use.
        """
        return cls._make(dict(fields), trusted=False)

    @classmethod
    def _make(
        cls, settings: dict[str, Any], *, trusted: bool, machine: Mapping[str, Any] | None = None
    ) -> MLXEmbeddings:
        if "model" in settings:
            raise InvalidInputError(f"the model's field is name, got model={settings['model']!r}")
        config = config_from_stored(settings_from_fields(settings), machine, stored=not trusted)
        return cls._from_embedding_config(config, trusted=trusted)

    @classmethod
    def _from_embedding_config(cls, config: EmbeddingConfig, *, trusted: bool) -> MLXEmbeddings:
        """Make a function with every field given, because LanceDB stores only what `create` was given."""
        fields = fields_from_settings(stored_settings(config))
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
        # Imported with the first text: opening a database takes half as long without it.
        from akidb_mlx_plugin.service import shared_service

        if self._config is None:
            self._config = config_from_stored(settings_from_fields(self.model_dump()))
        return shared_service(self._config, trusted=self._trusted)

    def split(self, text: str, max_tokens: int | None = None, overlap: int = 0) -> list[TextPiece]:
        """Split a text into pieces that the model takes whole; arguments and errors as for `EmbeddingService.split`."""
        return self.service.split(text, max_tokens, overlap)

    def model_info(self) -> ModelInfo:
        """Describe the model and its vectors; downloads the model if needed, loads nothing."""
        return self.service.model_info()

    def distance_type(self) -> Literal["cosine", "l2", "dot"]:
        """Return the metric for searches and indexes: "cosine" for vectors of unit length, else the model's own."""
        return _DISTANCE_TYPES[self.model_info().compared_by]

    def ndims(self) -> int:
        """Return the length of the vectors.

        Raises:
            InvalidInputError: mode "user_provided" without a dimension.
        """
        if self.dimension is not None:
            return self.dimension
        info = self.model_info()
        if not info.dimension:
            raise InvalidInputError("mode 'user_provided' needs dimension=, the length of your vectors")
        if not info.normalize:
            _warn_of_metric(info.model, _DISTANCE_TYPES[info.compared_by])
        return info.dimension

    def safe_model_dump(self) -> dict[str, Any]:
        """Return what a table stores: every field, even if the function was not made with `create`."""
        return fields_from_settings(stored_settings(self.service.config))

    def VectorField(self, **options: Any) -> Any:  # noqa: N802 - LanceDB's name
        """Return the vector column's field; a column of another width is rejected when the model class is built.

        Args:
            options: of pydantic's `Field`.
        """
        field = super().VectorField(**options)  # type: ignore[no-untyped-call]
        field.metadata.append(_WidthCheck(self.dimension))
        return field

    def generate_embeddings(self, texts: Iterable[str | None], *_: Any, **__: Any) -> list[Vector | None]:
        """Embed documents.

        Args:
            texts: a row without text (null) gets no vector (None).
        Returns:
            (D,) float32 vectors in order.
        """
        return self._embed(list_inputs(texts), "document")

    def compute_query_embeddings(self, query: Any) -> list[Vector | None]:
        """Embed one or more queries, with the model's query prompt before each."""
        return self._embed(list_inputs(self.sanitize_input(query)), "query")

    def compute_source_embeddings(self, texts: Any) -> list[Vector | None]:
        """Embed a column, an array or a list of texts."""
        return self.generate_embeddings(self.sanitize_input(texts))

    def compute_source_embeddings_with_retry(self, texts: Any) -> list[Any]:
        """Embed for a LanceDB column, without its retries: no failure here is transient.

        Returns:
            Lists of floats: Arrow accepts float32 arrays only in columns of the same width.
        """
        return [None if vector is None else vector.tolist() for vector in self.compute_source_embeddings(texts)]

    def compute_query_embeddings_with_retry(self, query: Any) -> list[Vector | None]:
        """Embed without LanceDB's retries: no failure here is transient, and errors keep their type."""
        return self.compute_query_embeddings(query)

    def _embed(self, texts: Sequence[str | None], kind: Kind) -> list[Vector | None]:
        present = [text for text in texts if text is not None]
        if not present:
            return [None] * len(texts)
        vectors = iter(np.asarray(self.service.embed_batch(present, kind=kind).embeddings))
        return [None if text is None else next(vectors) for text in texts]


def _check_names(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise InvalidInputError for an argument that does not exist."""
    for key in settings:
        if key not in known:
            # The field is LanceDB's; everywhere else in this package it is `model`.
            raise InvalidInputError(explain_unknown(key, [*known, *_MACHINE], {"model": "name"}))


@dataclass(frozen=True)
class _WidthCheck:
    """An annotation that compares two dimensions when pydantic asks it for a schema while building the class.

    Attributes:
        dimension: of the function; None if only its model determines it, which is not checked here.
    """

    dimension: int | None

    def __get_pydantic_core_schema__(self, annotation: Any, handler: GetCoreSchemaHandler) -> Any:
        for part in (annotation, *get_args(annotation)):
            width = part.dim() if isinstance(part, type) and issubclass(part, FixedSizeListMixin) else 0
            if width and self.dimension and width != self.dimension:
                raise DimensionMismatchError(
                    f"the column is a Vector({width}), and its function makes vectors of {self.dimension} dimensions; "
                    "write Vector(function.ndims()), or list[float] and let LanceDB ask the function",
                    expected=width,
                    actual=self.dimension,
                )
        return handler(annotation)


@lru_cache(maxsize=256)
def _warn_of_metric(model: str, metric: str) -> None:
    """Warn once per model that LanceDB's default metric is not the model's."""
    if metric != "l2":
        logger.warning(
            "the vectors of %s are not of unit length and should be compared by %s, but LanceDB's default is l2: "
            "search with table.search(...).distance_type(%r), create indexes with that metric, or give normalize=True",
            model,
            metric,
            metric,
        )


def settings_from_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings for a function's fields, which have another key for the model's name."""
    settings = {key: value for key, value in fields.items() if key != "max_retries"}
    if "name" in settings:
        name = settings.pop("name")
        settings["model"] = None if name is None else str(name)
    return settings


def fields_from_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function's fields for stored settings."""
    return {("name" if key == "model" else key): value for key, value in settings.items()}
