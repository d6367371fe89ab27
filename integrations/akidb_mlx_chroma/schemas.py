"""Chroma's schemas, with this package's function in them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from chromadb.api.types import DefaultEmbeddingFunction, Schema, Space, VectorIndexConfig

from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_plugin.errors import InvalidInputError

# The schema's key for the collection's own vectors.
_VECTORS = "#embedding"


def schema_with(schema: Schema, function: MLXEmbeddingFunction) -> Schema:
    """Return a copy of a schema that embeds with a function; its distance is kept, else the function's is used.

    Raises:
        InvalidInputError: it has another embedding function already.
    """
    own = _vector_index(schema)
    given = own.embedding_function
    if isinstance(given, MLXEmbeddingFunction):
        is_same = given.get_config() == function.get_config()
    else:
        # Chroma puts its default into every schema without a named function.
        is_same = given is None or isinstance(given, DefaultEmbeddingFunction)
    if not is_same:
        raise InvalidInputError(
            f"the schema embeds with {given!r}, and embedding_function is {function!r}; leave out the one in the schema"
        )
    return _replace_vectors(schema, function, own.space)


def schema_for_new_vectors(schema: Schema, function: MLXEmbeddingFunction) -> Schema:
    """Return a copy of a collection's schema for other vectors, with the function's distance."""
    return _replace_vectors(schema, function, None)


def _replace_vectors(schema: Schema, function: MLXEmbeddingFunction, space: Space | None) -> Schema:
    own = _vector_index(schema)
    # Functions are not copied with it: they may hold a model.
    shared: dict[int, Any] = {id(held): held for held in _functions(schema)}
    made = deepcopy(schema, shared)
    return made.create_index(
        config=VectorIndexConfig(
            space=space or function.default_space(), embedding_function=function, hnsw=own.hnsw, spann=own.spann
        )
    )


def _vector_index(schema: Schema) -> VectorIndexConfig:
    values = schema.keys[_VECTORS].float_list if _VECTORS in schema.keys else None
    values = values or schema.defaults.float_list
    if values is None or values.vector_index is None:
        return VectorIndexConfig(embedding_function=None)
    return values.vector_index.config


def _functions(schema: Schema) -> list[object]:
    kinds = [values for values in (schema.defaults, *schema.keys.values()) if values is not None]
    indexes = [
        *(values.float_list.vector_index for values in kinds if values.float_list),
        *(values.sparse_vector.sparse_vector_index for values in kinds if values.sparse_vector),
    ]
    return [index.config.embedding_function for index in indexes if index and index.config.embedding_function]
