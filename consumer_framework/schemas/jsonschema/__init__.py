# SPDX-License-Identifier: GPL-2.0-or-later
"""A compiler of JSON schemas, with the verdicts of the ``jsonschema`` library in less time.

:func:`checker_for` takes a schema and returns a :data:`Checker`: a function that returns for a
valid value, and raises ``jsonschema.ValidationError`` for an invalid one. This is the whole public
interface. The package stands on its own, and imports nothing of this project.

**The guarantee.** A checker has the verdict of ``jsonschema.validate(value, schema)`` for every
value, and raises the same error. Compiled code is believed only where it finds a value valid. Its
"invalid", and any exception in it, have the library check the value again, and the library's
verdict and error count. So only one kind of defect could show: an invalid value that passes.
``tests/unit/test_jsonschema.py`` searches for it, with schemas and values that hypothesis generates
for each draft, and compares both verdicts of the compiled code with the library's.

**The compiled form.** A schema becomes a table with one verdict for each of the seven Python types
that JSON text becomes (:mod:`.verdicts`): always valid, never valid, or a function of the value.
Each keyword makes a table of its own (:mod:`.keywords`); the tables of a schema's keywords, and
those of ``allOf``, ``anyOf``, ``oneOf`` and ``not``, are combined type by type (:mod:`.compiler`).
Therefore most of a message is checked by looking up types, and a property without a constraint
costs nothing.

**The library checks everything else**, at its own speed:

- schemas with ``$dynamicRef``, ``$recursiveRef``, ``unevaluatedItems``, ``unevaluatedProperties``;
- schemas of draft 3 or of an unknown dialect, and subschemas of another dialect than the root's;
- references to other documents, and any reference in a schema with several ids;
- a ``multipleOf`` that is a float, an ``enum`` of values that JSON does not have;
- values with other types than JSON's: AMQP headers may have timestamps, and subclasses of int;
- invalid schemas, for which every value raises ``jsonschema.SchemaError``.

Of a schema that is compiled, the library still compares arrays and objects with ``enum`` and
``const``, and decides on ``multipleOf`` and on the ``uniqueItems`` of anything but strings.

**Not used instead**: fastjsonschema has no draft after 7, fills defaults into the values that it
checks, and takes True for 1. jsonschema-rs has the regular expressions and numbers of Rust, and
Fedora does not package it.
"""

from .checker import Checker, checker_for

__all__ = ["Checker", "checker_for"]
