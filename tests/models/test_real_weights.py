"""The benchmark of real weights, on tiny ones: what it compares, and the layout it takes from mlx-community."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import embed
from golden_models import GOLDEN

from akidb_mlx_plugin.benchmarks.corpus import all_docstrings
from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import Recipe

FOUR, EIGHT = Scheme(32, 4, "affine"), Scheme(32, 8, "affine")
RECIPES = {"4 bits": Recipe(FOUR, FOUR), "8 bits": Recipe(EIGHT, EIGHT), "mixed": Recipe(FOUR, EIGHT, EIGHT)}
GEMMA = "google/embeddinggemma-300m"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


@pytest.mark.slow
def test_differences_and_conversions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from real_weights import measure, print_report, read_reference

    report = measure(GOLDEN / "bert" / "model", read_reference(GOLDEN / "bert"), tmp_path / "scratch", RECIPES)
    assert set(report.differences) == {"document", "query"}
    assert max(report.differences.values()) < 1e-5
    rows = {(row.stored, row.layout): row for row in report.rows}
    assert len(rows) == 6
    plain, mixed, eight = (rows[stored, "akidb-mlx convert"] for stored in ("4 bits", "mixed", "8 bits"))
    assert plain.mean_cosine < mixed.mean_cosine < eight.mean_cosine < 1
    assert 1 == plain.ratio < mixed.ratio <= eight.ratio
    assert [row.moved for row in (plain, mixed, eight)] == [0.0, 0.0, 0.0]
    assert all(row.least_cosine <= row.mean_cosine and 0 < row.overlap <= 1 for row in report.rows)
    assert not any((tmp_path / "scratch").iterdir())
    print_report(report)
    assert f"| mixed | mlx-community | {rows['mixed', 'mlx-community'].megabytes:.1f} |" in capsys.readouterr().out


def test_a_difference_is_noticed(tmp_path: Path) -> None:
    from real_weights import Reference, measure, read_reference

    reference = read_reference(GOLDEN / "bert")
    changed = {**reference.vectors, "query": reference.vectors["query"] + 1e-3}
    report = measure(GOLDEN / "bert" / "model", Reference(reference.texts, changed), tmp_path, {})
    assert report.differences["query"] == pytest.approx(1e-3, rel=0.05)
    assert report.differences["document"] < 1e-5


@pytest.mark.slow
def test_the_command_takes_references_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import real_weights

    monkeypatch.setattr(real_weights, "RECIPES", RECIPES)
    folder = GOLDEN / "bert" / "model"
    references = tmp_path / read_checkpoint(folder).weights_digest
    references.mkdir()
    for file in ("texts.json", "vectors.npz"):
        (references / file).write_bytes((GOLDEN / "bert" / file).read_bytes())
    arguments = [f"{folder}=someone/bert", "--references", str(tmp_path), "--json", str(tmp_path / "report.json")]
    assert real_weights.main([*arguments, "--within", "1e-5"]) == 0
    assert real_weights.main([*arguments, "--within", "1e-12"]) == 1
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["checkpoint"] == "someone/bert"
    with pytest.raises(SystemExit):
        real_weights.main([str(folder), "--references", str(tmp_path / "elsewhere")])


class TestPublishedLayout:
    @pytest.mark.slow
    def test_gemma_without_its_folders(self, tmp_path: Path) -> None:
        import mlx.core as mx
        from published_layout import convert_as_published, rearrange

        source = GOLDEN / "gemma3_text" / "model"
        recipe = Recipe(Scheme(32, 4, "affine"), Scheme(32, 8, "affine"), Scheme(32, 8, "affine"))
        ours = convert_checkpoint(source, tmp_path / "ours", recipe).folder
        moved = rearrange(ours, tmp_path / "moved", GEMMA)
        assert not [path for path in moved.iterdir() if path.is_dir()]
        assert np.array_equal(embed(ours), embed(moved))
        published = convert_as_published(source, tmp_path / "published", recipe, GEMMA)
        checkpoint = read_checkpoint(published)
        assert checkpoint.origins["family"] == GEMMA
        assert (checkpoint.pooling, len(checkpoint.dense)) == (("mean",), 2)
        tensors = mx.load(str(published / "model.safetensors"))
        assert isinstance(tensors, dict)
        assert {name.partition(".")[0] for name in tensors} == {"model", "dense"}
        assert {value.dtype for value in tensors.values()} == {mx.float16, mx.uint32}
        assert "model.layers.0.mlp.down_proj.scales" in tensors
        assert np.abs(embed(source) - embed(published)).max() < 0.05


@pytest.mark.slow
def test_texts_are_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    import mixed_texts as module
    from mixed_texts import mixed_texts

    some = list(islice(all_docstrings(), 1000))
    monkeypatch.setattr(module, "all_docstrings", lambda: iter(some))

    def count_tokens(texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    texts = mixed_texts(200, 1000, 8000, count_tokens)  # type: ignore[arg-type]
    lengths = count_tokens(texts)
    assert len(set(texts)) == len(texts) == 200
    assert abs(sum(lengths) - 8000) < 1500
    assert min(lengths) <= 2
    assert 900 <= max(lengths) <= 1000
    assert sum(not text.isascii() for text in texts) >= 10
    assert mixed_texts(200, 1000, 8000, count_tokens) == texts  # type: ignore[arg-type]
