"""`akidb-mlx convert`: a smaller copy of a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from akidb_mlx_plugin.cli.cache import human_size
from akidb_mlx_plugin.cli.output import JsonOption, print_json


def convert(
    source: Annotated[str, typer.Argument(help="Short name, Hugging Face repository or checkpoint folder.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; it must not exist, or be empty.")],
    bits: Annotated[int | None, typer.Option(help="Bits per weight: 2, 3, 4, 5, 6 or 8; 4 by default.")] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale: 32, 64 or 128; 64 by default.")
    ] = None,
    mode: Annotated[str, typer.Option(help="affine, mxfp4, nvfp4 or mxfp8.")] = "affine",
    as_json: JsonOption = False,
) -> None:
    """Quantize a model into a new folder, and say how much smaller and how true to the original it is.

    Example: akidb-mlx convert minilm-l6-v2 ./minilm-8bit --bits 8
    """
    # Deferred: MLX takes longer to import than the other commands to run.
    from akidb_mlx_plugin.checkpoints.convert import choose_scheme, convert_checkpoint, mean_cosine
    from akidb_mlx_plugin.checkpoints.reader import check_settings
    from akidb_mlx_plugin.hub import ensure_model

    scheme = choose_scheme(bits, group_size, mode)
    folder = ensure_model(source, show_progress=sys.stderr.isatty(), check=check_settings).folder
    done = convert_checkpoint(folder, target, scheme)
    cosine = mean_cosine(folder, target)
    if as_json:
        facts = {"bytes_before": done.bytes_before, "bytes_after": done.bytes_after, "mean_cosine": cosine}
        print_json({"folder": done.folder, **facts, "quantized": done.quantized, "kept": done.kept})
        return
    kept = f"; {done.kept} matrices do not divide into groups of {scheme.group_size} and stay" if done.kept else ""
    typer.echo(
        f"{human_size(done.bytes_before)} before, {human_size(done.bytes_after)} after{kept}\n"
        f"mean cosine to the original on sample texts: {cosine:.4f}\n"
        f"{done.folder}"
    )
