"""Checkpoints with their real weights: vectors beside those of sentence-transformers, and what conversions cost.

    python tests/benchmarks/real_weights.py FOLDER[=REPOSITORY] ... --torch PYTHON

Texts of mixed lengths and scripts are embedded as documents and as queries and compared with what
sentence-transformers makes of them in another interpreter. Each conversion is compared with float32 over the documents,
as `akidb-mlx convert` stores it and as mlx-community publishes it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from mixed_texts import mixed_texts
from published_layout import convert_as_published, rearrange
from quantized_neighbours import NEIGHBOURS, nearest, overlap

from akidb_mlx_plugin import Embedder
from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import Recipe, choose_recipe
from akidb_mlx_plugin.inference.tokenizer import load_text_tokenizer
from akidb_mlx_plugin.types import Vector

HERE = Path(__file__).parent
# The first is what the sizes of the others are compared with.
RECIPES = {
    "4 bits": choose_recipe(4),
    "8 bits": choose_recipe(8),
    "mixed": choose_recipe(name="mixed"),
}
OURS, PUBLISHED = "akidb-mlx convert", "mlx-community"
# Texts that say whether the same numbers in the other layout give the same vectors.
_FEW = 50


@dataclass(frozen=True)
class Reference:
    """Texts, and the vectors that sentence-transformers makes of them by kind."""

    texts: list[str]
    vectors: Mapping[str, Vector]


@dataclass(frozen=True)
class Row:
    """What one conversion costs.

    Attributes:
        stored: its recipe.
        layout: how its files are laid out.
        megabytes: size of its weights.
        ratio: that size to the one of plain 4 bits in our layout.
        mean_cosine, least_cosine: of its vectors to those of float32.
        overlap: mean share of a text's ten nearest neighbours that stay.
        moved: largest difference that laying out the same numbers in the other way makes; None: not tried.
        family: the repository by which its family is known.
    """

    stored: str
    layout: str
    megabytes: float
    ratio: float
    mean_cosine: float
    least_cosine: float
    overlap: float
    moved: float | None
    family: str


@dataclass(frozen=True)
class Report:
    """What was found of a checkpoint.

    Attributes:
        checkpoint: repository or folder name.
        texts, tokens, truncated: how many, the last two over documents and queries.
        dimension: length of the vectors.
        differences: largest absolute difference of a component to sentence-transformers, by kind.
        rows: conversions.
    """

    checkpoint: str
    texts: int
    tokens: int
    truncated: int
    dimension: int
    differences: Mapping[str, float]
    rows: Sequence[Row]


def read_reference(folder: Path) -> Reference:
    """Read `texts.json` and `vectors.npz`."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    with np.load(folder / "vectors.npz") as arrays:
        return Reference(texts, dict(arrays))


