"""Options shared by commands that take a model."""

from __future__ import annotations

from typing import Annotated

import typer

from akidb_mlx_plugin.types import Overflow

OverflowOption = Annotated[
    Overflow | None,
    typer.Option(help="Cut texts that are longer than the model takes, or refuse them; default: as configured."),
]
PoolingOption = Annotated[
    str | None,
    typer.Option(metavar="MODE", help="Pooling, such as mean or cls+mean; default: the model's."),
]
