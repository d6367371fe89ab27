"""What every comparison needs: interpreters, checkpoints, texts, and how much of everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import checkpoints
from contenders import Contender, Interpreters, Worker, real_blas

from akidb_mlx_plugin.benchmarks.texts import first_lines, read_corpus, take_texts


@dataclass
class Setting:
    """How this run compares.

    Attributes:
        interpreters: for each contender.
        cores: threads each of them gets.
        work: checkpoints are kept there.
        scratch: texts and vectors go there.
        quick: a few texts and rounds, to see that it works.
        gemma: folder with the real EmbeddingGemma, if it is at hand.
        say: told what is going on.
    """

    interpreters: Interpreters
    cores: int
    work: Path
    scratch: Path
    quick: bool
    gemma: Path | None
    say: Callable[[str], None]

    @cached_property
    def corpus(self) -> list[str]:
        """The docstrings of the standard library, shuffled."""
        return read_corpus()

    @cached_property
    def minilm(self) -> Path:
        """The real MiniLM."""
        return checkpoints.find_minilm()

    @cached_property
    def onnx(self) -> Path:
        """MiniLM for onnxruntime."""
        self.say("exporting MiniLM to ONNX")
        return checkpoints.find_onnx(self.work, self.minilm, self.interpreters.of("sentence_transformers_cpu"))

    def full_shape(self, name: str) -> tuple[Path, Path]:
        """A full shape with random weights, in 4 bits and in float32."""
        self.say(f"writing {name} in its full shape")
        return checkpoints.find_full_shape(self.work, name)

    def blas_for(self, module: str) -> str:
        """The BLAS that an MLX peer gets."""
        return real_blas(self.interpreters.of(module))

    def choose(self, full: int, quick: int) -> int:
        """Return one or the other."""
        return quick if self.quick else full

    def start(self, contender: Contender) -> Worker:
        """Start a contender."""
        self.say(f"loading {contender.name}")
        return Worker(contender, self.interpreters.of(contender.module), self.cores)

    def write_texts(self, texts: Sequence[str], name: str) -> Path:
        """Return a file with these texts."""
        file = self.scratch / f"{name}.json"
        file.write_text(json.dumps(list(texts)), encoding="utf-8")
        return file

    def docstrings(self, count: int) -> list[str]:
        """Return so many docstrings."""
        return take_texts(self.corpus, count)

    def queries(self, checkpoint: Path, lengths: range, count: int) -> list[str]:
        """Return first lines of docstrings that make so many tokens with a checkpoint's tokenizer."""
        lines = first_lines(self.corpus)
        fitting = (
            line for line, tokens in zip(lines, count_tokens(checkpoint, lines), strict=True) if tokens in lengths
        )
        return [line for line, _ in zip(fitting, range(count), strict=False)]


def count_tokens(checkpoint: Path, texts: Sequence[str], limit: int | None = None) -> list[int]:
    """Return how many tokens each text makes, special ones included, cut at a limit."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    counts = [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    return [min(count, limit) if limit else count for count in counts]
