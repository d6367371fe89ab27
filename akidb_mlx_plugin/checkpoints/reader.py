"""Read a checkpoint's settings from JSON files and the headers of weight files, never the weights.

A folder has either the layout of sentence-transformers (`modules.json`, `1_Pooling/config.json`, …) or is bare
(`config.json`, weights, tokenizer). What it does not specify comes from the family of its repository, else from the
convention of its architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.checkpoint import CONVENTION, Checkpoint
from akidb_mlx_plugin.checkpoints.families import Family, find_family, find_family_by_prompts
from akidb_mlx_plugin.checkpoints.head import read_head
from akidb_mlx_plugin.checkpoints.prompts import PROMPT_NAMES, check_default_prompt
from akidb_mlx_plugin.checkpoints.readme import find_family_in_readme
from akidb_mlx_plugin.checkpoints.rerankers import refuse_reranker
from akidb_mlx_plugin.checkpoints.schemas import PoolingSettings, SentenceConfig, TokenizerConfig, validate
from akidb_mlx_plugin.checkpoints.sentence_transformers import Module, pooling_modes, read_json, read_modules
from akidb_mlx_plugin.checkpoints.static_embedding import STATIC, is_static, read_static_config
from akidb_mlx_plugin.checkpoints.transformer_settings import TransformerSettings, read_transformer_settings
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub.registry import ModelSpec
from akidb_mlx_plugin.models.architectures import (
    check_code,
    check_config,
    find_architecture,
    is_bidirectional,
    text_settings,
)
from akidb_mlx_plugin.pooling_names import parse_pooling
from akidb_mlx_plugin.types import Similarity

_UNBOUNDED = 1 << 30
# Architectures whose chat template only concatenates prompt and text.
_PLAIN_TEMPLATES = ("embedding_gemma2", "embedding_gemma2_text")
_DEFAULT_TOKENS = 512
_SIMILARITIES: Mapping[str, Similarity] = {
    "cosine": "cosine",
    "dot": "dot",
    "dot_product": "dot",
    "euclidean": "euclidean",
    "manhattan": "manhattan",
}


@dataclass(frozen=True)
class _Pooling:
    modes: tuple[str, ...]
    pool_prompt: bool
    origin: str


def read_checkpoint(
    folder: Path,
    *,
    name: str | None = None,
    spec: ModelSpec | None = None,
    repo: str = "",
    revision: str = "",
    weights_digest: str = "",
    pooling: str | Sequence[str] | None = None,
) -> Checkpoint:
    """Read the settings of a checkpoint folder.

    Args:
        folder: holds modules.json, or config.json, weights and tokenizer.
        name: the caller's name for the model; None for the folder.
        spec: its registry entry.
        repo: repository it came from; "" for the folder.
        revision: its version; "" for the digest of its weights.
        weights_digest: `Checkpoint.weights_digest` if known; "" to compute it on demand.
        pooling: overrides the pooling of the checkpoint, its family or the convention; see `parse_pooling`.
    Raises:
        ModelNotFoundError: not a checkpoint, or an unsupported one.
        InvalidInputError: no such pooling, or one that does not fit the checkpoint's dense layers.
    """
    modules = _read_pipeline(folder, repo or (spec.repo if spec else ""))
    place = modules[0].folder if modules else folder
    settings = read_transformer_settings(place)
    config = read_config(place, modules, settings)
    file = folder / "config_sentence_transformers.json"
    sentence_config = validate(SentenceConfig, _read_optional(file), file)
    prompts = {name: prompt for name, prompt in (sentence_config.prompts or {}).items() if prompt is not None}
    family, known_as = _find_family(folder, repo or (spec.repo if spec else ""), config, prompts)
    modes = _read_pooling(modules, family, known_as, config, pooling)
    # Prompts only for other tasks leave those of queries and documents to the family.
    own_prompts = any(prompts.get(name) for names in PROMPT_NAMES.values() for name in names)
    check_default_prompt(folder, prompts, sentence_config.default_prompt_name)
    own_modes = _read_pooling(modules, family, known_as, config, None).modes
    fits = len(modes.modes) == len(own_modes)
    has_dense = any(module.kind == "Dense" for module in modules)
    dense = read_head(place, modules, config, modes.modes) if fits or not has_dense else ()
    if not fits and (dense or has_dense):
        raise InvalidInputError(
            f"pooling {'+'.join(modes.modes)!r} gives vectors of {len(modes.modes)} parts, but the dense layers of "
            f"{folder} expect {len(own_modes)}; name as many modes as the checkpoint has"
        )
    if family and len(dense) < family.dense and not modules:
        raise ModelNotFoundError(
            f"{folder} is a {known_as} without the {family.dense} dense layers after its pooling, so its vectors "
            "would be wrong; download it with all its folders"
        )
    known_tokens = spec.max_tokens if spec else family.max_tokens if family else None
    return Checkpoint(
        name=name or str(folder),
        root=folder,
        folder=place,
        spec=spec,
        family=family,
        config=config,
        model_type=config["model_type"],
        max_tokens=longest_text(place, config, settings, known_tokens),
        pooling=modes.modes,
        pool_prompt=modes.pool_prompt,
        dense=dense,
        normalize=_normalizes(modules, config, family),
        similarity=_similarity(sentence_config, family),
        prompts=prompts if own_prompts or not family else {**prompts, **family.prompts},
        truncate_dim=sentence_config.truncate_dim if fits else None,
        lowercase=settings.lowercase,
        repo=repo or str(folder),
        revision=revision,
        known_digest=weights_digest,
        origins={
            "family": known_as,
            "pooling": modes.origin,
            "prompts": _origin_of_prompts(prompts, family if not own_prompts else None, known_as),
        },
    )


def check_settings(folder: Path, repo: str = "") -> None:
    """Check from its JSON files that an embedding model is supported, before its weights are downloaded.

    Args:
        folder: holds these files.
        repo: the repository they came from.
    Raises:
        ModelNotFoundError: it is not, with the reason.
    """
    modules = _read_pipeline(folder, repo)
    place = modules[0].folder if modules else folder
    settings = read_transformer_settings(place)
    if not is_static(modules):
        read_config(place, modules, settings)


def _read_pipeline(folder: Path, repo: str) -> list[Module]:
    """Return the modules of a folder; its config.json is checked for custom code first, for a clearer error."""
    file = folder / "config.json"
    if file.is_file():
        config = read_json(file)
        refuse_reranker(folder, config, repo)
        check_code(config, str(file))
    return read_modules(folder)


def read_config(place: Path, modules: list[Module], settings: TransformerSettings) -> dict[str, Any]:
    if is_static(modules) or (not modules and is_static(place)):
        return read_static_config(place)
    file = place / "config.json"
    if not file.is_file():
        raise ModelNotFoundError(f"{place} is not a checkpoint: it has no config.json")
    config = text_settings({**read_json(file), **settings.config})
    check_config(config, str(file))
    if settings.chat_template and config["model_type"] not in _PLAIN_TEMPLATES:
        raise ModelNotFoundError(
            f"{place} applies a chat template to texts (modality_config has 'message'), which this package does not"
        )
    key = find_architecture(str(config["model_type"])).hidden_size
    # The last two are its names in older decoders.
    config.setdefault("hidden_size", config.get(key) or config.get("n_embd") or config.get("d_model"))
    if config["hidden_size"] is None:
        raise ModelNotFoundError(f"{file} has no hidden_size; is it a text encoder?")
    _whole_number(config, "hidden_size", 1)
    if (place / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f"{place} holds an adapter next to the model; merge it (peft's merge_and_unload, then save_pretrained)"
        )
    return config


def _origin_of_prompts(prompts: Mapping[str, str], family: Family | None, known_as: str) -> str:
    """Return where the prompts come from; `family` is None if the checkpoint has its own for queries or documents."""
    if family and family.prompts:
        return f"family {known_as}"
    return "the checkpoint" if any(prompts.values()) else ""


def _read_optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _find_family(
    folder: Path, repo: str, config: Mapping[str, Any], prompts: Mapping[str, str]
) -> tuple[Family | None, str]:
    """Return the family and the repository that identifies it; None and "" for no family."""
    if family := find_family(repo):
        return family, repo
    if found := find_family_in_readme(folder):
        return found
    family = find_family_by_prompts(config["model_type"], prompts)
    return family, family.card if family else ""


def _read_pooling(
    modules: list[Module], family: Family | None, known_as: str, config: Mapping[str, Any], chosen: object
) -> _Pooling:
    """Return the caller's pooling, else the checkpoint's, its family's, or the convention of its architecture."""
    settings = None
    if len(modules) > 1 and modules[1].kind == "Pooling" and modules[1].settings is not None:
        settings = validate(PoolingSettings, modules[1].settings, modules[1].folder / "config.json")
    pool_prompt = settings is None or settings.include_prompt is not False
    if chosen is not None:
        return _Pooling(parse_pooling(chosen), pool_prompt, "the setting pooling")
    if is_static(modules) or config["model_type"] == STATIC:
        return _Pooling(("mean",), True, "StaticEmbedding")
    if settings is not None:
        return _Pooling(pooling_modes(settings), pool_prompt, f"{modules[1].folder.name}/config.json")
    if family and family.pooling:
        return _Pooling((family.pooling,), True, f"family {known_as}")
    # In a causal decoder only the last token has seen the whole text.
    mode = "mean" if is_bidirectional(config) else "lasttoken"
    return _Pooling((mode,), True, f"{CONVENTION} of {config['model_type']}")


