"""Load a checkpoint's tensors into an encoder, strictly, in the dtype that best suits the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.head import DenseLayer, is_in_head
from akidb_mlx_plugin.checkpoints.quantization import (
    check_method,
    dequantize,
    quantize_modules,
    quantized_paths,
    scheme_of,
)
from akidb_mlx_plugin.checkpoints.safetensors import find_weight_files
from akidb_mlx_plugin.checkpoints.sizes import check_sizes
from akidb_mlx_plugin.checkpoints.tensors import check_formats, load_strictly, original_names, read_tensors
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.models import find_encoder
from akidb_mlx_plugin.models.architectures import check_pooling
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.nn.batch import Block, TokenBatch, Tokens
from akidb_mlx_plugin.nn.cpu_layers import use_cpu_layers
from akidb_mlx_plugin.nn.dense import Dense, Norm
from akidb_mlx_plugin.nn.layout import in_cpu_layout, is_emulated
from akidb_mlx_plugin.nn.pooling import check_modes, pool
from akidb_mlx_plugin.runtime.blas import load_blas
from akidb_mlx_plugin.runtime.default_device import evaluate
from akidb_mlx_plugin.runtime.devices import emulates_bfloat16, pass_tokens
from akidb_mlx_plugin.runtime.memory import activation_bytes, available_memory, check_memory

logger = logging.getLogger(__name__)

_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
# One part in this many of the memory left after the weights may hold second copies, which make queries faster.
_SPARE_PART = 4


@dataclass(frozen=True)
class LoadedModel:
    """Weights in memory, ready to compute.

    Attributes:
        encoder: maps token ids to token vectors.
        dense: layers after pooling, including their activations.
        parameters: number of weights.
        dtype: dtype it computes in, and the bits of any quantized weights.
        nbytes: memory that the weights take, in bytes.
    """

    encoder: Encoder
    dense: tuple[nn.Module, ...]
    parameters: int
    dtype: str
    nbytes: int


def load_model(
    checkpoint: Checkpoint, *, device: str | None = None, dtype: str = "auto", keep_quantized: bool | None = None
) -> LoadedModel:
    """Load a checkpoint; call on the thread that will compute, within `borrowed`.

    Args:
        checkpoint: what to load.
        device: "cpu" or "gpu", for the choices below. Defaults to this thread's.
        dtype: "float32", "bfloat16", "float16" or "auto": float32 on a CPU, which has no other fast dtype. On a GPU
            weights in float32 or float16 are computed in float16, others in bfloat16, or in float16 too if the GPU
            has no native bfloat16 (M1 and M2); in bfloat16 if the architecture overflows float16.
        keep_quantized: whether quantized weights stay so. By default they do on a GPU, and in embedding tables. A CPU
            multiplies plain matrices 30 times faster.
    Raises:
        ModelNotFoundError: unsupported architecture or setting, a damaged file, a missing or unknown tensor.
        InvalidInputError: no such dtype, or one in which the model would overflow.
        ServiceUnavailableError: it does not fit in memory.
    """
    with _damage_reported(checkpoint.folder):
        model = _build(checkpoint, device, dtype, keep_quantized)
    check_memory(model.nbytes, checkpoint.name)
    if not in_cpu_layout(device) and not is_emulated():
        needed = model.nbytes + activation_bytes(pass_tokens(), checkpoint.widest_layer)
        check_memory(needed, checkpoint.name, available=_available_on_gpu())
    # Evaluated here: only the thread that made a lazy array can evaluate it. One by one, so that a matrix's inputs are
    # freed before the next is read.
    for module in (model.encoder, *model.dense):
        for _, value in tree_flatten(module.parameters()):
            evaluate(value)
    with _damage_reported(checkpoint.folder):
        _check_computes(model, checkpoint)
    if checkpoint.pooling_is_convention:
        _warn_of_convention(checkpoint.root, checkpoint.model_type, "+".join(checkpoint.pooling))
    return model


@lru_cache(maxsize=256)
def _warn_of_convention(folder: Path, model_type: str, mode: str) -> None:
    """Warn once per folder that its pooling is a convention."""
    logger.warning(
        "%s does not specify its pooling; using %s pooling, the usual one for %s; pass pooling= if its model card says "
        "otherwise",
        folder,
        mode,
        model_type,
    )


def estimate_memory(
    checkpoint: Checkpoint, *, device: str | None = None, dtype: str = "auto", keep_quantized: bool | None = None
) -> int:
    """Return the bytes that the weights will take once loaded; reads only headers. Arguments as for `load_model`."""
    with _damage_reported(checkpoint.folder):
        return _build(checkpoint, device, dtype, keep_quantized).nbytes


@contextmanager
def _damage_reported(folder: Path) -> Iterator[None]:
    """Turn Python's and MLX's errors for contradictory settings or weights into one that names the folder.

    Raises:
        ModelNotFoundError: such an error occurred.
    """
    try:
        yield
    except EmbeddingError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ModelNotFoundError(
            f"{folder} cannot be computed: settings in its config.json contradict each other or its weights "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _check_computes(model: LoadedModel, checkpoint: Checkpoint) -> None:
    """Compute two tokens, so that a broken model fails now and not with the first text."""
    batch = TokenBatch(np.zeros(2, np.int32), np.arange(2, dtype=np.int32), (Block(0, 1, 2),), (0,))
    vector = pool(model.encoder(Tokens.from_batch(batch)), batch.blocks, checkpoint.pooling)
    for layer in model.dense:
        vector = layer(vector)
    evaluate(vector)
    if vector.shape != (1, checkpoint.native_dimension):
        raise ValueError(f"got a vector of {vector.shape[-1]} components, expected {checkpoint.native_dimension}")


def _spare_bytes(needed: int) -> int:
    """Return the bytes available for second copies of weights; 0 if the BLAS cannot use them."""
    return max(0, (available_memory() or 0) - needed) // _SPARE_PART if load_blas().small_kernels else 0


def _count_bytes(*modules: nn.Module) -> int:
    return sum(value.nbytes for module in modules for _, value in tree_flatten(module.parameters()))


def _available_on_gpu() -> int | None:
    """Return how many more bytes the GPU can use at full speed; None if MLX does not report it."""
    limit = mx.device_info().get("max_recommended_working_set_size")
    return None if limit is None else max(0, int(limit) - mx.get_active_memory())


def _build(checkpoint: Checkpoint, device: str | None, dtype: str, keep_quantized: bool | None) -> LoadedModel:
    """Return the model with all arrays lazy: only headers have been read."""
    try:
        return _build_parts(checkpoint, device, dtype, keep_quantized)
    finally:
        # Modules start with random weights, and each advances this thread's random state. Unevaluated steps would stay
        # in memory as a growing graph for the life of the thread.
        evaluate(*mx.random.state)  # type: ignore[misc]


def _build_parts(checkpoint: Checkpoint, device: str | None, dtype: str, keep_quantized: bool | None) -> LoadedModel:
    check_modes(checkpoint.pooling)
    check_method(checkpoint.config)
    cpu = in_cpu_layout(device)
    architecture = find_encoder(checkpoint.model_type, checkpoint.config)
    tensors: dict[str, mx.array] = {}
    for file in find_weight_files(checkpoint.folder):
        tensors.update(read_tensors(file))
    check_formats(tensors, str(checkpoint.folder))
    check_sizes(checkpoint.config, tensors)
    encoder = architecture.from_config(checkpoint.config)
    check_pooling(checkpoint.config, checkpoint.pooling)
    encoder.check_length(checkpoint.max_tokens)
    parameters = _count(encoder)
    dense = _build_dense(checkpoint, tensors)
    weights = encoder.sanitize(
        {name: value for name, value in tensors.items() if not is_in_head(name, checkpoint.dense)}
    )
    names = original_names(weights, tensors)
    stays = not cpu if keep_quantized is None else keep_quantized
    # See `emulate_gpu`; in float32 a CPU's own product is as exact as a GPU's.
    keeps = stays and not (is_emulated() and dtype != "float32")
    bits = _take_quantized(encoder, weights, keep=keeps)
    target = _choose_dtype(encoder, weights, dtype, cpu=cpu, quantized=bool(bits and stays))
    load_strictly(encoder, weights, str(checkpoint.folder), names)
    encoder.prepare()
    _cast(encoder, target, keep_tables=encoder.keeps_tables)
    if cpu:
        use_cpu_layers(encoder, spare_bytes=_spare_bytes(_count_bytes(encoder, *dense)))
    encoder.eval()
    for layer in dense:
        parameters += _count(layer)
        _cast(layer, mx.float32, keep_tables=False)
    nbytes = _count_bytes(encoder, *dense)
    described = str(target).removeprefix("mlx.core.")
    if bits and stays:
        described += f", {'/'.join(map(str, sorted(bits)))}-bit weights"
    return LoadedModel(encoder, dense, parameters, described, nbytes)


def _take_quantized(module: nn.Module, weights: dict[str, mx.array], *, keep: bool) -> set[int]:
    """Prepare a module for its quantized weights, or dequantize them.

    Returns:
        Bits per weight of its quantized matrices.
    """
    modules = dict(module.named_modules())
    kept, bits = {}, set()
    for path in quantized_paths(weights):
        target = modules.get(path)
        if target is None or "weight" not in target:
            continue  # an unknown tensor: `load_strictly` reports it
        scheme = scheme_of(path, weights, target.weight.shape[-1])
        # Only a few rows of a table are looked up: dequantizing those costs less than reading the others.
        bits.add(scheme.bits)
        if keep or isinstance(target, nn.Embedding):
            kept[path] = scheme
        else:
            dequantize(path, weights, scheme)
    quantize_modules(module, kept)
    return bits


def _choose_dtype(
    encoder: Encoder, weights: Mapping[str, mx.array], dtype: str, *, cpu: bool, quantized: bool
) -> mx.Dtype:
    if dtype != "auto" and dtype not in _DTYPES:
        raise InvalidInputError(f"dtype must be auto, {', '.join(_DTYPES)}, got {dtype!r}")
    if dtype == "float16" and not encoder.float16_is_safe:
        raise InvalidInputError("this model's activations overflow float16; use bfloat16 or float32")
    if dtype != "auto":
        return _DTYPES[dtype]
    if cpu:
        return mx.float32
    if not encoder.float16_is_safe:
        return mx.bfloat16
    stored = {value.dtype for value in weights.values() if mx.issubdtype(value.dtype, mx.floating)}
    wide_range = quantized or mx.bfloat16 in stored
    return mx.bfloat16 if wide_range and not emulates_bfloat16() else mx.float16


def _cast(module: nn.Module, dtype: mx.Dtype, *, keep_tables: bool) -> None:
    """Cast floating-point parameters to one dtype; a plain embedding table may keep a narrower one."""
    for _, part in module.named_modules():
        table = isinstance(part, nn.Embedding) and keep_tables
        for name, value in part.items():
            if not isinstance(value, mx.array) or name.startswith("_") or not mx.issubdtype(value.dtype, mx.floating):
                continue
            if value.dtype != dtype and not (table and value.dtype.size <= dtype.size):
                part[name] = value.astype(dtype)


def _build_dense(checkpoint: Checkpoint, tensors: Mapping[str, mx.array]) -> tuple[nn.Module, ...]:
    layers = []
    for spec in checkpoint.dense:
        layer = Dense(
            spec.in_features,
            spec.out_features,
            bias=spec.bias,
            activation=spec.activation,
            residual=spec.residual,
            normalize_input=spec.normalize_input,
            norm=Norm(spec.norm_eps, spec.norm_bias) if spec.norm else None,
        )
        weights, names = _dense_weights(spec, tensors)
        _take_quantized(layer, weights, keep=False)
        load_strictly(layer, weights, str(spec.folder or checkpoint.folder), names)
        layers.append(layer)
    return tuple(layers)


def _dense_weights(spec: DenseLayer, tensors: Mapping[str, mx.array]) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Return a dense layer's tensors by module name, and their names in the file."""
    if spec.folder is not None:
        weights = {name: value for file in find_weight_files(spec.folder) for name, value in read_tensors(file).items()}
        check_formats(weights, str(spec.folder))
        return weights, {}
    names: dict[str, str] = {}
    for part, prefix in (("linear", spec.prefix), ("norm", spec.norm)):
        own = [name for name in tensors if prefix and name.startswith(f"{prefix}.")]
        names |= {f"{part}.{name.removeprefix(f'{prefix}.')}": name for name in own}
    weights = {name: tensors[original] for name, original in names.items()}
    if spec.rows:
        weights = {name: value[mx.array(spec.rows)] for name, value in weights.items()}
    return weights, names


def _count(module: nn.Module) -> int:
    return sum(value.size for _, value in tree_flatten(module.parameters()))
