"""Requests embedded together: which texts come next, where each vector belongs, and what it all cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import numpy as np

from akidb_mlx_plugin.inference.normalize import truncate_and_normalize
from akidb_mlx_plugin.types import BatchEmbeddingResponse, ResolvedRequest, Usage, Vector

# A text: the index of its request, and its own within it.
Place = tuple[int, int]


class EmbeddingJob:
    """Several requests on their way through a model, as if they were one."""

    def __init__(self, requests: Sequence[ResolvedRequest]) -> None:
        """Make room for their vectors.

        Args:
            requests: at least one text each.
        """
        self._requests = requests
        self._vectors = [np.empty((len(r.inputs), r.dimension), dtype=np.float32) for r in requests]
        self._tokens = [0] * len(requests)
        self._truncated = [0] * len(requests)

    @property
    def texts(self) -> int:
        """Number of texts."""
        return sum(len(request.inputs) for request in self._requests)

    def request(self, r: int) -> ResolvedRequest:
        """Return a request by its index."""
        return self._requests[r]

    def chunks(self, size: int) -> Iterator[list[Place]]:
        """Yield the places of up to `size` texts at a time, request by request."""
        places = ((r, i) for r, request in enumerate(self._requests) for i in range(len(request.inputs)))
        while chunk := list(islice(places, size)):
            yield chunk

    def texts_of(self, chunk: Sequence[Place]) -> Iterator[tuple[int, int, list[str]]]:
        """Yield the index of each request in a chunk, that of its first text, and its texts with the prompt prepended.

        Texts of a request are next to each other, in order.
        """
        for r, places in groupby(chunk, key=lambda place: place[0]):
            request = self._requests[r]
            indexes = [i for _, i in places]
            yield r, indexes[0], [request.prompt + request.inputs[i] for i in indexes]

    def count(self, r: int, *, tokens: int, truncated: int) -> None:
        """Add to a request's usage."""
        self._tokens[r] += tokens
        self._truncated[r] += truncated

    def fill(self, places: Sequence[Place], vectors: Vector) -> None:
        """Truncate and normalize vectors as their requests ask, and store them in place.

        Args:
            places: of N texts.
            vectors: (N, D) float32.
        """
        owners = np.array(places)
        for r in set(owners[:, 0].tolist()):
            request, mine = self._requests[r], owners[:, 0] == r
            made = truncate_and_normalize(vectors[mine], request.dimension, normalize=request.normalize)
            self._vectors[r][owners[mine, 1]] = made

    def responses(self, model: str, duration_ms: float) -> list[BatchEmbeddingResponse]:
        """Return one response per request, in order, once every vector is filled in."""
        return [
            BatchEmbeddingResponse(vectors, model, Usage(self._tokens[r], duration_ms, self._truncated[r]))
            for r, vectors in enumerate(self._vectors)
        ]
