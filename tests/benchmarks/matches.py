"""The comparisons with peers: who meets whom, on which texts, how often."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bars import BARS, Outcome
from contenders import Contender, PeerMissingError, Timing, Worker
from pairs import Ratio, alternate, least_cosine, median_seconds, total_seconds
from setting import Setting, count_tokens

_SAME_COSINE = 0.999
# Texts for warming up and comparing vectors.
_SAMPLE = 64
_MINILM_TOKENS = 256
# For models that take minutes for all texts.
_LARGE_SWEEP = 25


@dataclass(frozen=True)
class Match:
    """This package and some peers on the same texts.

    Attributes:
        ours: this package on its checkpoint.
        peers: by the key of the bar they stand for.
        texts: what is embedded.
        rounds: how often each has its turn.
        unit: "texts/s", "tokens/s", or "ms" for texts that go one by one.
        limit: tokens after which texts are cut; None: nowhere.
        sweep: texts on which a batch size is chosen. All of them where peers sort by length: of a few texts sorted the
            neighbours differ more, and batches that pay for padding look worse than they are.
    """

    ours: Contender
    peers: Mapping[str, Contender]
    texts: Sequence[str]
    rounds: int
    unit: str
    limit: int | None = None
    sweep: int | None = None

    @property
    def apart(self) -> bool:
        """Whether texts go one by one."""
        return self.unit == "ms"


def minilm_match(setting: Setting) -> Match:
    """Against Chroma's default function, sentence-transformers and onnxruntime, on 1,000 docstrings."""
    sizes = (8,) if setting.quick else (4, 8, 16, 32, 64)
    peers = {
        "chroma": Contender("Chroma default", "chroma_default", setting.onnx),
        "sentence-transformers": _torch(setting.minilm, sizes),
        "onnxruntime": Contender("onnxruntime sorted", "onnxruntime_sorted", setting.onnx, sizes),
    }
    texts = setting.docstrings(setting.choose(1000, 60))
    return Match(_ours(setting.minilm), peers, texts, setting.choose(5, 2), "texts/s", _MINILM_TOKENS)


def mlx_embeddings_match(setting: Setting) -> Match:
    """Against mlx-embeddings with a real BLAS, on fewer docstrings: it pads each batch, and takes minutes for 1,000."""
    sizes = (16,) if setting.quick else (8, 16, 32)
    blas = setting.blas_for("mlx_embeddings_bert")
    peer = Contender("mlx-embeddings, BLAS", "mlx_embeddings_bert", setting.minilm, sizes, blas)
    texts = setting.docstrings(setting.choose(200, 30))
    rounds = setting.choose(3, 1)
    return Match(_ours(setting.minilm), {"mlx-embeddings": peer}, texts, rounds, "texts/s", _MINILM_TOKENS, _SAMPLE)


def mlx_embeddings_bare_match(setting: Setting) -> Match:
    """Against mlx-embeddings with the BLAS that MLX brings, on as few texts as it can take."""
    peer = Contender("mlx-embeddings", "mlx_embeddings_bert", setting.minilm, (8,))
    texts = setting.docstrings(setting.choose(16, 2))
    return Match(_ours(setting.minilm), {"mlx-embeddings-bare": peer}, texts, 1, "texts/s", _MINILM_TOKENS)


def query_match(setting: Setting) -> Match:
    """One query of 8 to 12 tokens after the other."""
    texts = setting.queries(setting.minilm, range(8, 13), setting.choose(30, 5))
    return Match(_ours(setting.minilm), {"query": _torch(setting.minilm)}, texts, setting.choose(10, 2), "ms")


def qwen3_match(setting: Setting) -> Match:
    """Qwen3 against torch and mlx-lm, all of them in float32."""
    quantized, plain = setting.full_shape("qwen3-0.6b-4bit")
    sizes = (8,) if setting.quick else (4, 8, 16, 32)
    blas = setting.blas_for("mlx_lm_last")
    peers = {"qwen3": _torch(plain, sizes), "mlx-lm": Contender("mlx-lm, BLAS", "mlx_lm_last", plain, sizes[:2], blas)}
    texts = setting.docstrings(setting.choose(50, 4))
    return Match(_ours(quantized), peers, texts, setting.choose(3, 1), "tokens/s", sweep=_LARGE_SWEEP)


def qwen3_bare_match(setting: Setting) -> Match:
    """Qwen3 against mlx-lm with the BLAS that MLX brings: seconds per token."""
    quantized, plain = setting.full_shape("qwen3-0.6b-4bit")
    peer = Contender("mlx-lm", "mlx_lm_last", plain)
    texts = setting.queries(plain, range(12, 13), setting.choose(2, 1))
    return Match(_ours(quantized), {"mlx-lm-bare": peer}, texts, 1, "tokens/s")


def qwen3_query_match(setting: Setting) -> Match:
    """One query of 12 tokens after the other, each with the model's instruction."""
    quantized, plain = setting.full_shape("qwen3-0.6b-4bit")
    texts = setting.queries(plain, range(12, 13), setting.choose(10, 2))
    ours = Contender("akidb-mlx", "ours_query", quantized)
    peer = Contender("sentence-transformers", "sentence_transformers_query", plain)
    return Match(ours, {"qwen3-query": peer}, texts, setting.choose(7, 2), "ms")


