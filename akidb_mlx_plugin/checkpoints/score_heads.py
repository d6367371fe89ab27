"""The layers that turn a cross-encoder's token vectors into scores, by architecture: transformers' heads as data.

A head is a pooling and one or more dense layers, so that a cross-encoder is computed like an embedding model whose
vector is its scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.head import DenseLayer
from akidb_mlx_plugin.checkpoints.safetensors import TensorInfo
from akidb_mlx_plugin.errors import ModelNotFoundError


@dataclass(frozen=True)
class ScoreLayer:
    """One linear layer of a head.

    Attributes:
        name: its name in the checkpoint, after the name of the encoder if it is part of that.
        activation: what follows it; in `{}`, the setting that names it.
        norm: name of the layer norm after the activation; "" for none.
    """

    name: str
    activation: str = "identity"
    norm: str = ""


@dataclass(frozen=True)
class ScoreHead:
    """The head of transformers' class for sequence classification.

    Attributes:
        layers: in order; the last one gives the scores.
        pooling: which token vectors it takes; in `{}`, the setting that names it.
    """

    layers: tuple[ScoreLayer, ...]
    pooling: str = "cls"


_BERT = ScoreHead((ScoreLayer("pooler.dense", "tanh"), ScoreLayer("classifier")))
_ROBERTA = ScoreHead((ScoreLayer("classifier.dense", "tanh"), ScoreLayer("classifier.out_proj")))
_ELECTRA = ScoreHead((ScoreLayer("classifier.dense", "gelu"), ScoreLayer("classifier.out_proj")))
_DISTILBERT = ScoreHead((ScoreLayer("pre_classifier", "relu"), ScoreLayer("classifier")))
_MODERNBERT = ScoreHead(
    (ScoreLayer("head.dense", "{classifier_activation}", norm="head.norm"), ScoreLayer("classifier")),
    pooling="{classifier_pooling}",
)
# By model_type. Source: transformers' `*ForSequenceClassification`; for "new", Alibaba's class of that name.
SCORE_HEADS: Mapping[str, ScoreHead] = {
    "bert": _BERT,
    "camembert": _ROBERTA,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "gte": _BERT,
    "modernbert": _MODERNBERT,
    "mpnet": _ROBERTA,
    "new": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
# transformers' defaults of the settings named above.
_DEFAULTS = {"classifier_activation": "gelu", "classifier_pooling": "cls"}


def score_layers(
    place: Path, config: Mapping[str, Any], stored: Mapping[str, TensorInfo]
) -> tuple[tuple[str, ...], tuple[DenseLayer, ...]]:
    """Return the pooling and the layers of a checkpoint's head.

    Args:
        place: the checkpoint, for messages.
        config: `config.json`.
        stored: its tensors; empty before the weights are downloaded, when the number of scores is that of the labels
            in `config.json`.
    Raises:
        ModelNotFoundError: no head is known for the architecture, or the weights have none.
    """
    head = SCORE_HEADS.get(str(config["model_type"]))
    if head is None:
        raise ModelNotFoundError(
            f"{place}: rerankers of the architecture {config['model_type']!r} are not supported; supported are "
            f"{', '.join(SCORE_HEADS)}, and Qwen3-Reranker"
        )
    width = int(config["hidden_size"])
    layers = []
    for layer in head.layers:
        name = _stored_name(layer.name, stored)
        weight = stored.get(f"{name}.weight")
        if stored and (weight is None or len(weight.shape) != 2):
            raise ModelNotFoundError(
                f"{place} has no matrix {layer.name}.weight, which gives the scores of {config['model_type']} "
                "rerankers; it holds an encoder alone: train a reranker from it, or use it with Embedder"
            )
        norm = _stored_name(layer.norm, stored) if layer.norm else ""
        is_last = layer is head.layers[-1]
        out = weight.shape[0] if weight else _count_labels(config) if is_last else width
        layers.append(
            DenseLayer(
                None,
                width,
                out,
                bias=f"{name}.bias" in stored,
                activation=_setting(layer.activation, config),
                prefix=name,
                norm=norm,
                norm_eps=_epsilon(config) if norm else 1e-5,
                norm_bias=f"{norm}.bias" in stored,
            )
        )
        width = out
    return (_setting(head.pooling, config),), tuple(layers)


def _stored_name(name: str, stored: Mapping[str, TensorInfo]) -> str:
    """Return a layer's name in the weights, where the encoder's own layers come after its name, as in "bert."."""
    full = (other.removesuffix(".weight") for other in stored if other.endswith(f".{name}.weight"))
    return name if f"{name}.weight" in stored else next(full, name)


def _setting(value: str, config: Mapping[str, Any]) -> str:
    if not value.startswith("{"):
        return value
    key = value.strip("{}")
    return str(config.get(key) or _DEFAULTS[key])


def _epsilon(config: Mapping[str, Any]) -> float:
    value = config.get("norm_eps", 1e-5)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ModelNotFoundError(f"config.json: norm_eps must be a small number, not {value!r}")
    return float(value)


def _count_labels(config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else config.get("num_labels")
    # transformers' default is two.
    return count if isinstance(count, int) and count > 0 else 2
