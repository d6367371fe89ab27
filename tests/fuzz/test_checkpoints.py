"""Damaged checkpoints end in a vector or an `EmbeddingError`, and take no more memory than whole ones.

pytest tests/fuzz/test_checkpoints.py --mutations 20000 --seed 1
"""

from __future__ import annotations

import random
import resource
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from golden_models import GOLDEN, embed, token_rows
from mutations import mutate_file

from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import EmbeddingError

pytestmark = pytest.mark.slow

_USUAL = 1000
_PARTS = 10
_NAMES = sorted(folder.name for folder in GOLDEN.iterdir() if (folder / "model").is_dir())
_TEXTS = ["the stone bridge", "a river in winter, <pad> [SEP] </s>"]
# What all mutants together may add to the process: a whole model takes a few megabytes.
_MOST_BYTES = 400 << 20


@pytest.fixture(autouse=True)
def _on_cpu() -> None:
    mx.set_default_device(mx.cpu)


@pytest.mark.parametrize("part", range(_PARTS))
def test_damage_ends_in_a_vector_or_an_embedding_error(
    part: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    mutations = request.config.getoption("--mutations") or _USUAL
    seed = request.config.getoption("--seed")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    vectors = 0
    for i in range(part, mutations, _PARTS):
        vectors += _try_mutant(f"{seed}-{i}", tmp_path / "m")
    # Not everything may be refused, or nothing would be tested.
    assert vectors > mutations // _PARTS // 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < _MOST_BYTES


def _try_mutant(seed: str, folder: Path) -> bool:
    """Damage one file of a golden checkpoint and embed with it; return whether vectors came out."""
    rng = random.Random(seed)
    source = GOLDEN / rng.choice(_NAMES) / "model"
    shutil.rmtree(folder, ignore_errors=True)
    files = sorted(file for file in source.rglob("*") if file.suffix in (".json", ".safetensors"))
    chosen = rng.choice(files)
    for file in source.rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file == chosen:
                mutate_file(file, target, rng)
            else:
                target.symlink_to(file)
    try:
        checkpoint = read_checkpoint(folder)
        checkpoint.info()
        model = load_model(checkpoint)
        rows, _ = token_rows(checkpoint, _TEXTS, "document")
        if max(max(row, default=0) for row in rows) >= checkpoint.config["vocab_size"]:
            return False  # the embedder refuses ids beyond the table
        made = embed(checkpoint, model, _TEXTS)
        # The embedder refuses vectors that are not finite.
        return bool(np.isfinite(made).all())
    except EmbeddingError:
        return False
    except Exception as error:
        raise AssertionError(f"mutant {seed}: {chosen.relative_to(source)} of {source.parent.name}") from error