def _normalizes(modules: list[Module], config: Mapping[str, Any], family: Family | None) -> bool:
    if modules:
        return modules[-1].kind == "Normalize"
    if config["model_type"] == STATIC:
        return bool(config.get("normalize", True))
    # A bare folder is an embedding model too, and nearly all of those compare by cosine.
    return family is None or family.similarity == "cosine"


def _similarity(sentence_config: SentenceConfig, family: Family | None) -> Similarity:
    named = sentence_config.similarity_fn_name
    if named is not None and named in _SIMILARITIES:
        return _SIMILARITIES[named]
    return family.similarity if family else "cosine"


def longest_text(folder: Path, config: Mapping[str, Any], settings: TransformerSettings, known: int | None) -> int:
    """Return the longest text in tokens.

    Args:
        folder: the encoder's.
        config: `config.json`.
        settings: next to it; they come first.
        known: from the registry or the family, which come before the tokenizer.
    """
    architecture = find_architecture(config["model_type"])
    positions = _UNBOUNDED
    if architecture.positions and config.get(architecture.positions) is not None:
        positions = _whole_number(config, architecture.positions, 1)
    if architecture.offset_positions:
        positions -= (1 if config.get("pad_token_id") is None else _whole_number(config, "pad_token_id", 0)) + 1
    if positions < 1:
        raise ModelNotFoundError(f"{folder / 'config.json'} leaves no positions for tokens")
    if config["model_type"] == STATIC:
        return positions
    if settings.max_tokens:
        return min(settings.max_tokens, positions)
    if known:
        return min(known, positions)
    file = folder / "tokenizer_config.json"
    tokenizer = validate(TokenizerConfig, _read_optional(file), file)
    limit = int(min(tokenizer.model_max_length or _UNBOUNDED, positions))
    return limit if limit < _UNBOUNDED else _DEFAULT_TOKENS


def _whole_number(config: Mapping[str, Any], key: str, least: int) -> int:
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _UNBOUNDED:
        raise ModelNotFoundError(f"config.json: {key} must be an integer of at least {least}, not {value!r}")
    return value
