"""Public data types: requests, responses, model descriptions, documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.display import facts_table

Kind = Literal["document", "query"]
# What happens to a text that is longer than the model takes: it is cut, or refused.
Overflow = Literal["truncate", "error"]
# Similarity functions, by sentence-transformers' names.
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class BatchEmbeddingRequest:
    """Texts to embed, with settings.

    Attributes:
        inputs: the texts; vectors are returned in the same order.
        kind: which of the model's prompts to prepend.
        normalize: scale every vector to unit length; defaults to the checkpoint's setting.
        dimension: keep this many leading components (Matryoshka truncation); defaults to the model's dimension.
        prompt: the caller's own prompt, instead of the one that `kind` selects.
        task: name of another of the model's prompts, instead of the one that `kind` selects.
        overflow: cut a text that is longer than the model takes, or refuse the request; defaults to cutting.
        positions: of these texts among the caller's, if they are a part of them; for messages.
    """

    inputs: Sequence[str]
    kind: Kind = "document"
    normalize: bool | None = None
    dimension: int | None = None
    prompt: str | None = None
    task: str | None = None
    overflow: Overflow | None = None
    positions: Sequence[int] | None = None

    def select(self, indexes: Sequence[int]) -> BatchEmbeddingRequest:
        """Return a request for some of the texts, with the same settings."""
        positions = [self.position(index) for index in indexes]
        return replace(self, inputs=[self.inputs[index] for index in indexes], positions=positions)

    def position(self, index: int) -> int:
        """Return where a text was among the caller's."""
        return index if self.positions is None else self.positions[index]


@dataclass(frozen=True)
class PairRequest(BatchEmbeddingRequest):
    """Pairs of texts to score; its response has scores in place of vectors.

    Attributes:
        inputs: the second text of each pair.
        queries: the first text of each pair.
    """

    queries: Sequence[str] = ()

    def select(self, indexes: Sequence[int]) -> PairRequest:
        """Return a request for some of the pairs."""
        queries = [self.queries[index] for index in indexes]
        return replace(self, inputs=[self.inputs[index] for index in indexes], queries=queries)


@dataclass(frozen=True)
class ResolvedRequest(BatchEmbeddingRequest):
    """A request checked against a model and completed.

    Attributes:
        normalize: whether vectors are scaled to unit length.
        dimension: length of the vectors.
        prompt: what goes before each text; may be empty.
    """

    normalize: bool = True
    dimension: int = 0
    prompt: str = ""


@dataclass(frozen=True)
class Usage:
    """The cost of a request.

    Attributes:
        total_tokens: tokens processed, including prompts and special tokens.
        duration_ms: wall time from the call to the vectors, including waiting.
        truncated: texts truncated at the model's maximum length.
    """

    total_tokens: int
    duration_ms: float
    truncated: int = 0


@dataclass(frozen=True)
class BatchEmbeddingResponse:
    """Vectors of one request.

    Attributes:
        embeddings: (N, D) float32, one row per input, in order.
        model: the model's name as the caller gave it.
        usage: tokens, duration and truncations.
    """

    embeddings: Vector
    model: str
    usage: Usage


class StartedBatch(Protocol):
    """The first texts of some requests on their way through a model.

    Attributes:
        texts: how many they are, of each request.
    """

    @property
    def texts(self) -> Sequence[int]: ...

    def result(self) -> list[BatchEmbeddingResponse]:
        """Wait for their vectors, one response per request; raises like `EmbeddingProvider.embed_requests`."""


