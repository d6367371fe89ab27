"""The fingerprint of a vector space, stored with a collection and compared when it is reopened."""

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
    """Return 16 hex digits, equal where vectors are comparable; databases store them, so this must never change.

    Args:
        weights_digest: identity of the weights.
        max_tokens: length at which texts are truncated.
        pooling: modes, concatenated.
        pool_prompt: whether a prompt's tokens are pooled too.
        prompts: for "document" and "query".
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
