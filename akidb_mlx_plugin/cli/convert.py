"""`akidb-mlx convert`: a quantized or unpickled copy of a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from akidb_mlx_plugin.cli.cache import human_size
from akidb_mlx_plugin.cli.output import JsonOption, print_json


def convert(
    source: Annotated[str, typer.Argument(help="Short name, Hugging Face repository or checkpoint folder.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    bits: Annotated[int | None, typer.Option(help="Bits per weight: 2, 3, 4, 5, 6 or 8; 4 by default.")] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale: 32, 64 or 128; 64 by default.")
    ] = None,
    mode: Annotated[str, typer.Option(help="affine, mxfp4, nvfp4 or mxfp8.")] = "affine",
    recipe: Annotated[
        str,
        typer.Option(
            help="plain: the same bits everywhere; mixed: embedding tables in 4 bits, layers in 6, dense layers after "
            "pooling in 8; unquantized: for pickled weights."
        ),
    ] = "plain",
    as_json: JsonOption = False,
) -> None:
    """Quantize a model into a new folder, and print its size and its similarity to the original.

    Pickled weights (pytorch_model.bin) can be converted where PyTorch is installed.

    Example: akidb-mlx convert minilm-l6-v2 ./minilm-8bit --bits 8

    Example: akidb-mlx convert ./contriever ./contriever-safetensors --recipe unquantized
    """
    # Imported here: importing MLX takes longer than running most commands.
    from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
    from akidb_mlx_plugin.checkpoints.reader import check_settings
    from akidb_mlx_plugin.checkpoints.recipes import choose_recipe
    from akidb_mlx_plugin.hub import ensure_model
    from akidb_mlx_plugin.inference.fidelity import mean_cosine

    chosen = choose_recipe(bits, group_size, mode, recipe)
    folder = ensure_model(source, show_progress=sys.stderr.isatty(), check=check_settings).folder
    done = convert_checkpoint(folder, target, chosen)
    # Pickled weights cannot be loaded for comparison.
    cosine = mean_cosine(folder, target) if any(folder.rglob("*.safetensors")) else None
    if as_json:
        facts = {"bytes_before": done.bytes_before, "bytes_after": done.bytes_after, "mean_cosine": cosine}
        print_json({"folder": done.folder, **facts, "quantized": done.quantized, "kept": done.kept})
        return
    kept = f"; {done.kept} matrices do not divide into groups and stay unquantized" if done.kept else ""
    typer.echo(f"{human_size(done.bytes_before)} before, {human_size(done.bytes_after)} after{kept}")
    if cosine is not None:
        typer.echo(f"mean cosine to the original on sample texts: {cosine:.4f}")
    typer.echo(done.folder)