@dataclass(frozen=True)
class ModelInfo:
    """A model and its vector space.

    Attributes:
        model: the name that the caller asked for.
        dimension: length of the vectors it returns.
        max_tokens: longest text in tokens; longer ones are truncated and counted.
        native_dimension: length before any Matryoshka truncation.
        dimensions: lengths it may be truncated to; empty for the native one only.
        pooling: "mean", "cls", "lasttoken", …, several joined as in "cls+mean"; empty if the vectors are not from a
            model.
        normalize: whether vectors have unit length.
        similarity: function the model was trained for: "cosine", "dot", "euclidean" or "manhattan". The first three
            rank unit-length vectors equally.
        prompts: text prepended to a "query" and a "document".
        repo: Hugging Face repository, or folder, it came from.
        revision: commit of the repository, or digest of the weights.
        device: "gpu", "cpu", or "" while nothing is loaded.
        dtype: dtype of the weights in use.
        parameters: number of weights, 0 if unknown.
        fingerprint: identifies the vector space; equal fingerprints mean comparable vectors.
    """

    model: str
    dimension: int
    max_tokens: int
    native_dimension: int = 0
    dimensions: tuple[int, ...] = ()
    pooling: str = ""
    normalize: bool = True
    similarity: str = "cosine"
    prompts: Mapping[str, str] | None = None
    repo: str = ""
    revision: str = ""
    device: str = ""
    dtype: str = ""
    parameters: int = 0
    fingerprint: str = ""

    @property
    def compared_by(self) -> str:
        """How to compare these vectors: "cosine" if they have unit length, else by `similarity`."""
        return "cosine" if self.normalize else self.similarity

    def _repr_html_(self) -> str:
        """Show the known facts in a notebook."""
        facts = {
            "vectors": f"{self.dimension} dimensions, float32" if self.dimension else None,
            "can be cut to": _spell(self.dimensions),
            "longest text": f"{self.max_tokens:,} tokens" if self.max_tokens else None,
            "pooling": self.pooling,
            "unit length": self.normalize,
            "compared by": self.compared_by,
            **{f"{kind} prompt": text for kind, text in (self.prompts or {}).items() if kind in ("query", "document")},
            "from": self.repo,
            "revision": self.revision[:19],
            "runs on": ", ".join(filter(None, (self.device, self.dtype))),
            "parameters": self.parameters or None,
            "fingerprint": self.fingerprint,
        }
        return facts_table(self.model, facts)


@dataclass(frozen=True)
class TextPiece:
    """A part of a longer text.

    Attributes:
        text: the part.
        start, end: its place in the whole text, in characters: `whole[start:end] == text`.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """One document for a collection: a text, a vector, or both.

    Attributes:
        id: its key; an upsert replaces the document with the same id.
        text: embedded if no vector is given.
        vector: (D,), stored unchanged.
        metadata: stored with it.
    """

    id: str
    text: str | None = None
    vector: Sequence[float] | Vector | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class UpsertResponse:
    """The result of an upsert.

    Attributes:
        inserted: documents written.
        embeddings_generated: how many of them were embedded by this call.
        total_tokens: tokens embedded.
        duration_ms: wall time of the whole call.
        skipped: unchanged documents, not written.
        truncated: texts truncated at the model's maximum length.
        repeated: rows left out because an earlier row has the same content, where ids are made from it.
    """

    inserted: int
    embeddings_generated: int
    total_tokens: int
    duration_ms: float
    skipped: int = 0
    truncated: int = 0
    repeated: int = 0

    def _repr_html_(self) -> str:
        """Show the result and its speed in a notebook."""
        facts = {
            "written": self.inserted,
            "embedded here": self.embeddings_generated,
            "left alone, unchanged": self.skipped or None,
            "rows with the same content": self.repeated or None,
            "tokens": self.total_tokens or None,
            "texts cut at the longest": self.truncated or None,
            "took": f"{self.duration_ms / 1e3:,.2f} s",
            "rate": f"{self.embeddings_generated / self.duration_ms * 1e3:,.0f} texts/s"
            if self.embeddings_generated and self.duration_ms
            else None,
        }
        return facts_table("Upsert", facts)


def _spell(dimensions: tuple[int, ...]) -> str:
    """Format dimensions for people: a long consecutive run as a range."""
    if len(dimensions) > 8:
        return f"{dimensions[0]} to {dimensions[-1]}"
    return ", ".join(map(str, dimensions))
