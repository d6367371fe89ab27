"""Names that people type for arguments and settings, as other packages have them, and what they are called here.

They are refused with the right name, not accepted: one name for one thing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from akidb_mlx_plugin.errors import InvalidInputError

P = ParamSpec("P")
R = TypeVar("R")

# Those of sentence-transformers, LangChain, LlamaIndex, fastembed, Chroma's and LanceDB's own functions, and OpenAI.
_MEANT = {
    "model": ("model_name", "model_id", "model_path", "model_name_or_path", "repo_id", "embedding_model", "name"),
    "dimension": (
        "dim",
        "dims",
        "ndim",
        "ndims",
        "dimensions",
        "embedding_dim",
        "embedding_dimension",
        "embed_dim",
        "output_dimension",
        "output_dimensionality",
        "truncate_dim",
        "vector_size",
    ),
    "normalize": ("normalize_embeddings", "normalise", "normalized", "do_normalize", "l2_normalize"),
    "pooling": ("pooling_mode", "pooling_strategy", "pooling_type"),
    "overflow": ("truncate", "truncation", "on_overflow"),
    "device": ("device_name", "device_type", "use_gpu", "cuda"),
    "cache_dir": ("cache_folder", "cache_path", "cache", "download_dir"),
    "query_prompt": ("query_instruction", "query_prefix"),
    "document_prompt": ("doc_prompt", "document_instruction", "document_prefix", "passage_prefix", "embed_instruction"),
    "query_task": ("query_prompt_name",),
    "document_task": ("document_prompt_name",),
    "dtype": ("torch_dtype", "precision", "data_type"),
    "batch_size": ("embed_batch_size", "max_batch_size", "batch"),
    "keep_alive": ("keepalive", "ttl"),
    "instruction": ("prompt", "prompt_name", "query_instruction", "query_prompt"),
    "activation": ("activation_fn", "activation_function", "default_activation_function"),
    "texts": ("sentences", "sentence", "inputs", "input", "text"),
}
# What has two answers here.
_BOTH = {
    "prompt": "query_prompt= or document_prompt=",
    "prompts": "query_prompt= and document_prompt=",
    "prompt_name": "query_task= or document_task=",
    "task": "query_task= or document_task=",
    "task_type": "query_task= or document_task=",
}
# What has no answer here.
_ABSENT = {
    "trust_remote_code": "no code of a checkpoint runs here; leave it out",
    "api_key": "the model runs on your own machine; leave it out",
    **dict.fromkeys(("max_length", "max_seq_length", "max_tokens"), "the limit is the model's own; leave it out"),
}
_ARRAY = "vectors and scores are NumPy arrays in float32; leave it out"
# What constructors have, or nothing, where sentence-transformers' methods have an argument.
_OF_METHODS = {
    **dict.fromkeys(("convert_to_numpy", "convert_to_tensor", "output_value", "precision"), _ARRAY),
    **dict.fromkeys(("show_progress_bar", "show_progress"), "leave it out"),
    "prompt_name": "use encode_query or encode_document, or give your own prompt=",
    "device": "it is given when the model is named",
    "return_documents": "every entry has its text; leave it out",
}
# Settings of the section `mlx`, for makers that do not take them as arguments.
_CONFIGURED = (
    *("batch_size", "batch_timeout_ms", "cache_dir", "dtype", "keep_alive", "keep_warm_s", "max_cache_gb"),
    *("query_prompt", "document_prompt", "query_task", "document_task"),
)


def right_name(name: str, known: Collection[str]) -> str | None:
    """Return the known name with the meaning of one that other packages use; None if there is none."""
    return next((right for right, others in _MEANT.items() if name.lower() in others and right in known), None)


def explain_unknown(
    name: str, known: Collection[str], renamed: Mapping[str, str] | None = None, *, of_method: bool = False
) -> str:
    """Return what to say about an argument that does not exist.

    Args:
        name: what was typed.
        known: the arguments that exist.
        renamed: arguments that have another name in this place than elsewhere in this package.
        of_method: whether they are a method's, not a constructor's.
    """
    others = renamed or {}
    if why := (_OF_METHODS.get(name) if of_method else None) or _ABSENT.get(name):
        return f"no argument {name!r}: {why}"
    if (both := _BOTH.get(name)) and both.partition("=")[0] in known:
        return f"no argument {name!r}; it is {both}"
    if right := name if name in others else right_name(name, [*known, *others]):
        return f"no argument {name!r}; it is {others.get(right, right)}="
    if setting := name if name in _CONFIGURED else right_name(name, _CONFIGURED):
        variable = f"AKIDB_EMBEDDING__MLX__{setting.upper()}"
        return f"no argument {name!r}; it is the setting mlx.{setting} of the configuration, or {variable}"
    if close := difflib.get_close_matches(name[:100], list(known), n=1):
        return f"no argument {name!r}; did you mean {close[0]}=?"
    return f"no argument {name!r}; the arguments are {', '.join(known)}"


def named_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a constructor or method so that an unknown keyword is an InvalidInputError with the right name.

    Python's own TypeError names only the wrong one. The signature stays what it is, for people and type checkers.
    """
    accepted = [name for name in signature(function).parameters if name != "self"]
    of_method = function.__name__ != "__init__"

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in accepted:
                raise InvalidInputError(explain_unknown(name, accepted, of_method=of_method))
        return function(*args, **kwargs)

    return checked
