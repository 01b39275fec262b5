# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer resume``: a paused instance takes messages again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .exit_codes import epilog
from .options import CONF, JSON, STATE_DIR, words
from .pause import instances_of, order
from .terminal import Command

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    cls=Command,
    epilog="""
\b
Examples:
  fm-consumer resume sample
  fm-consumer resume builds builds_2 --json | jq '.instances[].reasons'
"""
    + epilog("resume"),
)
@words("INSTANCE...")
@CONF
@STATE_DIR
@JSON
def resume(
    words: tuple[str, ...], conf: Path | None, state_dir: Path | None, *, as_json: bool
) -> None:
    """End the pause of running instances, which `fm-consumer pause` ordered.

    An instance that waits for something else as well, such as a broken dependency, goes on when
    that works again; the command names it.
    """
    from consumer_framework.runtime.control.schema import Resume  # noqa: PLC0415

    order(instances_of(words, conf, state_dir), Resume(), as_json=as_json)
