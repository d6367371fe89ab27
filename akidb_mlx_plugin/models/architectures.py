"""Facts about each architecture, known without importing it: its module, and how to read its config.json.

Only data, without MLX: a checkpoint is described, or rejected, without importing its encoder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from akidb_mlx_plugin.errors import ModelNotFoundError

# Class names of bidirectional decoders, such as LlamaBidirectionalModel or MistralBiModel.
_BIDIRECTIONAL_CLASS = re.compile(r"Bidirec|Bi(Model|Encoder|For)")
# gte-Qwen2 and stella_en_1.5B: named like transformers' decoder, but bidirectional by default.
_GTE_QWEN2 = "modeling_qwen.Qwen2Model"


@dataclass(frozen=True)
class Architecture:
    """One `model_type`.

    Attributes:
        module: module in this folder.
        encoder: class in it.
        bidirectional: whether tokens see later ones, if the configuration does not say.
        hidden_size: name of the setting for the width of the token vectors.
        positions: name of the setting for the number of positions; None for no limit.
        offset_positions: whether position ids start after the padding id, which leaves that many fewer for tokens.
        text_config: whether it is one of several towers, with its settings in `text_config`.
        code: names in the `auto_map` of published checkpoints that this encoder computes: a class, or "file.Class".
        alibi: module and class for checkpoints of this `model_type` with ALiBi or another feed-forward network.
        projection: name of a linear layer without a bias that some checkpoints have after their last norm; its width
            is `num_labels`.
    """

    module: str
    encoder: str
    bidirectional: bool = True
    hidden_size: str = "hidden_size"
    positions: str | None = "max_position_embeddings"
    offset_positions: bool = False
    text_config: bool = False
    code: tuple[str, ...] = ()
    alibi: tuple[str, str] | None = None
    projection: str | None = None


# Advice for published custom code that this package does not run, by file or class in `auto_map`.
_ADVICE: Mapping[str, str] = {
    "modeling_lora": (
        "it applies an adapter (LoRA) for each task; merge the one for your task into "
        "jinaai/jina-embeddings-v3-hf (peft's merge_and_unload, then save_pretrained)"
    ),
    "modeling_jina_embeddings_v5": (
        "it applies an adapter (LoRA) for each task; use a repository with the adapter merged, such as "
        "jinaai/jina-embeddings-v5-text-small-retrieval or jinaai/jina-embeddings-v5-text-nano-retrieval"
    ),
    "PPLXQwen3Model": "its modules also run custom code (st_quantize), which rounds vectors to 8 bits",
}
_EMBEDDING_GEMMA2 = Architecture(
    "embedding_gemma2", "EmbeddingGemma2Encoder", hidden_size="embedding_dim", text_config=True
)
ARCHITECTURES = {
    "albert": Architecture("albert", "AlbertEncoder"),
    "bert": Architecture("bert", "BertEncoder", code=("JinaBertModel",), alibi=("jina_bert", "JinaBertEncoder")),
    "bidirectional_pplx_qwen3": Architecture("qwen3", "Qwen3Encoder"),
    "camembert": Architecture("roberta", "RobertaEncoder", offset_positions=True),
    "distilbert": Architecture("distilbert", "DistilBertEncoder", hidden_size="dim"),
    "electra": Architecture("electra", "ElectraEncoder"),
    "embedding_gemma2": _EMBEDDING_GEMMA2,
    # The text tower alone, as saved by transformers' EmbeddingGemma2TextModel.
    "embedding_gemma2_text": _EMBEDDING_GEMMA2,
    "eurobert": Architecture("eurobert", "EuroBertEncoder", code=("EuroBertModel",)),
    "gemma3_text": Architecture("gemma3_text", "Gemma3Encoder", bidirectional=False),
    "gte": Architecture("gte", "GteEncoder", code=("GteModel", "NewModel")),
    "jina_embeddings_v3": Architecture("jina_embeddings_v3", "JinaV3Encoder"),
    # LiquidAI's encoders have the decoder's model_type, but name their own class.
    "lfm2": Architecture("lfm2", "Lfm2Encoder", bidirectional=False, code=("Lfm2BidirectionalModel",)),
    "lfm2_bidirectional": Architecture("lfm2", "Lfm2Encoder"),
    "llama": Architecture("llama", "LlamaEncoder", bidirectional=False),
    "llama_bidirec": Architecture("llama", "LlamaEncoder", code=("LlamaBidirectionalModel",)),
    "ministral": Architecture("mistral", "MinistralEncoder", bidirectional=False),
    "ministral3": Architecture("ministral3", "Ministral3Encoder", bidirectional=False),
    "ministral3_bidirec": Architecture("ministral3", "Ministral3Encoder", code=("Ministral3BidirectionalModel",)),
    "mistral": Architecture("mistral", "MistralEncoder", bidirectional=False),
    "modernbert": Architecture("modernbert", "ModernBertEncoder"),
    "mpnet": Architecture("mpnet", "MPNetEncoder", offset_positions=True),
    # transformers' gte, under its name in Alibaba's own checkpoints.
    "new": Architecture("gte", "GteEncoder", code=("NewModel",)),
    # Rotary positions are unlimited; max_position_embeddings, in published ones that set it, is the training length.
    "nomic_bert": Architecture("nomic_bert", "NomicBertEncoder", positions="n_positions", code=("NomicBertModel",)),
    "phi3": Architecture("phi3", "Phi3Encoder", bidirectional=False),
    "qwen2": Architecture("qwen2", "Qwen2Encoder", bidirectional=False, code=(_GTE_QWEN2,)),
    "qwen3": Architecture(
        "qwen3", "Qwen3Encoder", bidirectional=False, code=("Qwen3BidirectionalModel",), projection="linear"
    ),
    "roberta": Architecture("roberta", "RobertaEncoder", offset_positions=True),
    # This package's name for a table of token vectors, which has no model_type.
    "static_embedding": Architecture("static_embedding", "StaticEncoder"),
    "t5": Architecture("t5", "T5Encoder", hidden_size="d_model", positions=None),
    "xlm-roberta": Architecture("roberta", "RobertaEncoder", offset_positions=True),
}
# Any other decoder, through mlx-lm.
OTHER = Architecture("causal_lm", "CausalEncoder", bidirectional=False)


def find_architecture(model_type: str) -> Architecture:
    """Return the entry of a `model_type`; `OTHER` if it is not one of this package's own."""
    return ARCHITECTURES.get(model_type, OTHER)


