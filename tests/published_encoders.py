"""Published checkpoints of BERT, its relatives and other encoders: what their files say, and what must come out.

Facts are those of the repositories at huggingface.co, as model cards, file listings and other people's code quote them
(mteb, text-embeddings-inference, vLLM). What none of these says is what sentence-transformers' own scripts have always
written: older names of classes, a flag for each pooling, `max_seq_length` and `do_lower_case`.
"""

from __future__ import annotations

from typing import Any

from published import Published

_PASSAGES = "Represent this sentence for searching relevant passages: "
_STELLA = "Instruct: Given a web search query, retrieve relevant passages that answer the query.\nQuery: "
_NOMIC = {
    "query": "search_query: ",
    "document": "search_document: ",
    "classification": "classification: ",
    "clustering": "clustering: ",
}
_NO_NORM, _NO_PROMPTS = "Transformer Pooling", {"query": "", "document": ""}


def _names(organization: str, names: str) -> tuple[str, ...]:
    return tuple(f"{organization}/{name}" for name in names.split())


def _code(name: str, **others: str) -> dict[str, dict[str, Any]]:
    """Return the settings of a checkpoint that names code of its own."""
    return {"config.json": {"auto_map": {"AutoConfig": "configuration.Config", "AutoModel": name, **others}}}


def _st(names: str) -> tuple[str, ...]:
    return _names("sentence-transformers", names)