def make_reference(checkpoint: Checkpoint, folder: Path, python: str, count: int, tokens: int) -> None:
    """Choose texts, some of them longer than the model takes, and have sentence-transformers embed them.

    Args:
        checkpoint: the model.
        folder: where texts and vectors go; texts that are there already are taken.
        python: an interpreter that has sentence-transformers.
        count: how many texts.
        tokens: of all together, about.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "texts.json").exists():
        tokenizer = load_text_tokenizer(replace(checkpoint, max_tokens=1 << 30))
        texts = mixed_texts(
            count, checkpoint.max_tokens * 9 // 8, tokens, lambda some: [len(row) for row in tokenizer.encode(some).ids]
        )
        (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0), encoding="utf-8")
    subprocess.run(
        [python, str(HERE / "real_weights_torch.py"), str(checkpoint.root), str(folder)],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def measure(
    folder: Path,
    reference: Reference,
    scratch: Path,
    recipes: Mapping[str, Recipe],
    repo: str = "",
) -> Report:
    """Compare a checkpoint with its reference, and its conversions with itself.

    Args:
        folder: the checkpoint.
        reference: what sentence-transformers makes of it.
        scratch: an empty folder for the conversions.
        recipes: by name, the plain one first.
        repo: the repository it came from.
    """
    _say(f"{repo or folder.name}: {len(reference.texts)} texts in float32")
    with Embedder.load(folder) as embedder:
        found = {kind: embedder.embed(reference.texts, kind=kind) for kind in reference.vectors}
    documents = _unit(found["document"].embeddings)
    differences = {kind: float(np.abs(found[kind].embeddings - reference.vectors[kind]).max()) for kind in found}
    _say(f"  largest difference to sentence-transformers: {max(differences.values()):.1e}")
    rows: list[Row] = []
    for stored, recipe in recipes.items():
        for row in _measure_recipe(folder, scratch / stored, stored, recipe, repo, reference.texts, documents):
            rows.append(replace(row, ratio=row.megabytes / (rows or [row])[0].megabytes))
    return Report(
        repo or folder.name,
        len(reference.texts),
        sum(response.usage.total_tokens for response in found.values()),
        sum(response.usage.truncated for response in found.values()),
        documents.shape[1],
        differences,
        rows,
    )


def _measure_recipe(
    folder: Path, scratch: Path, stored: str, recipe: Recipe, repo: str, texts: Sequence[str], documents: Vector
) -> Iterator[Row]:
    """Yield a row for our layout and one for the published one; their folders are gone afterwards."""
    few = sorted(texts, key=len)[:_FEW]
    _say(f"  {stored}, {OURS}")
    ours = convert_checkpoint(folder, scratch / "ours", recipe).folder
    with Embedder.load(ours) as embedder:
        vectors, some = embedder.embed(texts).embeddings, embedder.embed(few).embeddings
    with Embedder.load(rearrange(ours, scratch / "moved", repo)) as embedder:
        moved = float(np.abs(embedder.embed(few).embeddings - some).max())
    yield _compare(stored, OURS, ours, vectors, documents, moved)
    _say(f"  {stored}, {PUBLISHED}")
    published = convert_as_published(folder, scratch / "published", recipe, repo)
    with Embedder.load(published) as embedder:
        vectors = embedder.embed(texts).embeddings
    yield _compare(stored, PUBLISHED, published, vectors, documents, None)
    shutil.rmtree(scratch)


def _compare(stored: str, layout: str, folder: Path, vectors: Vector, documents: Vector, moved: float | None) -> Row:
    vectors = _unit(vectors)
    cosines = (vectors * documents).sum(axis=1)
    return Row(
        stored,
        layout,
        sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6,
        1.0,
        float(cosines.mean()),
        float(cosines.min()),
        overlap(nearest(documents), nearest(vectors)),
        moved,
        read_checkpoint(folder).origins["family"],
    )


def _unit(vectors: Vector) -> Vector:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def print_report(report: Report) -> None:
    """Print a report as a paragraph and a table."""
    differences = ", ".join(f"{kind} {value:.1e}" for kind, value in report.differences.items())
    print(
        f"{report.checkpoint}: {report.texts} texts, {report.tokens:,} tokens ({report.truncated} truncated), "
        f"{report.dimension} dimensions\n"
        f"float32, largest difference to sentence-transformers: {differences}"
    )
    moved = [row.moved for row in report.rows if row.moved is not None]
    if moved:
        print(f"the same numbers in the layout of {PUBLISHED}, largest difference: {max(moved):.1e}")
    print(f"\n| stored | by | MB | to 4 bits | mean cosine | least cosine | overlap@{NEIGHBOURS} |")
    print("|---|---|---|---|---|---|---|")
    for row in report.rows:
        print(
            f"| {row.stored} | {row.layout} | {row.megabytes:.1f} | {row.ratio:.2f} | {row.mean_cosine:.4f} | "
            f"{row.least_cosine:.4f} | {row.overlap:.3f} |"
        )
    print(flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 1 where a difference is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER[=REPOSITORY]", help="a checkpoint, and where it is from")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has sentence-transformers")
    parser.add_argument("--references", type=Path, help="keep texts and reference vectors here, and take those there")
    parser.add_argument("--texts", type=int, default=500, help="how many texts (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=25_000, help="of all texts, about (default: %(default)s)")
    parser.add_argument("--within", type=float, help="largest difference to sentence-transformers that is in order")
    parser.add_argument("--json", type=Path, help="write the reports here too")
    options = parser.parse_args(arguments)
    reports = []
    with tempfile.TemporaryDirectory() as scratch:
        for entry in options.folders:
            folder, _, repo = entry.partition("=")
            checkpoint = read_checkpoint(Path(folder))
            place = (options.references or Path(scratch)) / checkpoint.weights_digest
            if not (place / "vectors.npz").exists():
                if not options.torch:
                    parser.error(f"{place} holds no reference of {folder}; name an interpreter by --torch")
                make_reference(checkpoint, place, options.torch, options.texts, options.tokens)
            conversions = Path(scratch) / "conversions"
            reports.append(measure(checkpoint.root, read_reference(place), conversions, RECIPES, repo))
            print_report(reports[-1])
    if options.json:
        options.json.write_text(json.dumps([asdict(report) for report in reports], indent=1), encoding="utf-8")
    worst = max(difference for report in reports for difference in report.differences.values())
    return int(options.within is not None and worst > options.within)


if __name__ == "__main__":
    sys.exit(main())
