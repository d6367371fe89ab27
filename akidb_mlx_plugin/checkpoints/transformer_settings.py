"""Settings in `sentence_bert_config.json` for the transformer of a sentence-transformers pipeline.

Source: sentence_transformers 6 `Transformer`, and the arguments that earlier versions wrote there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.sentence_transformers import read_json
from akidb_mlx_plugin.errors import ModelNotFoundError

# sentence-transformers reads the first of these that exists.
_KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_FILES = tuple(f"sentence_{kind}_config.json" for kind in _KINDS)
_READ = {"max_seq_length", "do_lower_case"}
# Any other value would change the vectors.
_FIXED: Mapping[str, Any] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "query_length": None,
    "document_length": None,
    "query_expansion": None,
    "processing_kwargs": {},
    "tokenizer_name_or_path": None,
    "backend": "torch",
}
# How transformers loads and computes, but not what.
_WITHOUT_EFFECT = {
    "add_pooling_layer",
    "attn_implementation",
    "cache_dir",
    "code_revision",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "padding_side",
    "revision",
    "safe_serialization",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "unpad_inputs",
    "use_cache",
    "use_fast",
    "use_memory_efficient_attention",
}
# Arguments to what transformers loads, by their names in versions up to 5 and from 6 on.
_CONFIG_ARGUMENTS = ("config_args", "config_kwargs")
_OTHER_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs")


@dataclass(frozen=True)
class TransformerSettings:
    """Settings of the transformer module.

    Attributes:
        max_tokens: longest text in tokens; None if not given.
        lowercase: fold case before tokenizing.
        config: settings that override those of `config.json`.
        chat_template: whether the checkpoint's chat template is applied to texts.
    """

    max_tokens: int | None = None
    lowercase: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: bool = False


def read_transformer_settings(folder: Path, task: Mapping[str, Any] | None = None) -> TransformerSettings:
    """Read the settings next to the transformer; defaults if there are none.

    Args:
        folder: the transformer's.
        task: what its task settings must be. Defaults to those of token vectors.
    Raises:
        ModelNotFoundError: unreadable, or a setting that would change the vectors; it is named.
    """
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        return TransformerSettings()
    settings = read_json(file)
    fixed = {**_FIXED, **(task or {})}
    for name, value in settings.items():
        if name in _READ or name in _CONFIG_ARGUMENTS or name == "unpad_inputs":
            continue
        if name == "modality_config":
            _check_modalities(file, value, fixed[name])
        elif name in _OTHER_ARGUMENTS:
            _check_arguments(file, name, value)
        elif value not in (None, fixed.get(name), False, {}):
            raise ModelNotFoundError(f"{file} has a setting that this package does not support: {name} = {value!r}")
    limit = settings.get("max_seq_length")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ModelNotFoundError(f"{file}: max_seq_length must be a positive integer, not {limit!r}")
    config: dict[str, Any] = {}
    for name in _CONFIG_ARGUMENTS:
        arguments = settings.get(name) or {}
        if not isinstance(arguments, Mapping):
            raise ModelNotFoundError(f"{file}: {name} must be an object, not {arguments!r}")
        config |= {key: value for key, value in arguments.items() if key not in _WITHOUT_EFFECT}
    modalities = settings.get("modality_config")
    chat_template = isinstance(modalities, Mapping) and "message" in modalities
    return TransformerSettings(limit, bool(settings.get("do_lower_case", False)), config, chat_template)


def _check_modalities(file: Path, modalities: object, expected: Mapping[str, Any]) -> None:
    """Check that texts take the model's plain forward pass to the expected output."""
    text = modalities.get("text") if isinstance(modalities, Mapping) else None
    if modalities is None or text == expected["text"]:
        return
    output = expected["text"]["method_output_name"].replace("_", " ")
    raise ModelNotFoundError(f"{file} does not take its result from the {output}: modality_config = {modalities!r}")


def _check_arguments(file: Path, name: str, arguments: object) -> None:
    """Check that arguments to transformers' model or tokenizer do not change the result."""
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ModelNotFoundError(f"{file}: {name} must be an object, not {arguments!r}")
    for key, value in (arguments or {}).items():
        if key not in _WITHOUT_EFFECT and (key, value) != ("truncation_side", "right"):
            raise ModelNotFoundError(
                f"{file} passes {key} = {value!r} in {name}, which this package does not support; save the model with "
                "that setting in its own config.json or tokenizer_config.json"
            )