BERT = (
    Published(_st("all-MiniLM-L6-v2"), "bert", 384, tokens=256),
    Published(_st("all-MiniLM-L12-v2"), "bert", 384, tokens=128),
    Published(_st("paraphrase-MiniLM-L6-v2"), "bert", 384, _NO_NORM, tokens=128),
    Published(_st("multi-qa-MiniLM-L6-cos-v1"), "bert", 384),
    # The tokenizer is XLM-RoBERTa's.
    Published(_st("paraphrase-multilingual-MiniLM-L12-v2"), "bert", 384, tokens=128, modules=_NO_NORM),
    Published(
        _st("LaBSE"), "bert", 768, "Transformer Pooling Dense Normalize", "cls", 256, activation="activation.Tanh"
    ),
    Published(
        _names("BAAI", "bge-large-en-v1.5"),
        "bert",
        1024,
        pooling="cls",
        query=_PASSAGES,
        files={"sentence_bert_config.json": {"do_lower_case": True}, "tokenizer_config.json": {"do_lower_case": True}},
    ),
    Published(_names("BAAI", "bge-base-en-v1.5"), "bert", 768, pooling="cls", query=_PASSAGES),
    Published(_names("BAAI", "bge-small-en-v1.5"), "bert", 384, pooling="cls", query=_PASSAGES),
    Published(
        _names("intfloat", "e5-small-v2 multilingual-e5-small"), "bert", 384, query="query: ", document="passage: "
    ),
    Published(_names("intfloat", "e5-base-v2"), "bert", 768, query="query: ", document="passage: "),
    Published(_names("intfloat", "e5-large-v2"), "bert", 1024, query="query: ", document="passage: "),
    Published(_names("thenlper", "gte-small"), "bert", 384),
    Published(_names("thenlper", "gte-base"), "bert", 768),
    Published(_names("thenlper", "gte-large"), "bert", 1024),
    Published(
        _names("mixedbread-ai", "mxbai-embed-large-v1"),
        "bert",
        1024,
        _NO_NORM,
        "cls",
        prompts={"query": _PASSAGES, "passage": ""},
        query=_PASSAGES,
        dimensions=(512,),
    ),
    Published(
        _names("Snowflake", "snowflake-arctic-embed-xs snowflake-arctic-embed-s"),
        "bert",
        384,
        pooling="cls",
        prompts={"query": _PASSAGES},
        query=_PASSAGES,
    ),
    Published(
        _names("Snowflake", "snowflake-arctic-embed-m"),
        "bert",
        768,
        pooling="cls",
        prompts={"query": _PASSAGES},
        query=_PASSAGES,
    ),
    Published(
        _names("Snowflake", "snowflake-arctic-embed-l"),
        "bert",
        1024,
        pooling="cls",
        prompts={"query": _PASSAGES},
        query=_PASSAGES,
    ),
    Published(
        _names("Snowflake", "snowflake-arctic-embed-m-v1.5"),
        "bert",
        768,
        pooling="cls",
        prompts={"query": _PASSAGES},
        query=_PASSAGES,
        dimensions=(256,),
    ),
    # Bare, and its weights are a pickle: this is what `akidb-mlx convert` makes of it.
    Published(_names("facebook", "contriever"), "bert", 768, "", tokens=None, longest=512, similarity="dot"),
    Published(
        _names("jinaai", "jina-embeddings-v2-small-en"),
        "jina_bert_original",
        512,
        _NO_NORM,
        tokens=8192,
        files=_code("jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"),
    ),
    Published(
        _names("jinaai", "jina-embeddings-v2-base-en jina-embeddings-v2-base-de"),
        "jina_bert",
        768,
        _NO_NORM,
        tokens=8192,
        files=_code("jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"),
    ),
    Published(
        _names("jinaai", "jina-embeddings-v2-base-code"),
        "jina_bert_code",
        768,
        _NO_NORM,
        tokens=8192,
        files=_code("jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"),
    ),
)
RELATIVES = (
    Published(_st("all-distilroberta-v1"), "roberta", 768),
    Published(_st("paraphrase-multilingual-mpnet-base-v2"), "xlm_roberta_pads", 768, _NO_NORM, tokens=128),
    Published(_names("intfloat", "multilingual-e5-base"), "xlm_roberta", 768, query="query: ", document="passage: "),
    Published(_names("intfloat", "multilingual-e5-large"), "xlm_roberta", 1024, query="query: ", document="passage: "),
    Published(_names("ibm-granite", "granite-embedding-30m-english"), "roberta", 384, pooling="cls"),
    Published(_names("ibm-granite", "granite-embedding-125m-english"), "roberta", 768, pooling="cls"),
    Published(_names("ibm-granite", "granite-embedding-107m-multilingual"), "xlm_roberta", 384, pooling="cls"),
    Published(_names("ibm-granite", "granite-embedding-278m-multilingual"), "xlm_roberta", 768, pooling="cls"),
    Published(
        _names("Snowflake", "snowflake-arctic-embed-l-v2.0"),
        "xlm_roberta",
        1024,
        pooling="cls",
        tokens=8192,
        prompts={"query": "query: "},
        query="query: ",
        dimensions=(256, 768),
    ),
    # Its weights are a pickle: this is what `akidb-mlx convert` makes of it.
    Published(_names("BAAI", "bge-m3"), "xlm_roberta", 1024, pooling="cls", tokens=8192),
    Published(_st("all-mpnet-base-v2"), "mpnet", 768, tokens=384),
    Published(_st("multi-qa-mpnet-base-dot-v1"), "mpnet", 768, _NO_NORM, "cls", similarity="dot"),
    Published(_st("multi-qa-distilbert-cos-v1"), "distilbert_relu", 768),
    Published(_st("msmarco-distilbert-base-v4"), "distilbert", 768, _NO_NORM),
    Published(
        _st("distiluse-base-multilingual-cased-v2 distiluse-base-multilingual-cased-v1"),
        "distilbert",
        512,
        "Transformer Pooling Dense",
        tokens=128,
    ),
    Published(_st("sentence-t5-base sentence-t5-large"), "t5", 768, "Transformer Pooling Dense Normalize", tokens=256),
    Published(_st("gtr-t5-base gtr-t5-large"), "t5", 768, "Transformer Pooling Dense Normalize"),
)
MODERN = (
    Published(_names("Alibaba-NLP", "gte-modernbert-base"), "modernbert_bias", 768, _NO_NORM, "cls", 8192, prompts={}),
    Published(
        _names("nomic-ai", "modernbert-embed-base"),
        "modernbert",
        768,
        tokens=8192,
        prompts={},
        query="search_query: ",
        document="search_document: ",
        dimensions=(256,),
    ),
    Published(
        _names("ibm-granite", "granite-embedding-english-r2"),
        "modernbert_bias",
        768,
        pooling="cls",
        tokens=8192,
        prompts=_NO_PROMPTS,
    ),
    Published(
        _names("ibm-granite", "granite-embedding-small-english-r2"),
        "modernbert_bias",
        384,
        pooling="cls",
        tokens=8192,
        prompts=_NO_PROMPTS,
    ),
    Published(
        _names("nomic-ai", "nomic-embed-text-v1.5"),
        "nomic_bert_published",
        768,
        _NO_NORM,
        tokens=8192,
        query="search_query: ",
        document="search_document: ",
        dimensions=(64, 128, 256, 512),
        files=_code("nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"),
    ),
    Published(
        _names("nomic-ai", "nomic-embed-text-v1"),
        "nomic_bert_published",
        768,
        tokens=8192,
        query="search_query: ",
        document="search_document: ",
        files=_code("nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"),
    ),
    Published(
        _names("nomic-ai", "nomic-embed-text-v2-moe"),
        "nomic_bert_moe",
        768,
        prompts=_NOMIC,
        query="search_query: ",
        document="search_document: ",
        dimensions=(256,),
        files=_code("nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"),
    ),
    Published(
        _names("Snowflake", "snowflake-arctic-embed-m-long"),
        "nomic_bert_published",
        768,
        pooling="cls",
        tokens=2048,
        prompts={"query": _PASSAGES},
        query=_PASSAGES,
        files=_code("modeling_hf_nomic_bert.NomicBertModel")
        | {
            "sentence_bert_config.json": {"model_args": {"add_pooling_layer": False, "safe_serialization": True}},
        },
    ),
    Published(
        _names("Alibaba-NLP", "gte-base-en-v1.5"),
        "new",
        768,
        _NO_NORM,
        "cls",
        8192,
        files=_code("Alibaba-NLP/new-impl--modeling.NewModel"),
    ),
    Published(
        _names("Alibaba-NLP", "gte-large-en-v1.5"),
        "new",
        1024,
        _NO_NORM,
        "cls",
        8192,
        files=_code("Alibaba-NLP/new-impl--modeling.NewModel"),
    ),
    Published(
        _names("Alibaba-NLP", "gte-multilingual-base"),
        "new",
        768,
        pooling="cls",
        tokens=8192,
        dimensions=range(128, 768),
        files=_code(
            "Alibaba-NLP/new-impl--modeling.NewModel",
            AutoModelForTokenClassification="Alibaba-NLP/new-impl--modeling.NewForTokenClassification",
        ),
    ),
    Published(
        _names("Snowflake", "snowflake-arctic-embed-m-v2.0"),
        "gte",
        768,
        pooling="cls",
        tokens=8192,
        prompts={"query": "query: "},
        query="query: ",
        dimensions=(256,),
        files={
            "config.json": {
                "auto_map": {"AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel"},
                "unpad_inputs": "true",
                "use_memory_efficient_attention": "true",
            }
        },
    ),
    Published(
        _names("NovaSearch", "stella_en_400M_v5"),
        "new",
        1024,
        "Transformer Pooling Dense",
        prompts={
            "s2p_query": _STELLA,
            "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
        },
        query=_STELLA,
        dense="2_Dense_1024",
        files=_code("modeling.NewModel"),
    ),
    # Adapters are folders below that say nothing of the model itself.
    Published(
        _names("jinaai", "jina-embeddings-v3-hf"),
        "jina_embeddings_v3",
        1024,
        "",
        tokens=None,
        longest=8194,
        query="Represent the query for retrieving evidence documents: ",
        document="Represent the document for retrieval: ",
        dimensions=(32, 64, 128, 256, 512, 768),
    ),
    # With the adapter merged. EuroBERT's code is its own at Hugging Face, and transformers' here.
    Published(
        _names("jinaai", "jina-embeddings-v5-text-nano-retrieval"),
        "eurobert",
        768,
        pooling="lasttoken",
        tokens=8192,
        prompts={"query": "Query: ", "document": "Document: "},
        query="Query: ",
        document="Document: ",
        dimensions=(32, 64, 128, 256, 512),
        files=_code("modeling_eurobert.EuroBertModel"),
    ),
)
ENCODERS = BERT + RELATIVES + MODERN
