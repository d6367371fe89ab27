"""The fingerprint: a name for a vector space, stored with a collection and compared when it is opened again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence


def fingerprint(
    *,
    weights_digest: str,
    max_tokens: int,
    pooling: Sequence[str],
    pool_prompt: bool,
    prompts: Mapping[str, str],
    dimension: int,
    normalize: bool,
) -> str:
    """Return 16 hex digits that are equal where vectors can be compared; databases store them, so they never change.

    Args:
        weights_digest: identity of the weights.
        max_tokens: where texts are truncated.
        pooling: modes, concatenated.
        pool_prompt: whether a prompt's tokens are pooled too.
        prompts: of "document" and "query".
        dimension: length of the vectors.
        normalize: whether they have unit length.
    """
    space = {
        "weights": weights_digest,
        "max_tokens": max_tokens,
        "pooling": list(pooling),
        "pool_prompt": pool_prompt,
        "prompts": {kind: prompts[kind] for kind in ("document", "query")},
        "dimension": dimension,
        "normalize": normalize,
    }
    return hashlib.sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()[:16]
