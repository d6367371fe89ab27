"""`akidb-mlx convert`: complete, close to the original, and never overwriting anything."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from golden_models import GOLDEN
from typer.testing import CliRunner

from akidb_mlx_plugin import Embedder
from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import MIXED, UNQUANTIZED, Recipe, choose_recipe, choose_scheme
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.inference.fidelity import SAMPLE_TEXTS, mean_cosine

EIGHT = Recipe(Scheme(32, 8, "affine"), Scheme(32, 8, "affine"))


def source(name: str) -> Path:
    return GOLDEN / name / "model"


class TestChoosingAScheme:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ((), Scheme(64, 4, "affine")),
            ((8, 32), Scheme(32, 8, "affine")),
            ((None, None, "mxfp4"), Scheme(32, 4, "mxfp4")),
            ((None, None, "nvfp4"), Scheme(16, 4, "nvfp4")),
            ((8, 32, "mxfp8"), Scheme(32, 8, "mxfp8")),
        ],
    )
    def test_mlx_has_it(self, arguments: tuple[int | None, ...], expected: Scheme) -> None:
        assert choose_scheme(*arguments) == expected  # type: ignore[arg-type]

    @pytest.mark.parametrize("arguments", [(7,), (4, 48), (8, None, "mxfp4"), (None, 64, "nvfp4"), (4, 64, "int4")])
    def test_mlx_has_it_not(self, arguments: tuple[int | None, ...]) -> None:
        with pytest.raises(InvalidInputError):
            choose_scheme(*arguments)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bert", "bert_all_pooling", "roberta", "xlm_roberta", "modernbert", "qwen3", "qwen3_window", "phi3"]
)
def test_a_conversion_is_close_to_its_original(name: str, tmp_path: Path) -> None:
    done = convert_checkpoint(source(name), tmp_path / "new", EIGHT)
    assert done.folder == tmp_path / "new"
    assert done.quantized > 0 == done.kept
    assert done.bytes_after < done.bytes_before
    assert mean_cosine(source(name), done.folder) > 0.999
    before, after = read_checkpoint(source(name)), read_checkpoint(done.folder)
    for what in ("pooling", "pool_prompt", "normalize", "prompts", "similarity", "max_tokens", "native_dimension"):
        assert getattr(before, what) == getattr(after, what)
    assert after.config["quantization"] == {"group_size": 32, "bits": 8}
    assert before.weights_digest != after.weights_digest


def test_tensors_keep_their_names_and_what_is_not_a_large_matrix_its_format(tmp_path: Path) -> None:
    convert_checkpoint(source("roberta"), tmp_path / "new", EIGHT)
    before, after = (mx.load(str(f / "model.safetensors")) for f in (source("roberta"), tmp_path / "new"))
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    unused = {name for name in before if "lm_head" in name or "pooler" in name}
    assert before.keys() - unused == {name for name in after if not name.endswith((".scales", ".biases"))}
    for name in ("embeddings.position_embeddings.weight", "encoder.layer.0.output.LayerNorm.weight"):
        assert np.array_equal(np.array(before[f"roberta.{name}"]), np.array(after[f"roberta.{name}"]))
    assert after["roberta.embeddings.word_embeddings.weight"].dtype == mx.uint32
    assert after["roberta.embeddings.word_embeddings.scales"].dtype == mx.float16


def test_matrices_that_do_not_divide_into_groups_stay(tmp_path: Path) -> None:
    done = convert_checkpoint(source("gemma3_text"), tmp_path / "new", EIGHT)
    assert done.quantized == 4  # the second halves of the feed-forward networks, 64 wide; all others are 48 wide
    assert done.kept > 0
    assert mean_cosine(source("gemma3_text"), done.folder) > 0.999


def test_a_model_of_mlx_lm(tmp_path: Path) -> None:
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("the optional extra lm is not installed")
    done = convert_checkpoint(source("granite"), tmp_path / "new", EIGHT)
    tensors = mx.load(str(done.folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    assert "model.layers.0.self_attn.q_proj.scales" in tensors
    assert mean_cosine(source("granite"), done.folder) > 0.99


class TestNothingIsHalfDone:
    def test_something_is_there_already(self, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "mine").write_text("precious")
        for target in (tmp_path / "new", tmp_path / "new" / "mine"):
            with pytest.raises(InvalidInputError, match="exists and is not an empty folder"):
                convert_checkpoint(source("bert"), target, EIGHT)
        assert [file.name for file in tmp_path.rglob("*")] == ["new", "mine"]

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()
        assert convert_checkpoint(source("bert"), tmp_path / "new", EIGHT).folder.is_dir()

    def test_a_failure_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(mx, "save_safetensors", fail)
        with pytest.raises(OSError, match="disk full"):
            convert_checkpoint(source("bert"), tmp_path / "deep" / "new", EIGHT)
        assert list((tmp_path / "deep").iterdir()) == []

    def test_a_quantized_source_is_refused(self, tmp_path: Path) -> None:
        convert_checkpoint(source("bert"), tmp_path / "a", EIGHT)
        with pytest.raises(ModelNotFoundError, match="already quantized"):
            convert_checkpoint(tmp_path / "a", tmp_path / "b", EIGHT)
        assert not (tmp_path / "b").exists()

    def test_a_damaged_source_is_refused(self, tmp_path: Path) -> None:
        shutil.copytree(source("bert"), tmp_path / "a")
        (tmp_path / "a" / "model.safetensors").write_bytes(b"")
        with pytest.raises(ModelNotFoundError, match="damaged"):
            convert_checkpoint(tmp_path / "a", tmp_path / "b", EIGHT)


@pytest.mark.slow
def test_the_real_minilm_by_the_command(minilm_dir: Path, tmp_path: Path) -> None:
    import typer

    from akidb_mlx_plugin.cli.convert import convert

    app = typer.Typer()
    app.command()(convert)
    arguments = [str(minilm_dir), str(tmp_path / "new"), "--bits", "8", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["mean_cosine"] > 0.999
    assert facts["bytes_after"] < 0.3 * facts["bytes_before"]
    assert facts["kept"] == 0
    with Embedder.load(tmp_path / "new") as embedder:
        assert embedder.embed(SAMPLE_TEXTS).embeddings.shape == (len(SAMPLE_TEXTS), 384)


class TestRecipes:
    def test_by_name(self) -> None:
        four = Scheme(64, 4, "affine")
        assert choose_recipe() == Recipe(four, four)
        assert choose_recipe(name="mixed") == MIXED
        assert choose_recipe(name="unquantized") == UNQUANTIZED
        for arguments in ((None, None, "affine", "best"), (8, None, "affine", "mixed"), (None, None, "mxfp4", "mixed")):
            with pytest.raises(InvalidInputError, match="recipe"):
                choose_recipe(*arguments)  # type: ignore[arg-type]

    @pytest.mark.slow
    def test_mixed_spends_bits_on_the_layers_and_the_head(self, tmp_path: Path) -> None:
        recipe = Recipe(Scheme(32, 4, "affine"), Scheme(32, 8, "affine"), Scheme(32, 8, "affine"))
        done = convert_checkpoint(source("gemma3_text"), tmp_path / "new", recipe)
        plain = convert_checkpoint(source("gemma3_text"), tmp_path / "plain", choose_recipe(4, 32))
        assert mean_cosine(source("gemma3_text"), done.folder) > mean_cosine(source("gemma3_text"), plain.folder)
        settings = json.loads((done.folder / "config.json").read_text())["quantization"]
        assert (settings["bits"], settings["embed_tokens"]["bits"]) == (8, 4)
        stored = mx.load(str(done.folder / "3_Dense" / "model.safetensors"))
        assert isinstance(stored, dict)
        assert set(stored) >= {"linear.weight", "linear.scales"}

    def test_unquantized_keeps_every_number(self, tmp_path: Path) -> None:
        done = convert_checkpoint(source("bert_all_pooling"), tmp_path / "new", UNQUANTIZED)
        assert (done.quantized, done.kept) == (0, 0)
        assert mean_cosine(source("bert_all_pooling"), done.folder) == pytest.approx(1.0, abs=1e-6)


class TestPickles:
    def test_without_pytorch_the_remedy_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(source("bert"), tmp_path / "m")
        (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ModelNotFoundError, match="pip install torch"):
            convert_checkpoint(tmp_path / "m", tmp_path / "new", UNQUANTIZED)
        assert not (tmp_path / "new").exists()

    def test_are_read_where_it_is_installed(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        for folder in (".", "2_Dense", "3_Dense"):
            place = tmp_path / "m" / folder
            if folder == ".":
                shutil.copytree(source("bert_all_pooling"), place)
            tensors = mx.load(str(place / "model.safetensors"))
            assert isinstance(tensors, dict)
            torch.save({k: torch.tensor(np.array(v)) for k, v in tensors.items()}, place / "pytorch_model.bin")
            (place / "model.safetensors").unlink()
        done = convert_checkpoint(tmp_path / "m", tmp_path / "new", UNQUANTIZED)
        assert mean_cosine(source("bert_all_pooling"), done.folder) == pytest.approx(1.0, abs=1e-6)

    def test_that_would_run_code_are_refused(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        shutil.copytree(source("bert"), tmp_path / "m")
        (tmp_path / "m" / "model.safetensors").unlink()
        torch.save({"a": Path("x")}, tmp_path / "m" / "pytorch_model.bin")
        with pytest.raises(ModelNotFoundError, match="plain tensors"):
            convert_checkpoint(tmp_path / "m", tmp_path / "new", UNQUANTIZED)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise RuntimeError("[write] Unable to write 8259 bytes to file.")

    monkeypatch.setattr(mx, "save_safetensors", no_room)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written \(.* MB free on the disk\): \[write\]"):
        convert_checkpoint(GOLDEN / "bert" / "model", tmp_path / "out", choose_recipe(8, 32, "affine", "plain"))
    assert list(tmp_path.iterdir()) == []
