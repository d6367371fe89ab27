"""What model cards say about a family of checkpoints, but its files often do not: pooling, prompts, end token, lengths.

A checkpoint belongs to a family by the repository it came from, by `base_model` in the front matter of its README.md,
or because its own prompts are the family's; never by the name of a folder.
A family only fills gaps: the checkpoint's own settings take precedence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from akidb_mlx_plugin.types import Similarity


@dataclass(frozen=True)
class Family:
    """Checkpoints that are used in the same way.

    Attributes:
        card: repository of the model card that this was taken from, at https://huggingface.co/.
        repos: the family's other repositories.
        pooling: how token vectors become one.
        prompts: by "query", "document" or the name of a task.
        end_token: every text must end with it, whatever the tokenizer's template says.
        dimensions: lengths that vectors may be truncated to (longer than native: ignored); empty if not trained for it.
        max_tokens: longest text it was trained on, if it has more positions; None if unknown.
        similarity: function that compares its vectors.
        dense: dense layers after pooling; a bare checkpoint without them would give different vectors.
        model_type: architecture whose checkpoints are recognized by the family's prompts; None for none.
    """

    card: str
    repos: tuple[str, ...] = ()
    pooling: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    end_token: str | None = None
    dimensions: range | tuple[int, ...] = ()
    max_tokens: int | None = None
    similarity: Similarity = "cosine"
    dense: int = 0
    model_type: str | None = None

    def dimensions_within(self, width: int) -> range | tuple[int, ...]:
        """Return the lengths that vectors of `width` components may be truncated to; empty if none are known."""
        if isinstance(self.dimensions, range):
            return range(self.dimensions.start, width + 1)
        return tuple(length for length in self.dimensions if length <= width)


_E5 = MappingProxyType({"query": "query: ", "document": "passage: "})
_WEB_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query"
_INSTRUCT = MappingProxyType({"query": f"{_WEB_SEARCH}\nQuery: ", "document": ""})
# With a full stop, unlike the others: section "Usage".
_STELLA = MappingProxyType({"query": f"{_WEB_SEARCH}.\nQuery: ", "document": ""})
_PASSAGES = MappingProxyType(
    {"query": "Represent this sentence for searching relevant passages: ", "document": ""},
)
_NOMIC = MappingProxyType(
    {
        "query": "search_query: ",
        "document": "search_document: ",
        "classification": "classification: ",
        "clustering": "clustering: ",
    }
)
# Section "Prompt Instructions".
_EMBEDDING_GEMMA = MappingProxyType(
    {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
        "question_answering": "task: question answering | query: ",
        "classification": "task: classification | query: ",
        "clustering": "task: clustering | query: ",
        "sentence_similarity": "task: sentence similarity | query: ",
        "code_retrieval": "task: code retrieval | query: ",
    }
)
_ST = "sentence-transformers/"


def _names(organization: str, names: str) -> tuple[str, ...]:
    return tuple(f"{organization}/{name}" for name in names.split())


FAMILIES = (
    Family(
        "Qwen/Qwen3-Embedding-0.6B",
        (*_names("Qwen", "Qwen3-Embedding-4B Qwen3-Embedding-8B"), "mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ"),
        pooling="lasttoken",
        # No space after the colon: config_sentence_transformers.json upstream.
        prompts={"query": f"{_WEB_SEARCH}\nQuery:", "document": ""},
        # Not the tokenizer's eos_token, which is <|im_end|>.
        end_token="<|endoftext|>",
        dimensions=range(32, 4097),
        model_type="qwen3",
    ),
    Family(
        "google/embeddinggemma-300m",
        ("mlx-community/embeddinggemma-300m-4bit",),
        pooling="mean",
        prompts=_EMBEDDING_GEMMA,
        dimensions=(128, 256, 512, 768),
        dense=2,
        model_type="gemma3_text",
    ),
    Family("google/embeddinggemma-2", (), "mean", _EMBEDDING_GEMMA, dimensions=(128, 256, 512, 768), max_tokens=8192),
    Family(
        "BAAI/bge-small-en-v1.5",
        _names("BAAI", "bge-base-en-v1.5 bge-large-en-v1.5 bge-small-en bge-base-en bge-large-en"),
        pooling="cls",
        prompts=_PASSAGES,
    ),
    Family(
        "BAAI/bge-small-zh-v1.5",
        _names("BAAI", "bge-base-zh-v1.5 bge-large-zh-v1.5 bge-small-zh bge-base-zh bge-large-zh"),
        pooling="cls",
        prompts={"query": "为这个句子生成表示以用于检索相关文章：", "document": ""},  # noqa: RUF001
    ),
    Family("BAAI/bge-m3", ("BAAI/bge-m3-unsupervised",), pooling="cls"),
    Family(
        "intfloat/e5-base-v2",
        _names(
            "intfloat",
            "e5-small-v2 e5-large-v2 e5-small e5-base e5-large e5-small-unsupervised e5-base-unsupervised "
            "e5-large-unsupervised multilingual-e5-small multilingual-e5-base multilingual-e5-large",
        ),
        pooling="mean",
        prompts=_E5,
    ),
    Family("intfloat/multilingual-e5-large-instruct", pooling="mean", prompts=_INSTRUCT),
    Family(
        "intfloat/e5-mistral-7b-instruct",
        _names("Salesforce", "SFR-Embedding-Mistral SFR-Embedding-2_R"),
        pooling="lasttoken",
        prompts=_INSTRUCT,
        end_token="</s>",
    ),
    Family("nomic-ai/nomic-embed-text-v1", ("nomic-ai/nomic-embed-text-v1-unsupervised",), "mean", _NOMIC),
    Family("nomic-ai/nomic-embed-text-v1.5", (), "mean", _NOMIC, dimensions=(64, 128, 256, 512, 768)),
    Family("nomic-ai/nomic-embed-text-v2-moe", (), "mean", _NOMIC, dimensions=(256, 768)),
    Family("nomic-ai/modernbert-embed-base", (), "mean", _NOMIC, dimensions=(256, 768)),
    Family("mixedbread-ai/mxbai-embed-large-v1", (), "cls", _PASSAGES, dimensions=(512, 1024)),
    Family("mixedbread-ai/deepset-mxbai-embed-de-large-v1", (), "mean", _E5, dimensions=(512, 1024)),
    Family("mixedbread-ai/mxbai-embed-xsmall-v1", pooling="mean"),
    Family(
        "Snowflake/snowflake-arctic-embed-m",
        _names(
            "Snowflake",
            "snowflake-arctic-embed-xs snowflake-arctic-embed-s snowflake-arctic-embed-m-long snowflake-arctic-embed-l",
        ),
        pooling="cls",
        prompts=_PASSAGES,
    ),
    Family("Snowflake/snowflake-arctic-embed-m-v1.5", (), "cls", _PASSAGES, dimensions=(256, 768)),
    Family(
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        ("Snowflake/snowflake-arctic-embed-m-v2.0",),
        pooling="cls",
        prompts={"query": "query: ", "document": ""},
        dimensions=(256, 768, 1024),
    ),
    Family("thenlper/gte-base", _names("thenlper", "gte-small gte-large"), pooling="mean"),
    Family(
        "Alibaba-NLP/gte-base-en-v1.5",
        _names("Alibaba-NLP", "gte-large-en-v1.5 gte-modernbert-base"),
        pooling="cls",
    ),
    Family("Alibaba-NLP/gte-multilingual-base", pooling="cls", dimensions=range(128, 769)),
    Family(
        "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
        ("Alibaba-NLP/gte-Qwen2-7B-instruct",),
        pooling="lasttoken",
        prompts=_INSTRUCT,
        end_token="<|endoftext|>",
    ),
    Family("NovaSearch/stella_en_400M_v5", ("dunzhang/stella_en_400M_v5",), pooling="mean", prompts=_STELLA, dense=1),
    Family(
        "NovaSearch/stella_en_1.5B_v5",
        ("dunzhang/stella_en_1.5B_v5",),
        pooling="mean",
        prompts=_STELLA,
        # Appended by its tokenizer's own code, as in gte-Qwen2, from which it was made.
        end_token="<|endoftext|>",
        dense=1,
    ),
    Family(
        "ibm-granite/granite-embedding-125m-english",
        _names(
            "ibm-granite",
            "granite-embedding-30m-english granite-embedding-107m-multilingual granite-embedding-278m-multilingual "
            "granite-embedding-small-english-r2 granite-embedding-english-r2 granite-embedding-97m-multilingual-r2",
        ),
        pooling="cls",
    ),
    Family("ibm-granite/granite-embedding-311m-multilingual-r2", pooling="cls", dimensions=(128, 256, 384, 512, 768)),
    Family(
        "jinaai/jina-embeddings-v2-base-en",
        _names(
            "jinaai",
            "jina-embeddings-v2-small-en jina-embeddings-v2-base-de jina-embeddings-v2-base-es "
            "jina-embeddings-v2-base-zh jina-embeddings-v2-base-code",
        ),
        pooling="mean",
    ),
    Family(
        "jinaai/jina-embeddings-v3",
        ("jinaai/jina-embeddings-v3-hf",),
        pooling="mean",
        prompts={
            "query": "Represent the query for retrieving evidence documents: ",
            "document": "Represent the document for retrieval: ",
        },
        dimensions=(32, 64, 128, 256, 512, 768, 1024),
    ),
    Family(
        "jinaai/jina-embeddings-v5-text-small-retrieval",
        _names(
            "jinaai",
            "jina-embeddings-v5-text-small jina-embeddings-v5-text-nano jina-embeddings-v5-text-nano-retrieval",
        ),
        pooling="lasttoken",
        prompts={"query": "Query: ", "document": "Document: "},
        dimensions=(32, 64, 128, 256, 512, 768, 1024),
    ),
    Family(
        "voyageai/voyage-4-nano",
        pooling="mean",
        prompts={
            "query": "Represent the query for retrieving supporting documents: ",
            "document": "Represent the document for retrieval: ",
        },
        dimensions=(256, 512, 1024, 2048),
        dense=1,
        model_type="qwen3",
    ),
    # Its card has an instruction for each task, but no general one.
    Family("nvidia/llama-embed-nemotron-8b", pooling="mean"),
    Family(
        "nvidia/llama-nemotron-embed-1b-v2",
        ("nvidia/llama-3.2-nv-embedqa-1b-v2",),
        pooling="mean",
        prompts=_E5,
        dimensions=(384, 512, 768, 1024, 2048),
    ),
    Family(
        "nvidia/Nemotron-3-Embed-1B-BF16",
        _names("nvidia", "Nemotron-3-Embed-8B-BF16 Nemotron-3-Embed-1B-NVFP4"),
        pooling="mean",
        prompts=_E5,
    ),
    Family(
        "LiquidAI/LFM2.5-Embedding-350M",
        pooling="cls",
        prompts={"query": "query: ", "document": "document: "},
    ),
    Family(f"{_ST}LaBSE", pooling="cls", dense=1),
    Family(
        f"{_ST}all-MiniLM-L6-v2",
        _names(
            "sentence-transformers",
            "all-MiniLM-L12-v1 all-MiniLM-L12-v2 all-MiniLM-L6-v1 all-mpnet-base-v1 all-mpnet-base-v2 "
            "all-distilroberta-v1 all-roberta-large-v1 multi-qa-MiniLM-L6-cos-v1 multi-qa-mpnet-base-cos-v1 "
            "multi-qa-distilbert-cos-v1 msmarco-distilbert-cos-v5 msmarco-MiniLM-L6-cos-v5 msmarco-MiniLM-L12-cos-v5 "
            "paraphrase-MiniLM-L3-v2 paraphrase-MiniLM-L6-v2 paraphrase-MiniLM-L12-v2 paraphrase-mpnet-base-v2 "
            "paraphrase-albert-small-v2 paraphrase-distilroberta-base-v2 paraphrase-multilingual-MiniLM-L12-v2 "
            "paraphrase-multilingual-mpnet-base-v2 msmarco-distilbert-base-v4",
        ),
        pooling="mean",
    ),
    Family(
        f"{_ST}sentence-t5-base",
        _names(
            "sentence-transformers",
            "sentence-t5-large sentence-t5-xl sentence-t5-xxl gtr-t5-base gtr-t5-large gtr-t5-xl gtr-t5-xxl "
            "distiluse-base-multilingual-cased-v1 distiluse-base-multilingual-cased-v2",
        ),
        pooling="mean",
        dense=1,
    ),
    Family(
        f"{_ST}multi-qa-mpnet-base-dot-v1",
        _names(
            "sentence-transformers",
            "multi-qa-distilbert-dot-v1 multi-qa-MiniLM-L6-dot-v1 msmarco-distilbert-base-tas-b",
        ),
        pooling="cls",
        similarity="dot",
    ),
    Family(
        "facebook/contriever",
        ("facebook/contriever-msmarco", "facebook/mcontriever", f"{_ST}msmarco-distilbert-dot-v5"),
        pooling="mean",
        similarity="dot",
    ),
    Family(
        f"{_ST}static-retrieval-mrl-en-v1",
        (f"{_ST}static-similarity-mrl-multilingual-v1",),
        pooling="mean",
        dimensions=(32, 64, 128, 256, 512, 1024),
    ),
    Family(
        "minishlab/potion-base-8M",
        _names(
            "minishlab",
            "potion-base-2M potion-base-4M potion-base-32M potion-retrieval-32M potion-multilingual-128M",
        ),
        pooling="mean",
    ),
)
_BY_REPO = {repo.lower(): family for family in FAMILIES for repo in (family.card, *family.repos)}


def find_family(repo: str) -> Family | None:
    """Return the family of a repository; case-insensitive."""
    return _BY_REPO.get(repo.lower())


def find_family_by_prompts(model_type: object, prompts: Mapping[str, str]) -> Family | None:
    """Return the family with the same prompts, for a copy that does not reveal its repository.

    Args:
        model_type: the checkpoint's architecture.
        prompts: the checkpoint's own prompts, by kind.
    """
    for family in FAMILIES:
        same = all(prompts.get(kind, "") == family.prompts.get(kind, "") for kind in ("query", "document"))
        if family.model_type and family.model_type == model_type and same:
            return family
    return None
