"""Who asks for a function: a caller, who may use any model, or LanceDB on behalf of a table.

What a table stores is untrusted data, and no model outside the registry is downloaded for it. LanceDB makes the
stored function with the same call as users, `registry.get("akidb-mlx").create(**fields)`, and has no hook for it; only
the stack distinguishes the two.
"""

from __future__ import annotations

import sys

# The module whose `EmbeddingFunctionRegistry.parse_functions` reads what a table stores, since LanceDB 0.38 at least.
_READER = "lancedb.embeddings.registry"


def is_reading_table() -> bool:
    """Return whether LanceDB is reading a table's stored functions, anywhere up this thread's stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _READER:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
