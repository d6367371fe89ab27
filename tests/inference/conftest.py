"""A loaded model that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from host_helpers import TINY

from akidb_mlx_plugin.inference.embedder import Embedder


@pytest.fixture(scope="module")
def tiny() -> Iterator[Embedder]:
    """A tiny BERT."""
    with Embedder.load(TINY) as embedder:
        yield embedder
