"""A change of model: embed every document of one collection into another, with another function."""

from __future__ import annotations

import re

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, UpsertError
from akidb_mlx_plugin.stores.base import Source, Store
from akidb_mlx_plugin.stores.documents import ChunkSize, split_documents
from akidb_mlx_plugin.stores.upsert import Upsert
from akidb_mlx_plugin.types import ModelInfo, UpsertResponse

# Key in the new collection's metadata for its source, so that a second run continues only that.
SOURCE_KEY = "akidb_mlx:source"
_PAGE = 1000
# In the model's name: Chroma rejects two dots in a row, and LanceDB's names are folder names.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+|\.{2,}")
_LONGEST_SUFFIX = 80


def default_name(source_name: str, info: ModelInfo) -> str:
    """Return a name for the new collection: the old one's and the model's, in characters both databases allow."""
    model = info.model.rstrip("/").rpartition("/")[2]
    plain = _NOT_IN_NAMES.sub("-", model)[:_LONGEST_SUFFIX].strip("._-")
    return f"{source_name}-{plain or 'reembedded'}"


def reembed_documents(
    source: Source, store: Store, *, show_progress: bool = False, batch_size: int | None = None
) -> UpsertResponse:
    """Embed every document of one collection into another, keeping what an earlier run has done.

    Args:
        source: only read.
        store: new, or filled by an earlier run from the same source.
        show_progress: draw a bar.
        batch_size: documents embedded and written together.
    Raises:
        InvalidInputError: a document of the source has no text, or two have the same id; nothing was embedded.
        UpsertError: it ended midway, or documents are missing at the end; running it again continues.
        EmbeddingError: the store has documents that the source does not have.
    """
    source.check_ids()
    textless = source.find_without_text()
    if textless is not None:
        raise InvalidInputError(
            f"document {textless!r} of {source.label} has a vector and no text, and another model cannot embed it; "
            "give such documents a text, or remove them"
        )
    upsert = Upsert(
        store,
        source.read_all(),
        show_progress=show_progress,
        batch_size=batch_size,
        skip_unchanged=True,
        total=source.count(),
    )
    response = upsert.run()
    _check_complete(source, store)
    return response


def check_source(label: str, mark: object, expected: str) -> None:
    """Raise if a collection was not made for this re-embedding.

    Args:
        label: the new collection.
        mark: its metadata's value under `SOURCE_KEY`.
        expected: the required value.
    Raises:
        InvalidInputError: it exists, and is not a re-embedding of the source.
    """
    if (mark.decode("utf-8", "replace") if isinstance(mark, bytes) else mark) != expected:
        raise InvalidInputError(
            f"{label} exists and is not a re-embedding of this source; give the new one another name"
        )


def _check_complete(source: Source, store: Store) -> None:
    """Read both again and check that they hold the same documents, texts and metadata."""
    missing: list[str] = []
    count = 0
    for page in split_documents(source.read_all(), ChunkSize(_PAGE)):
        stored = store.read([document.id for document in page])
        for document in page:
            found = stored.get(document.id)
            if (
                found is None
                or found.vector is None
                or found.text != document.text
                or not store.has_metadata(found, document)
            ):
                missing.append(document.id)
        count += len(page)
    if missing:
        raise UpsertError(
            f"{len(missing)} of {count} documents of {source.label} are missing from {store.label} or differ there, "
            f"for example {missing[0]!r}; run the re-embedding again",
            written=[],
            not_written=missing,
            written_count=count - len(missing),
        )
    if (held := store.count()) != count:
        raise EmbeddingError(
            f"{store.label} has {held} documents and {source.label} {count}: some were deleted from the source, or "
            "written into the new one; delete the new one and run the re-embedding again"
        )
