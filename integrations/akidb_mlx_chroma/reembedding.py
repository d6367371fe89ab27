"""A change of model for a Chroma collection."""

from __future__ import annotations

from typing import Any, cast

from chromadb.api.collection_configuration import CreateCollectionConfiguration
from chromadb.api.models.Collection import Collection
from chromadb.api.types import EmbeddingFunction

from akidb_mlx_chroma.collections import bind_function
from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_chroma.target import ChromaSource, ChromaTarget
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.reembedding import SOURCE_KEY, check_source, default_name, reembed_documents
from akidb_mlx_plugin.spaces import make_stamp, without_stamp
from akidb_mlx_plugin.types import ModelInfo, UpsertResponse

# How the index is built goes over to the new collection; the distance does not, it belongs to the vectors.
_TUNING = ("ef_construction", "ef_search", "max_neighbors", "resize_factor", "sync_threshold")


def reembed(
    source: Collection,
    embedding_function: MLXEmbeddingFunction,
    *,
    name: str | None = None,
    show_progress: bool = False,
    batch_size: int | None = None,
) -> Collection:
    """Embed a collection's documents again, with another function, into a new collection beside it.

    The new one has the same ids, texts, metadata and index tuning; the old one is only read. A run that was cut off is
    continued by the same call, and what is done already is not embedded again. At the end both are compared.

    Args:
        source: the collection as it is, whatever function it has.
        embedding_function: makes the new vectors.
        name: of the new collection; None: the old name and the model's.
        show_progress: draw a bar with rate and time left.
        batch_size: documents embedded and written together.
    Returns:
        The new collection.
    Raises:
        InvalidInputError: a document has no text, or the new name is that of another collection; nothing was embedded.
        DimensionMismatchError: the new name is that of an earlier run with another function.
        UpsertError: it ended midway; the same call continues.
    """
    return reembed_collection(
        source, embedding_function, name=name, show_progress=show_progress, batch_size=batch_size
    )[0]


def reembed_collection(
    source: Collection,
    embedding_function: MLXEmbeddingFunction,
    *,
    name: str | None = None,
    show_progress: bool = False,
    batch_size: int | None = None,
) -> tuple[Collection, UpsertResponse]:
    """Do what `reembed` does, and return what it took as well."""
    info = embedding_function.model_info()
    new_name = name or default_name(source.name, info)
    if new_name == source.name:
        raise InvalidInputError(f"the new collection needs a name of its own, not {new_name!r} again")
    collection = _create_beside(source, new_name, embedding_function, info)
    check_source(f"collection {new_name!r}", (collection.metadata or {}).get(SOURCE_KEY), str(source.id))
    bind_function(collection, embedding_function)
    response = reembed_documents(
        ChromaSource(source), ChromaTarget(collection), show_progress=show_progress, batch_size=batch_size
    )
    return collection, response


def _create_beside(source: Collection, name: str, function: MLXEmbeddingFunction, info: ModelInfo) -> Collection:
    """Create a collection, or open it, in the database of another one."""
    hnsw = (source.configuration_json or {}).get("hnsw") or {}
    tuning = {key: hnsw[key] for key in _TUNING if key in hnsw}
    host_function = cast(EmbeddingFunction[Any], function)
    configuration: dict[str, Any] = {
        "hnsw": {"space": function.default_space(), **tuning},
        "embedding_function": host_function,
    }
    own = {key: value for key, value in without_stamp(source.metadata or {}).items() if not key.startswith("hnsw:")}
    # A collection knows its server and no client; the server makes the new one without the client's checks.
    model = source._client.get_or_create_collection(
        name=name,
        metadata={**own, **make_stamp(info), SOURCE_KEY: str(source.id)},
        configuration=cast(CreateCollectionConfiguration, configuration),
        tenant=source.tenant,
        database=source.database,
    )
    return Collection(client=source._client, model=model, embedding_function=host_function)
