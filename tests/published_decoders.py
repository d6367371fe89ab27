"""Published checkpoints of decoders, of those that look both ways, and conversions to MLX: see published_encoders.py."""

from __future__ import annotations

from published import Published

_QWEN3 = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_WEB_SEARCH = f"{_QWEN3} "
_GEMMA = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "Clustering": "task: clustering | query: ",
}
_VOYAGE = {
    "query": "Represent the query for retrieving supporting documents: ",
    "document": "Represent the document for retrieval: ",
}
_GEMMA_MODULES = "Transformer Pooling Dense Dense Normalize"

DECODERS = (
    Published(
        ("Qwen/Qwen3-Embedding-0.6B",),
        "qwen3",
        1024,
        pooling="lasttoken",
        tokens=None,
        longest=32768,
        prompts={"query": _QWEN3, "document": ""},
        query=_QWEN3,
        dimensions=range(32, 1024),
        end="<|endoftext|>",
    ),
    Published(
        ("Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-8B"),
        "qwen3",
        2560,
        pooling="lasttoken",
        tokens=None,
        longest=32768,
        prompts={"query": _QWEN3, "document": ""},
        query=_QWEN3,
        dimensions=range(32, 2560),
        end="<|endoftext|>",
    ),
    Published(
        ("google/embeddinggemma-300m",),
        "gemma3_text",
        768,
        _GEMMA_MODULES,
        tokens=2048,
        prompts=_GEMMA,
        query=_GEMMA["query"],
        document=_GEMMA["document"],
        dimensions=(128, 256, 512),
    ),
    Published(
        ("intfloat/e5-mistral-7b-instruct",),
        "mistral",
        4096,
        pooling="lasttoken",
        tokens=4096,
        prompts={
            "web_search_query": _WEB_SEARCH,
            "sts_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
        },
        query=_WEB_SEARCH,
        files={"tokenizer_config.json": {"add_bos_token": True, "add_eos_token": True}},
        end="</s>",
    ),
    Published(
        ("Salesforce/SFR-Embedding-Mistral",),
        "mistral",
        4096,
        pooling="lasttoken",
        tokens=4096,
        query=_WEB_SEARCH,
        files={"tokenizer_config.json": {"add_bos_token": True, "add_eos_token": True}},
        end="</s>",
    ),
    Published(
        ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "Alibaba-NLP/gte-Qwen2-7B-instruct"),
        "qwen2_both_ways",
        1536,
        pooling="lasttoken",
        tokens=8192,
        prompts={"query": _WEB_SEARCH},
        query=_WEB_SEARCH,
        files={
            "config.json": {
                "architectures": ["Qwen2ForCausalLM"],
                "auto_map": {
                    "AutoModel": "modeling_qwen.Qwen2Model",
                    "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
                },
            },
            "tokenizer_config.json": {"add_eos_token": True, "eos_token": "<|endoftext|>"},
        },
        end="<|endoftext|>",
    ),
    # Nothing in its settings says that it looks both ways: its code does.
    Published(
        ("NovaSearch/stella_en_1.5B_v5",),
        "qwen2_both_ways",
        1024,
        "Transformer Pooling Dense",
        prompts={"s2p_query": f"{_QWEN3[:-7]}.\nQuery: "},
        query=f"{_QWEN3[:-7]}.\nQuery: ",
        tanh=True,
        files={
            "config.json": {
                "architectures": ["Qwen2ForCausalLM"],
                "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"},
                "is_causal": None,
            },
        },
        end="<|endoftext|>",
    ),
    Published(
        ("nvidia/llama-nemotron-embed-1b-v2",),
        "llama_both_ways",
        2048,
        tokens=8192,
        query="query: ",
        document="passage: ",
        files={
            "config.json": {
                "model_type": "llama_bidirec",
                "architectures": ["LlamaBidirectionalModel"],
                "auto_map": {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"},
                "is_causal": None,
                "pooling": "avg",
            }
        },
        dimensions=(384, 512, 768, 1024),
    ),
    Published(
        ("nvidia/llama-embed-nemotron-8b",),
        "llama_both_ways",
        4096,
        tokens=32768,
        files={
            "config.json": {
                "model_type": "llama_bidirec",
                "architectures": ["LlamaBidirectionalModel"],
                "auto_map": {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"},
                "is_causal": None,
            }
        },
    ),
    # What is trained from Llama 3 in one direction, with its scaled rotary positions.
    Published(("org/llama-3-embedder",), "llama_scaled", 2048, pooling="lasttoken", tokens=8192),
    Published(
        ("nvidia/Nemotron-3-Embed-1B-BF16", "nvidia/Nemotron-3-Embed-8B-BF16"),
        "ministral3_both_ways",
        2048,
        tokens=None,
        longest=32768,
        prompts={"query": "query: ", "document": "passage: "},
        query="query: ",
        document="passage: ",
    ),
    Published(
        ("voyageai/voyage-4-nano",),
        "qwen3_projected",
        2048,
        tokens=32000,
        prompts=_VOYAGE,
        query=_VOYAGE["query"],
        document=_VOYAGE["document"],
        dimensions=(256, 512, 1024),
    ),
    # With the adapter merged.
    Published(
        ("jinaai/jina-embeddings-v5-text-small-retrieval",),
        "qwen3",
        1024,
        pooling="lasttoken",
        tokens=None,
        longest=32768,
        prompts={"query": "Query: ", "document": "Document: "},
        query="Query: ",
        document="Document: ",
        dimensions=(32, 64, 128, 256, 512, 768),
    ),
)
CONVERSIONS = (
    # mlx-lm's: without a pipeline.
    Published(
        ("mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ",),
        "qwen3",
        1024,
        "",
        "lasttoken",
        None,
        query=_QWEN3,
        base_model="Qwen/Qwen3-Embedding-0.6B",
        converted=True,
        longest=32768,
        dimensions=range(32, 1024),
        end="<|endoftext|>",
    ),
    # mlx-embeddings': the JSON files of the root alone.
    Published(
        ("mlx-community/embeddinggemma-300m-4bit",),
        "gemma3_text",
        768,
        _GEMMA_MODULES,
        tokens=2048,
        prompts=_GEMMA,
        query=_GEMMA["query"],
        document=_GEMMA["document"],
        base_model="google/embeddinggemma-300m",
        converted=True,
        dimensions=(128, 256, 512),
    ),
    Published(
        ("mlx-community/bge-small-en-v1.5-bf16",),
        "bert",
        384,
        pooling="cls",
        query="Represent this sentence for searching relevant passages: ",
        base_model="BAAI/bge-small-en-v1.5",
        converted=True,
    ),
    Published(
        ("mlx-community/bge-m3-mlx-fp16",),
        "xlm_roberta",
        1024,
        pooling="cls",
        tokens=8192,
        base_model="BAAI/bge-m3",
        converted=True,
    ),
    Published(
        ("mlx-community/all-MiniLM-L6-v2-4bit",),
        "bert",
        384,
        tokens=256,
        base_model="sentence-transformers/all-MiniLM-L6-v2",
        converted=True,
    ),
    Published(
        ("mlx-community/multilingual-e5-small-mlx",),
        "bert",
        384,
        query="query: ",
        document="passage: ",
        base_model="intfloat/multilingual-e5-small",
        converted=True,
    ),
    Published(
        ("mlx-community/snowflake-arctic-embed-l-v2.0-bf16",),
        "xlm_roberta",
        1024,
        pooling="cls",
        tokens=8192,
        prompts={"query": "query: "},
        query="query: ",
        base_model="Snowflake/snowflake-arctic-embed-l-v2.0",
        converted=True,
        dimensions=(256, 768),
    ),
    Published(
        ("mlx-community/nomicai-modernbert-embed-base-bf16",),
        "modernbert",
        768,
        tokens=8192,
        query="search_query: ",
        document="search_document: ",
        base_model="nomic-ai/modernbert-embed-base",
        converted=True,
        dimensions=(256,),
    ),
)
