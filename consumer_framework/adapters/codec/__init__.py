# SPDX-License-Identifier: GPL-2.0-or-later
"""Make fedora-messaging messages of the bytes and properties of deliveries.

:func:`decode` does the work of ``fedora_messaging.message.get_message`` with the same results: the
same classes, the same verdicts, the same errors. It is faster because
:mod:`consumer_framework.schemas` compiles each schema once.

======================= ===================================================================
:mod:`.decoding`        from a delivery to a validated message
:mod:`.registry`        from the schema header to the class of the message
======================= ===================================================================
"""

from __future__ import annotations

from .decoding import UndecodableError, decode, validate
from .registry import SCHEMA_GROUP, class_of, load_schemas, names_unknown_class, registered_below

__all__ = [
    "SCHEMA_GROUP",
    "UndecodableError",
    "class_of",
    "decode",
    "load_schemas",
    "names_unknown_class",
    "registered_below",
    "validate",
]
