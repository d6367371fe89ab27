"""Lists in metadata that Chroma shows in records they were never written to.

Chroma keeps list items in a separate table, by record number, and leaves them there when a collection is deleted (seen
in 1.5.0 to 1.5.9, in a folder and on a server). The next record with that number, in any collection, has the deleted
one's lists in its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from akidb_mlx_chroma.clients import AnyCollection, Wait
from akidb_mlx_chroma.metadata import is_same_metadata


def clear_strays(
    collection: AnyCollection,
    wait: Wait,
    ids: Sequence[str],
    texts: Sequence[str | None],
    metadatas: Sequence[Mapping[str, Any] | None],
) -> None:
    """Remove lists that just-written records have gained unasked.

    Args:
        collection: holds the records.
        wait: of its client.
        ids, texts, metadatas: of the records, as written. One that differs in anything but additional lists has been
            written by another process since, and is left alone.
    """
    written = dict(zip(ids, zip(texts, metadatas, strict=True), strict=True))
    found = wait(collection.get(ids=list(ids), include=["documents", "metadatas"]))
    strays: dict[str, dict[str, None]] = {}
    for id_, text, metadata in zip(found["ids"], found["documents"], found["metadatas"], strict=True):
        given_text, given = written[id_][0], written[id_][1] or {}
        more = [key for key, value in (metadata or {}).items() if isinstance(value, list) and given.get(key) is None]
        kept = {key: value for key, value in (metadata or {}).items() if key not in more}
        if more and text == given_text and is_same_metadata(given, kept):
            strays[id_] = dict.fromkeys(more)
    if strays:
        nulls: Any = list(strays.values())
        wait(collection.update(ids=list(strays), metadatas=nulls))
