"""Whether a checkpoint is a reranker, and what only model cards say about families of rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.families import find_family
from akidb_mlx_plugin.checkpoints.readme import base_models, read_front_matter
from akidb_mlx_plugin.checkpoints.sentence_transformers import list_module_kinds, read_json
from akidb_mlx_plugin.errors import ModelNotFoundError

_SCORES = "ForSequenceClassification"
_ANSWERS = "ForCausalLM"


@dataclass(frozen=True)
class AnswerFormat:
    """How a language model is asked whether a text answers a query, and how its answer is read.

    Attributes:
        before: tokenized on its own, before the text.
        content: what precedes the instruction, the query and the text; only these together are truncated.
        after: tokenized on its own, after the text.
        words: tokens whose scores are compared: for no, and for yes.
        instruction: the default.
        max_tokens: longest pair, all of the above included.
    """

    before: str
    content: tuple[str, str, str]
    after: str
    words: tuple[str, str]
    instruction: str
    max_tokens: int


# Source: the model card of Qwen/Qwen3-Reranker-0.6B, "Transformers Usage".
QWEN3_RERANKER = AnswerFormat(
    before="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    content=("<Instruct>: ", "\n<Query>: ", "\n<Document>: "),
    after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    words=("no", "yes"),
    instruction="Given a web search query, retrieve relevant passages that answer the query",
    max_tokens=8192,
)
_QWEN3_REPOS = frozenset(
    f"{owner}/qwen3-reranker-{size}{suffix}"
    for size in ("0.6b", "4b", "8b")
    for owner, suffix in (("qwen", ""), ("mlx-community", "-4bit"), ("mlx-community", "-8bit"))
) | {f"mlx-community/qwen3-reranker-{size}-mxfp8" for size in ("0.6b", "4b", "8b")}


def is_reranker(folder: Path, config: Mapping[str, Any], repo: str = "") -> bool:
    """Return whether a checkpoint scores pairs of texts rather than embedding single ones.

    Args:
        folder: the checkpoint.
        config: its `config.json`.
        repo: repository it came from.
    """
    kinds = list_module_kinds(folder)
    if kinds is not None and kinds != ["Transformer"]:
        return "LogitScore" in kinds
    if saved_as := _saved_as(folder):
        return saved_as == "CrossEncoder"
    return _architecture(config).endswith(_SCORES) or _is_qwen3_reranker(folder, config, repo)


def refuse_reranker(folder: Path, config: Mapping[str, Any], repo: str = "") -> None:
    """Raise ModelNotFoundError for a reranker, in the place of an embedding model."""
    if is_reranker(folder, config, repo):
        raise ModelNotFoundError(
            f"{repo or folder} is a reranker, which scores pairs of texts and makes no vectors: use it as "
            "CrossEncoder(model), and embed with another model, such as minilm-l6-v2"
        )


def refuse_embedder(folder: Path, config: Mapping[str, Any], repo: str = "") -> None:
    """Raise ModelNotFoundError for an embedding model, or any other, in the place of a reranker."""
    if is_reranker(folder, config, repo):
        return
    pooled = "Pooling" in (list_module_kinds(folder) or [])
    known = find_family(repo) or any(find_family(base) for base in base_models(folder))
    if pooled or known:
        what = "is an embedding model, which makes a vector of each text and scores no pairs: use it as Embedder(model)"
    elif _architecture(config).endswith(_ANSWERS):
        what = (
            "is a language model that nothing says is a reranker: neither a LogitScore in modules.json, nor its "
            "repository, nor base_model or pipeline_tag (text-ranking) in its README.md"
        )
    else:
        what = f"has the architecture {_architecture(config) or 'of no class'}, not one that ends in {_SCORES}"
    raise ModelNotFoundError(f"{repo or folder} {what}; rerankers are, for example, ms-marco-minilm-l6")


def answer_format(folder: Path, config: Mapping[str, Any], repo: str = "") -> AnswerFormat | None:
    """Return how a language model is asked; None for a model with a head for scores.

    Raises:
        ModelNotFoundError: a language model whose format is not known.
    """
    if not _architecture(config).endswith(_ANSWERS):
        return None
    if config.get("model_type") != "qwen3":
        raise ModelNotFoundError(
            f"{repo or folder} is a {config.get('model_type')} that answers in words; of such rerankers only "
            "Qwen3-Reranker is supported"
        )
    return QWEN3_RERANKER


def _is_qwen3_reranker(folder: Path, config: Mapping[str, Any], repo: str) -> bool:
    if config.get("model_type") != "qwen3" or not _architecture(config).endswith(_ANSWERS):
        return False
    named = (repo, *base_models(folder))
    ranks = read_front_matter(folder).get("pipeline_tag") == "text-ranking"
    return ranks or any(name.lower() in _QWEN3_REPOS for name in named)


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _saved_as(folder: Path) -> str:
    file = folder / "config_sentence_transformers.json"
    return str(read_json(file).get("model_type", "")) if file.is_file() else ""