def check_config(config: Mapping[str, Any], file: str) -> None:
    """Check that this package supports the architecture in a `config.json`.

    Args:
        config: the settings.
        file: the file they are from, for the message.
    Raises:
        ModelNotFoundError: it does not, with the reason.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelNotFoundError(f"{file} has no model_type; is it a text encoder?")
    check_code(config, file)


def check_code(config: Mapping[str, Any], file: str) -> None:
    """Check that a checkpoint does not need custom code whose results this package does not reproduce.

    Args:
        config: `config.json`.
        file: its path, for the message.
    Raises:
        ModelNotFoundError: it does; the message names the code.
    """
    named = _code(config)
    script, _, name = named.rpartition(".")
    if not named or {named, name} & set(find_architecture(str(config.get("model_type"))).code):
        return
    advice = _ADVICE.get(script) or _ADVICE.get(name) or "the architecture's usual code would give different vectors"
    raise ModelNotFoundError(
        f"{file} has auto_map: the model needs custom code ({named}), which this package does not run; {advice}"
    )


def _code(config: Mapping[str, Any]) -> str:
    """Return the code that `auto_map` names as "file.Class", without its repository; "" for none."""
    code = config.get("auto_map")
    named = code.get("AutoModel") if isinstance(code, Mapping) else None
    return str(named or "").rpartition("--")[2]


def projection_of(config: Mapping[str, Any]) -> int | None:
    """Return the width of the linear layer that the settings put at the end of the encoder; None for no such layer.

    Args:
        config: `config.json`.
    Raises:
        ModelNotFoundError: it has one, but its width is not given.
    """
    if find_architecture(str(config.get("model_type"))).projection is None or not _code(config):
        return None
    width = config.get("num_labels")
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ModelNotFoundError(
            f"config.json: num_labels, the width of {_code(config)}, must be a positive integer, not {width!r}"
        )
    return width


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `config.json` with the settings of the text encoder at the top level, whatever other towers it has.

    Args:
        config: as stored, or as this function returns it.
    Returns:
        `hidden_size` is the width of the token vectors, after the projection that an encoder may end with; an encoder
        whose own width differs, or whose settings were nested, keeps its own in `text_config`.
    Raises:
        ModelNotFoundError: `text_config` is missing, or is not an object.
    """
    architecture = find_architecture(str(config.get("model_type")))
    if not architecture.text_config:
        return dict(config)
    inner = config.get("text_config", config)
    if not isinstance(inner, Mapping):
        raise ModelNotFoundError(f"text_config in config.json must hold the encoder's settings, got {inner!r}")
    return {**inner, **config, "text_config": dict(inner), "hidden_size": inner.get(architecture.hidden_size)}


def is_bidirectional(config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint attends bidirectionally: by its config.json, else by its architecture.

    Args:
        config: `config.json`; `is_causal`, `use_bidirectional_attention` and the names in `architectures` decide. As in
            transformers, either setting suffices.
    """
    if config.get("is_causal") is False or config.get("use_bidirectional_attention") is True:
        return True
    if config.get("is_causal") is True or config.get("use_bidirectional_attention") is False:
        return False
    return names_bidirectional_class(config) or find_architecture(str(config.get("model_type"))).bidirectional


def names_bidirectional_class(config: Mapping[str, Any]) -> bool:
    """Return whether `architectures` or `auto_map` names a bidirectional class."""
    code = _code(config)
    named = [*(config.get("architectures") or ()), code]
    return code == _GTE_QWEN2 or any(_BIDIRECTIONAL_CLASS.search(str(name)) for name in named)


def check_pooling(config: Mapping[str, Any], modes: Collection[str]) -> None:
    """Check that pooling does not use a token that has not seen the text.

    Args:
        config: `config.json`.
        modes: the pooling modes.
    Raises:
        ModelNotFoundError: "cls" pooling in a causal decoder.
    """
    if "cls" in modes and not is_bidirectional(config):
        raise ModelNotFoundError(
            "pooling 'cls' takes the vector of the first token, which has not seen the rest of the text: this "
            f"{config.get('model_type')} is causal by its config.json (is_causal, use_bidirectional_attention, "
            "architectures); use 'lasttoken' or 'mean' pooling"
        )
