"""Select a checkpoint's prompt for documents, queries and named tasks.

Source: `encode_document` and `encode_query` of sentence-transformers 6.2.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

# Names that checkpoints use for the prompts of queries and documents.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}

logger = logging.getLogger(__name__)


def find_prompt(prompts: Mapping[str, str], kind: str) -> str | None:
    """Return the prompt of a "document", a "query" or a named task; None if there is no such task.

    There is no fallback to `default_prompt_name`: it is for sentence-transformers' plain `encode`, and is often the
    query's.
    """
    for name in PROMPT_NAMES.get(kind, (kind,)):
        if name in prompts:
            return prompts[name]
    return "" if kind in PROMPT_NAMES else None


def check_default_prompt(folder: Path, prompts: Mapping[str, str], name: object) -> None:
    """Warn once per folder if its default prompt is used for neither documents nor queries.

    Args:
        folder: the checkpoint.
        prompts: its prompts by name.
        name: its `default_prompt_name`.
    """
    text = prompts.get(name) if isinstance(name, str) else None
    if text and text not in (find_prompt(prompts, "document"), find_prompt(prompts, "query")):
        _warn_of_default_prompt(folder, str(name))


@lru_cache(maxsize=256)
def _warn_of_default_prompt(folder: Path, name: str) -> None:
    logger.warning(
        "%s has the default prompt %r, which sentence-transformers prepends in encode(), but not in "
        "encode_document() and encode_query(); to use it here, pass document_task=%r or query_task=%r",
        folder,
        name,
        name,
        name,
    )
