"""Options shared by commands that take a model."""

from __future__ import annotations

from typing import Annotated

import typer

PoolingOption = Annotated[
    str | None,
    typer.Option(metavar="MODE", help="Pooling, such as mean or cls+mean; default: the model's."),
]
