"""Options that the commands with a model share."""

from __future__ import annotations

from typing import Annotated

import typer

PoolingOption = Annotated[
    str | None,
    typer.Option(metavar="MODE", help="How token vectors become one, such as mean or cls+mean; else the model's way."),
]
