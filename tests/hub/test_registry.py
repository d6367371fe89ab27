"""Which models have short names, and what else a name may be."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from akidb_mlx_plugin.checkpoints.families import find_family
from akidb_mlx_plugin.config import DEFAULT_MODEL
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub.registry import list_models, resolve


def test_the_default_comes_first() -> None:
    assert list_models()[0].name == DEFAULT_MODEL
    assert {spec.name for spec in list_models()} == {
        "qwen3-0.6b-4bit",
        "gemma-300m-4bit",
        "minilm-l6-v2",
        "mpnet-base-v2",
    }


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.name)
def test_entries_are_consistent(spec: object) -> None:
    from akidb_mlx_plugin.hub.registry import ModelSpec

    assert isinstance(spec, ModelSpec)
    family = find_family(spec.repo)
    assert family is not None
    known = family.dimensions_within(spec.native_dimension)
    assert not known or {spec.dimension, spec.native_dimension} <= set(known)
    assert spec.dimension <= spec.native_dimension
    digests = [*spec.sha256.values(), *([spec.mirror.sha256] if spec.mirror else [])]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    # A mirror may serve only what the registry can verify.
    assert spec.mirror is None or any(path.endswith(".safetensors") for path in spec.sha256)


def test_dimensions_of_the_issue() -> None:
    dimensions = {spec.name: spec.dimension for spec in list_models()}
    assert dimensions == {"qwen3-0.6b-4bit": 512, "gemma-300m-4bit": 768, "minilm-l6-v2": 384, "mpnet-base-v2": 768}


def test_rerankers_make_no_vectors() -> None:
    rerankers = list_models("reranker")
    assert [spec.name for spec in rerankers] == ["ms-marco-minilm-l6", "bge-reranker-v2-m3", "qwen3-reranker-0.6b-4bit"]
    assert {(spec.dimension, spec.native_dimension, spec.licence) for spec in rerankers} == {(0, 0, "Apache-2.0")}
    assert list_models(None) == [*list_models(), *rerankers]


@pytest.mark.parametrize("spec", list_models(None), ids=lambda spec: spec.name)
def test_short_name_and_repository_mean_the_same(spec: object) -> None:
    from akidb_mlx_plugin.hub.registry import ModelSpec

    assert isinstance(spec, ModelSpec)
    assert resolve(spec.name).repo == spec.repo
    assert resolve(spec.repo).spec is spec
    assert resolve(spec.repo).name == spec.repo


def test_any_repository() -> None:
    source = resolve("BAAI/bge-small-en-v1.5")
    assert (source.repo, source.spec, source.folder) == ("BAAI/bge-small-en-v1.5", None, None)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (tmp_path / "model", str(tmp_path / "model"), "./model", "~/model", Path("model")):
        source = resolve(name)
        assert (source.folder, source.repo) == ((tmp_path / "model").resolve(), None)


def test_a_folder_of_a_hugging_face_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--tiny"
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    assert resolve(folder).folder == folder / "snapshots" / ("a" * 40)
    (folder / "refs" / "main").unlink()
    os.utime(folder / "snapshots" / ("a" * 40), (1, 1))
    assert resolve(folder).folder == folder / "snapshots" / ("b" * 40)


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", Path("nowhere")])
def test_a_folder_that_is_not_there(name: str | Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "hint"), [("qwen3", "did you mean 'qwen3-0.6b-4bit'"), ("zzz", "known names are"), ("a/b/c", "org/repo")]
)
def test_unknown_names_say_what_is_known(name: str, hint: str) -> None:
    with pytest.raises(ModelNotFoundError, match=re.escape(hint)):
        resolve(name)


@pytest.mark.parametrize("name", ["org/../../etc", "../x", "org/.."])
def test_no_way_out_of_the_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Where no folder of such a name lies beside it.
    with pytest.raises(ModelNotFoundError):
        resolve(name)


@pytest.mark.parametrize("name", ["", "  ", None, 5])
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(InvalidInputError, match="model must be"):
        resolve(name)  # type: ignore[arg-type]
