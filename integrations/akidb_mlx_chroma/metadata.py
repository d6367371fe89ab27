"""Metadata as Chroma keeps it, and what it would refuse, lose or change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chromadb.api.types import SparseVector, validate_metadata

from akidb_mlx_plugin.collections import plain_value
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.inputs import check_unicode
from akidb_mlx_plugin.types import Document

# Chroma's own keys: its server refuses the first two kinds, and shows nobody the third again.
_RESERVED = ("#", "$", "chroma:")
_INT64 = range(-(2**63), 2**63)


def plain_metadata(document: Document) -> dict[str, Any] | None:
    """Return a document's metadata as Chroma takes it; None: it has none."""
    if not document.metadata:
        return None
    return {key: plain_value(value) for key, value in document.metadata.items()}


def check_metadata(document: Document) -> None:
    """Hold a document's metadata against what Chroma keeps as it is given.

    Chroma stores a NaN as nothing and an integer beyond 64 bits as a float; a NaN in a list makes a collection on disk
    unusable.

    Raises:
        InvalidInputError: a key or a value that Chroma would refuse, lose or change.
    """
    metadata = plain_metadata(document)
    if metadata is None:
        return
    try:
        _check_keys(metadata)
        validate_metadata(metadata)
        for key, value in metadata.items():
            _check_value(key, value)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"the metadata of document {document.id!r} cannot be stored: {error}") from error


def check_key(key: str) -> None:
    """Raise InvalidInputError for a key of metadata that Chroma would refuse, or take for one of its own."""
    if not key or key.startswith(_RESERVED):
        raise InvalidInputError(
            f"Chroma takes no key that is empty or begins with '#', '$' or 'chroma:', got {key!r}; rename it"
        )


def _check_keys(metadata: Mapping[str, Any]) -> None:
    for key in metadata:
        check_key(key)
        _check_value(key, key)


def _check_value(key: str, value: Any) -> None:
    if isinstance(value, SparseVector):
        value = value.values
    if isinstance(value, list):
        for item in value:
            _check_value(key, item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key!r} has the value {value}, and Chroma keeps finite numbers only; leave it out")
    elif isinstance(value, int) and value not in _INT64:
        raise ValueError(f"{key!r} has the value {value}, which is beyond 64 bits; give it as a string")
    elif isinstance(value, str):
        check_unicode(value, repr(key))
