# SPDX-License-Identifier: GPL-2.0-or-later
"""Make fedora-messaging messages of the bytes and properties of deliveries.

:func:`decode` does the work of ``fedora_messaging.message.get_message`` with the same results: the
same classes, the same verdicts, the same errors. It is faster because upstream checks the schemas
of a message each time that it checks the message; here each schema is checked and compiled once.

======================= ===================================================================
:mod:`.decoding`        from a delivery to a validated message
:mod:`.registry`        from the schema header to the class of the message
:mod:`.jsonschema`      the compiler of JSON schemas, which imports nothing of this project
======================= ===================================================================
"""

from __future__ import annotations

from .decoding import UndecodableError, decode, validate
from .registry import SCHEMA_GROUP, load_schemas

__all__ = ["SCHEMA_GROUP", "UndecodableError", "decode", "load_schemas", "validate"]
