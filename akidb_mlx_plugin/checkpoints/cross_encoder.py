"""Read a reranker's settings: a `Checkpoint` whose vector is its scores, and what becomes of them.

Source: sentence_transformers 6 `CrossEncoder`, and what versions since 2 have written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.head import DenseLayer, stored_inside
from akidb_mlx_plugin.checkpoints.reader import longest_text, read_config
from akidb_mlx_plugin.checkpoints.rerankers import AnswerFormat, answer_format, refuse_embedder
from akidb_mlx_plugin.checkpoints.score_heads import score_layers
from akidb_mlx_plugin.checkpoints.sentence_transformers import list_module_kinds, read_json
from akidb_mlx_plugin.checkpoints.transformer_settings import TransformerSettings, read_transformer_settings
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub.registry import ModelSpec
from akidb_mlx_plugin.models.architectures import check_code

# By the last part of the torch class name, in lower case.
ACTIVATIONS = ("identity", "sigmoid", "softmax", "tanh")
_PACKAGE = "torch."
_SENTENCE_CONFIG = "config_sentence_transformers.json"
# Classes in `auto_map` of published checkpoints that `score_heads` computes.
_KNOWN_CODE = ("NewForSequenceClassification",)


@dataclass(frozen=True)
class CrossEncoderCheckpoint(Checkpoint):
    """A reranker's folder, read but not loaded.

    Attributes:
        activation: what turns logits into scores; one of `ACTIVATIONS`.
        asks: how pairs are put to a language model; None for a model with a head for scores.
        word_ids: tokens of its answers no and yes, or yes alone, if a file names them; empty for those of `asks`.
    """

    activation: str = "sigmoid"
    asks: AnswerFormat | None = None
    word_ids: tuple[int, ...] = ()

    @property
    def scores(self) -> int:
        """Scores per pair."""
        return 1 if self.asks else self.native_dimension

    @property
    def widest_layer(self) -> int:
        """Numbers per token in the widest layer; the head sees one vector per pair."""
        inner = self.config.get("intermediate_size")
        return inner if isinstance(inner, int) else 4 * int(self.config["hidden_size"])

    def with_words(self, rows: tuple[int, ...]) -> CrossEncoderCheckpoint:
        """Return a language model's checkpoint with its head: the rows of these tokens in its last matrix.

        Raises:
            ModelNotFoundError: it has no such matrix.
        """
        tied = self.config.get("tie_word_embeddings", True)
        names = ("model.embed_tokens", "embed_tokens") if tied else ("lm_head",)
        stored = stored_inside(self.folder)
        prefix = next((name for name in names if f"{name}.weight" in stored), None)
        if prefix is None:
            raise ModelNotFoundError(f"{self.folder} has no {names[0]}.weight, which scores the model's answers")
        width = int(self.config["hidden_size"])
        return replace(self, dense=(DenseLayer(None, width, len(rows), prefix=prefix, rows=rows),))


def read_cross_encoder(
    folder: Path,
    *,
    name: str | None = None,
    spec: ModelSpec | None = None,
    repo: str = "",
    revision: str = "",
    weights_digest: str = "",
    activation: str | None = None,
) -> CrossEncoderCheckpoint:
    """Read the settings of a reranker's folder; arguments as for `read_checkpoint`.

    Args:
        activation: overrides the checkpoint's; one of `ACTIVATIONS`.
    Raises:
        ModelNotFoundError: not a reranker, or an unsupported one.
        InvalidInputError: no such activation.
    """
    config, settings = _read_settings(folder, repo or (spec.repo if spec else ""))
    asks = _with_instruction(folder, answer_format(folder, config, repo))
    limit = min(spec.max_tokens if spec else asks.max_tokens, asks.max_tokens) if asks else None
    pooling: tuple[str, ...] = ("lasttoken",)
    layers: tuple[DenseLayer, ...] = ()
    if not asks:
        pooling, layers = score_layers(folder, config, stored_inside(folder))
    is_single = bool(asks) or layers[-1].out_features == 1
    return CrossEncoderCheckpoint(
        name=name or str(folder),
        root=folder,
        folder=folder,
        spec=spec,
        family=None,
        config=config,
        model_type=config["model_type"],
        max_tokens=longest_text(folder, config, settings, limit),
        pooling=pooling,
        dense=layers,
        normalize=False,
        lowercase=settings.lowercase,
        repo=repo or str(folder),
        revision=revision,
        known_digest=weights_digest,
        origins={"pooling": "the head for scores"},
        activation=_activation(folder, config, activation, is_single=is_single),
        asks=asks,
        word_ids=_word_ids(folder) if asks else (),
    )


def check_cross_encoder(folder: Path, repo: str = "") -> None:
    """Check from its JSON files that a reranker is supported, before its weights are downloaded.

    Args:
        folder: holds these files.
        repo: the repository they came from.
    Raises:
        ModelNotFoundError: it is not, with the reason.
    """
    config, _ = _read_settings(folder, repo)
    if not answer_format(folder, config, repo):
        score_layers(folder, config, {})
    _activation(folder, config, None, is_single=True)


def _read_settings(folder: Path, repo: str) -> tuple[dict[str, Any], TransformerSettings]:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelNotFoundError(f"{folder} is not a reranker: it has no config.json")
    stored = read_json(file)
    refuse_embedder(folder, stored, repo)
    _check_code(stored, file)
    _check_modules(folder)
    asks = answer_format(folder, stored, repo)
    settings = read_transformer_settings(folder, _TASKS[bool(asks)])
    config = read_config(folder, [], replace(settings, chat_template=settings.chat_template and not asks))
    if not asks:
        _check_prompt(folder)
    return config, settings


# Values that sentence-transformers writes for the transformer of a CrossEncoder: with a head, or a language model.
_TASKS: Mapping[bool, Mapping[str, Any]] = {
    False: {
        "transformer_task": "sequence-classification",
        "module_output_name": "scores",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    },
    True: {
        "transformer_task": "text-generation",
        "module_output_name": "causal_logits",
        # The answer follows the question, as in `AnswerFormat.after`.
        "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    },
}


def _check_modules(folder: Path) -> None:
    kinds = list_module_kinds(folder)
    if kinds not in (None, ["Transformer"], ["Transformer", "LogitScore"]):
        raise ModelNotFoundError(
            f"{folder / 'modules.json'} lists the modules {', '.join(kinds or [])}; rerankers are supported with "
            "Transformer, and Transformer and LogitScore"
        )


def _word_ids(folder: Path) -> tuple[int, ...]:
    """Return the tokens that a LogitScore module compares; empty if there is none."""
    file = next(iter(folder.glob("*_LogitScore/config.json")), None)
    if file is None:
        return ()
    settings = read_json(file)
    ids = [settings[key] for key in ("false_token_id", "true_token_id") if settings.get(key) is not None]
    if settings.get("true_token_id") is None or not all(type(word) is int and word >= 0 for word in ids):
        raise ModelNotFoundError(f"{file} names no token for the answer yes: {settings!r}")
    return tuple(ids)


def _check_code(config: Mapping[str, Any], file: Path) -> None:
    """Check that neither the encoder nor its head is custom code that this package does not reproduce."""
    check_code(config, str(file))
    code = config.get("auto_map")
    named = code.get("AutoModelForSequenceClassification") if isinstance(code, Mapping) else None
    if named is not None and str(named).rpartition(".")[2] not in _KNOWN_CODE:
        raise ModelNotFoundError(
            f"{file} has auto_map: the model needs custom code ({named}), which this package does not run; the "
            "architecture's usual code would give different scores"
        )


def _check_prompt(folder: Path) -> None:
    """Refuse a default prompt, which sentence-transformers puts before every pair."""
    sentence_config = _sentence_config(folder)
    if (named := sentence_config.get("default_prompt_name")) is not None:
        raise ModelNotFoundError(
            f"{folder / _SENTENCE_CONFIG} puts its prompt {named!r} before every pair, which this package does not "
            "support for rerankers"
        )


def _with_instruction(folder: Path, asks: AnswerFormat | None) -> AnswerFormat | None:
    """Return a format with the instruction that the folder names as its default prompt, if it does."""
    sentence_config = _sentence_config(folder)
    named, prompts = sentence_config.get("default_prompt_name"), sentence_config.get("prompts")
    prompt = prompts.get(named) if isinstance(prompts, Mapping) and isinstance(named, str) else None
    return replace(asks, instruction=prompt) if asks and isinstance(prompt, str) and prompt else asks


def _sentence_config(folder: Path) -> Mapping[str, Any]:
    file = folder / _SENTENCE_CONFIG
    return read_json(file) if file.is_file() else {}


def _activation(folder: Path, config: Mapping[str, Any], chosen: str | None, *, is_single: bool) -> str:
    """Return the caller's activation, else the checkpoint's, else sigmoid for a single score and identity for more."""
    if chosen is not None:
        if chosen not in ACTIVATIONS:
            raise InvalidInputError(f"activation must be {', '.join(ACTIVATIONS)}, got {chosen!r}")
        return chosen
    named = _named_activation(folder, config)
    if named is None:
        return "sigmoid" if is_single else "identity"
    kind = str(named).rpartition(".")[2].lower()
    if not str(named).startswith(_PACKAGE) or kind not in ACTIVATIONS:
        raise ModelNotFoundError(
            f"{folder} turns logits into scores by {named!r}, which this package does not support; choose one of "
            f"{', '.join(ACTIVATIONS)} with activation="
        )
    return kind


def _named_activation(folder: Path, config: Mapping[str, Any]) -> object:
    own = _sentence_config(folder)
    section = config.get("sentence_transformers")
    inner = section.get("activation_fn") if isinstance(section, Mapping) else None
    return own.get("activation_fn") or inner or config.get("sbert_ce_default_activation_function")
