"""`akidb-mlx demo`: index the standard library's docstrings in Chroma and LanceDB, and search both."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from akidb_mlx_plugin.cli.model_options import PoolingOption
from akidb_mlx_plugin.cli.output import print_rows
from akidb_mlx_plugin.cli.rerank import RerankOption, count_candidates, sort_rows
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.cross_encoder import CrossEncoder
from akidb_mlx_plugin.errors import EmbeddingError
from akidb_mlx_plugin.installation import install_command

if TYPE_CHECKING:
    from rich.progress import Progress

    from akidb_mlx_plugin.benchmarks.corpus import Docstring

_QUESTIONS = (
    "how do I parse a date from a string",
    "split a path into folder and file name",
    "remove duplicates but keep the most common items",
)
_TEXTS = 1000
_CHUNK = 100
# Results per question: more for the user's own question than for each of the three built-in ones.
_HITS, _HITS_BUILT_IN = 5, 3


@dataclass(frozen=True)
class _Store:
    """One database of the demo: its contents, and functions to add and to search."""

    title: str
    names: Callable[[], set[str]]
    add: Callable[[Sequence[Docstring]], None]
    ask: Callable[[str, int], list[tuple[str, str, float]]]


def demo(
    question: Annotated[str | None, typer.Argument(help="A question; default: three built-in ones.")] = None,
    path: Annotated[Path | None, typer.Option(help="Folder for the two databases.")] = None,
    model: Annotated[str, typer.Option(help="Model to embed with.")] = "minilm-l6-v2",
    pooling: PoolingOption = None,
    rerank: RerankOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Index 1,000 docstrings of the standard library in Chroma and LanceDB, and answer questions from both.

    Example: akidb-mlx demo 'how do I parse a date from a string'

    Example: akidb-mlx demo --rerank ms-marco-minilm-l6
    """
    from akidb_mlx_plugin.benchmarks.corpus import popular_docstrings
    from akidb_mlx_plugin.checkpoints.lookup import download_model
    from akidb_mlx_plugin.hub.cache import default_cache_dir

    for name in (model, rerank):
        if name:
            download_model(name, show_progress=sys.stderr.isatty())
    folder = path or default_cache_dir().parent / "demo"
    # A name that both databases accept.
    short = re.sub(r"[^A-Za-z0-9]+", "_", f"{model} {pooling or ''}").strip("_")[-60:]
    version = f"python_{sys.version_info.major}_{sys.version_info.minor}_{short}"
    corpus = popular_docstrings(_TEXTS)
    config = EmbeddingConfig.from_arguments(model, pooling=pooling)
    stores = [_open_chroma(folder / "chroma", version, config), _open_lancedb(folder / "lancedb", version, config)]
    from akidb_mlx_plugin.progress import make_progress

    with make_progress(transient=True) as bar:
        for store in stores:
            _fill(store, corpus, bar)
    questions, count = ((question,), _HITS) if question else (_QUESTIONS, _HITS_BUILT_IN)
    with CrossEncoder(rerank) if rerank else nullcontext() as encoder:
        rows = [row for asked in questions for store in stores for row in _answers(store, asked, count, encoder)]
    print_rows(rows, as_json=json, title="Answers from Python's standard library")


def _fill(store: _Store, corpus: Sequence[Docstring], bar: Progress) -> None:
    """Add missing documents, so that an interrupted run can continue."""
    present = store.names()
    missing = [doc for doc in corpus if doc.name not in present]
    task = bar.add_task(f"{store.title}: embedding", total=len(missing))
    begun = time.perf_counter()
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        store.add(chunk)
        bar.advance(task, len(chunk))
    if missing:
        seconds = time.perf_counter() - begun
        bar.console.print(
            f"{store.title}: {len(missing)} texts in {seconds:.1f} s, {len(missing) / seconds:.0f} texts/s"
        )


def _answers(store: _Store, question: str, count: int, encoder: CrossEncoder | None) -> list[dict[str, Any]]:
    begun = time.perf_counter()
    hits = store.ask(question, count_candidates(count, encoder))
    found: list[dict[str, Any]] = [
        {"score": round(score, 3), "found": name, "text": text} for name, text, score in hits
    ]
    if encoder:
        found = sort_rows(found, question, encoder, count)
    milliseconds = (time.perf_counter() - begun) * 1000
    return [
        {
            "question": question,
            "database": store.title,
            **row,
            "text": " ".join(row["text"].split())[:60],
            "ms": round(milliseconds, 1),
        }
        for row in found
    ]


def _open_chroma(folder: Path, name: str, config: EmbeddingConfig) -> _Store:
    try:
        import chromadb
        from akidb_mlx_chroma import MLXEmbeddingFunction
        from chromadb.config import Settings
    except ImportError as error:
        raise EmbeddingError(f"the demo needs Chroma ({error}): {install_command('all')}") from error
    client = chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))
    collection = client.get_or_create_collection(
        name,
        embedding_function=MLXEmbeddingFunction.from_config(config),  # type: ignore[arg-type]  # Chroma types it for images too
    )

    def add(docs: Sequence[Docstring]) -> None:
        collection.upsert(ids=[d.name for d in docs], documents=[d.text for d in docs])

    def ask(question: str, count: int) -> list[tuple[str, str, float]]:
        found = collection.query(query_texts=[question], n_results=count)
        documents, distances = found["documents"] or [[]], found["distances"] or [[]]
        return [
            (name, text, 1 - distance)
            for name, text, distance in zip(found["ids"][0], documents[0], distances[0], strict=True)
        ]

    return _Store("Chroma", lambda: set(collection.get(include=[])["ids"]), add, ask)


def _open_lancedb(folder: Path, name: str, config: EmbeddingConfig) -> _Store:
    try:
        import lancedb
        from akidb_mlx_lancedb import MLXEmbeddings
        from lancedb.pydantic import LanceModel, Vector
        from lancedb.query import LanceVectorQueryBuilder
    except ImportError as error:
        raise EmbeddingError(f"the demo needs LanceDB ({error}): {install_command('all')}") from error
    function = MLXEmbeddings.from_config(config)

    class Entry(LanceModel):
        name: str
        text: str = function.SourceField()  # type: ignore[no-untyped-call]
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(folder).create_table(name, schema=Entry, exist_ok=True)

    def add(docs: Sequence[Docstring]) -> None:
        table.add([{"name": d.name, "text": d.text} for d in docs])

    def ask(question: str, count: int) -> list[tuple[str, str, float]]:
        search = cast(LanceVectorQueryBuilder, table.search(question))
        hits = search.distance_type(function.distance_type()).limit(count).to_list()
        return [(hit["name"], hit["text"], 1 - hit["_distance"]) for hit in hits]

    return _Store("LanceDB", lambda: set(table.to_arrow().column("name").to_pylist()), add, ask)
