"""What goes in and what comes out: requests, responses, model descriptions, documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.display import facts_table

Kind = Literal["document", "query"]
# What vectors are compared by: the names of sentence-transformers.
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class BatchEmbeddingRequest:
    """Texts to embed, and how.

    Attributes:
        inputs: the texts, in the order their vectors are wanted.
        kind: which of the model's prompts goes before each text.
        normalize: scale every vector to unit length; None: as the checkpoint says.
        dimension: keep this many leading components (matryoshka); None: the model's default.
        prompt: a prompt of the caller's own, in place of the one that `kind` selects.
        task: the name of one of the model's other prompts, in place of the one that `kind` selects.
    """

    inputs: Sequence[str]
    kind: Kind = "document"
    normalize: bool | None = None
    dimension: int | None = None
    prompt: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class Usage:
    """What a request cost.

    Attributes:
        total_tokens: tokens the model saw, prompts and special tokens included.
        duration_ms: wall time from the call to the vectors, waiting included.
        truncated: texts cut at the model's maximum length.
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


@dataclass(frozen=True)
class ModelInfo:
    """What a model is and which vector space it makes.

    Attributes:
        model: the name it was asked for by.
        dimension: length of the vectors it returns.
        max_tokens: longest text in tokens; the rest is cut and counted.
        native_dimension: length before any matryoshka cut.
        dimensions: lengths it may be cut to; empty: the native one alone.
        pooling: "mean", "cls", "lasttoken", …, several joined as in "cls+mean"; empty where no model is behind the
            vectors.
        normalize: whether vectors have unit length.
        similarity: what the model was trained to be compared by: "cosine", "dot", "euclidean" or "manhattan". Vectors
            of unit length are in the same order by any of the first three.
        prompts: text put before a "query" and a "document".
        repo: Hugging Face repository, or folder, it came from.
        revision: commit of the repository, or digest of the weights.
        device: "gpu", "cpu", or "" while nothing is loaded.
        dtype: number format of the weights in use.
        parameters: number of weights, 0 where unknown.
        fingerprint: names the vector space; equal fingerprints mean comparable vectors.
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
        """What these vectors are to be compared by: "cosine" where they have unit length, else `similarity`."""
        return "cosine" if self.normalize else self.similarity

    def _repr_html_(self) -> str:
        """Show in a notebook what is known."""
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
class Document:
    """One document for a collection: a text, a vector, or both.

    Attributes:
        id: its key; an upsert replaces the document that has it.
        text: embedded where no vector is given.
        vector: (D,) taken as it is.
        metadata: stored beside it.
    """

    id: str
    text: str | None = None
    vector: Sequence[float] | Vector | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class UpsertResponse:
    """What an upsert did.

    Attributes:
        inserted: documents written.
        embeddings_generated: how many of them were embedded here.
        total_tokens: tokens embedded.
        duration_ms: wall time of the whole call.
        skipped: documents left alone because nothing about them changed.
        truncated: texts cut at the model's maximum length.
    """

    inserted: int
    embeddings_generated: int
    total_tokens: int
    duration_ms: float
    skipped: int = 0
    truncated: int = 0

    def _repr_html_(self) -> str:
        """Show in a notebook what was done, and how fast."""
        facts = {
            "written": self.inserted,
            "embedded here": self.embeddings_generated,
            "left alone, unchanged": self.skipped or None,
            "tokens": self.total_tokens or None,
            "texts cut at the longest": self.truncated or None,
            "took": f"{self.duration_ms / 1e3:,.2f} s",
            "rate": f"{self.embeddings_generated / self.duration_ms * 1e3:,.0f} texts/s"
            if self.embeddings_generated and self.duration_ms
            else None,
        }
        return facts_table("Upsert", facts)


def _spell(dimensions: tuple[int, ...]) -> str:
    """Return choices as people write them: a long run of them as a range."""
    if len(dimensions) > 8:
        return f"{dimensions[0]} to {dimensions[-1]}"
    return ", ".join(map(str, dimensions))
