# SPDX-License-Identifier: GPL-2.0-or-later
"""The base of all tables of a configuration, and the effort that a change of a key takes."""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel, ConfigDict


class Takes(Enum):
    """The effort to bring a changed setting into force."""

    RELOAD = "reload"  # the value changes while messages are handled
    RECONNECT = "reconnect"  # the value changes with a new connection, which the reload makes
    RESTART = "restart"  # the instance keeps the old value until it is started again


class Table(BaseModel):
    """A frozen table that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
