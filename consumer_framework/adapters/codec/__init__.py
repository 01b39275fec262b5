# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes to fedora-messaging messages: what ``fedora_messaging.message.get_message`` does, faster.

The results are upstream's: the same classes, the same verdicts, the same errors. What it spends
most of its time on, checking each message's schemas as well as the message, is done once here.
"""

from __future__ import annotations

from .decoding import UndecodableError, decode
from .registry import SCHEMA_GROUP, load_schemas

__all__ = ["SCHEMA_GROUP", "UndecodableError", "decode", "load_schemas"]