def gemma_match(setting: Setting) -> Match:
    """EmbeddingGemma against torch, both in float32: the real weights, or else random ones of the full shape."""
    quantized, plain = (setting.gemma, setting.gemma) if setting.gemma else setting.full_shape("gemma-300m-4bit")
    sizes = (8,) if setting.quick else (4, 8, 16, 32)
    texts = setting.docstrings(setting.choose(200, 6))
    peers = {"gemma": _torch(plain, sizes)}
    return Match(_ours(quantized), peers, texts, setting.choose(3, 1), "tokens/s", sweep=_LARGE_SWEEP)


MATCHES: dict[tuple[str, ...], Callable[[Setting], Match]] = {
    ("chroma", "sentence-transformers", "onnxruntime"): minilm_match,
    ("mlx-embeddings",): mlx_embeddings_match,
    ("mlx-embeddings-bare",): mlx_embeddings_bare_match,
    ("query",): query_match,
    ("qwen3", "mlx-lm"): qwen3_match,
    ("mlx-lm-bare",): qwen3_bare_match,
    ("qwen3-query",): qwen3_query_match,
    ("gemma",): gemma_match,
}


def play(setting: Setting, keys: Sequence[str], wanted: Collection[str]) -> Iterator[Outcome]:
    """Play one match, and return an outcome for each of its bars that is wanted, measured or not."""
    keys = [key for key in keys if key in wanted]
    if not keys:
        return
    make = next(make for names, make in MATCHES.items() if keys[0] in names)
    try:
        match = make(setting)
        with ExitStack() as stack:
            workers = {"ours": stack.enter_context(setting.start(match.ours))}
            absent = {}
            for key in keys:
                try:
                    workers[key] = stack.enter_context(setting.start(match.peers[key]))
                except PeerMissingError as error:
                    absent[key] = Outcome(BARS[key], note=f"not installed, or not running: {error}")
            found = list(_measure(setting, match, workers)) if len(workers) > 1 else []
    except (RuntimeError, OSError) as error:
        yield from (Outcome(BARS[key], note=str(error)) for key in keys)
    else:
        yield from (*found, *absent.values())


def _measure(setting: Setting, match: Match, workers: Mapping[str, Worker]) -> Iterator[Outcome]:
    texts = setting.write_texts(match.texts, "texts")
    sample = setting.write_texts(match.texts[: min(_SAMPLE, -(-len(match.texts) // 4))], "sample")
    sweep = setting.write_texts(match.texts[: match.sweep], "sweep")
    for name, worker in workers.items():
        setting.say(f"{worker.contender.name}: warming up")
        worker.embed(sample, save=setting.scratch / f"{name}.npy")
        worker.choose_batch_size(sweep)
    rounds: list[dict[str, Timing]] = []
    for done in alternate(workers, texts, rounds=match.rounds, apart=match.apart):
        rounds.append(done)
        setting.say(f"{' and '.join(worker.contender.name for worker in workers.values())}: round {len(rounds)}")
    tokens = sum(count_tokens(match.ours.folder, match.texts, match.limit))
    measure = median_seconds if match.apart else total_seconds
    ours = measure(rounds, "ours")
    for key in workers:
        if key != "ours":
            theirs = measure(rounds, key)
            cosine = least_cosine(setting.scratch / "ours.npy", setting.scratch / f"{key}.npy")
            note = _note(match, workers[key], tokens, len(rounds), cosine)
            yield Outcome(
                BARS[key],
                ours=_speed(match, ours, tokens),
                peer=f"{_speed(match, theirs, tokens)}, {workers[key].contender.name}",
                figure=Ratio.of(theirs, ours),
                note=note,
                raw={
                    "ours_s": ours,
                    "peer_s": theirs,
                    "ours_cpu_s": [timings["ours"].cpu_seconds for timings in rounds],
                    "peer_cpu_s": [timings[key].cpu_seconds for timings in rounds],
                    "texts": len(match.texts),
                    "tokens": tokens,
                    "cosine": cosine,
                },
            )


def _speed(match: Match, seconds: Sequence[float], tokens: int) -> str:
    middle = statistics.median(seconds)
    if match.apart:
        return f"{middle * 1e3:.1f} ms"
    return f"{(tokens if match.unit == 'tokens/s' else len(match.texts)) / middle:.1f} {match.unit}"


def _note(match: Match, worker: Worker, tokens: int, rounds: int, cosine: float) -> str:
    same = "same vectors" if cosine >= _SAME_COSINE else "OTHER VECTORS"
    batch = f", batches of {worker.batch_size}" if worker.batch_size else ""
    return f"{len(match.texts)} texts, {tokens} tokens, {rounds} rounds{batch}; {same}, cosine {cosine:.5f}"


def _ours(folder: Path) -> Contender:
    return Contender("akidb-mlx", "ours", folder)


def _torch(folder: Path, batch_sizes: tuple[int, ...] = ()) -> Contender:
    return Contender("sentence-transformers", "sentence_transformers_cpu", folder, batch_sizes)
