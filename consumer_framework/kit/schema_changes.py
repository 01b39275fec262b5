# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare two versions of a message's JSON schema, for those who consume and those who publish.

A consumer of the old version survives if every message that fits the new schema fits the old one,
too, and has the properties that the old one declares. A publisher of the old version survives if
the messages that it publishes fit the new schema.

So the keywords of both schemas are compared one by one. A keyword that allows more than before
breaks consumers; one that allows less breaks publishers; some do both. Keywords whose texts differ
and that cannot be compared so (``oneOf``, ``pattern``, ``if``, ...) count as both: the answer "they
survive" is always right, and the answer "they do not" may be too careful.

One freedom is taken for publishers: one of the old version does not publish properties that the
old schema does not declare.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Breaks(Enum):
    """The programs of the old version that a change breaks."""

    NOBODY = "nobody"
    CONSUMERS = "consumers"
    PUBLISHERS = "publishers"
    BOTH = "both"

    @property
    def consumers(self) -> bool:
        """True if it breaks consumers."""
        return self in {Breaks.CONSUMERS, Breaks.BOTH}

    @property
    def publishers(self) -> bool:
        """True if it breaks publishers."""
        return self in {Breaks.PUBLISHERS, Breaks.BOTH}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        path: The property, as ``body.build.name``; ``[]`` stands for the entries of a list.
        text: The difference in words.
        breaks: The programs that it breaks.
    """

    path: str
    text: str
    breaks: Breaks = Breaks.NOBODY


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences of two schemas."""

    changes: tuple[Change, ...] = field(default=())

    @property
    def consumers_survive(self) -> bool:
        """True if no change breaks consumers of the old version."""
        return not any(change.breaks.consumers for change in self.changes)

    @property
    def publishers_survive(self) -> bool:
        """True if no change breaks publishers of the old version."""
        return not any(change.breaks.publishers for change in self.changes)


def compare(old: Any, new: Any) -> Comparison:
    """Compare two JSON schemas.

    Args:
        old: The schema before: a table, or true or false.
        new: The schema after.
    """
    before, after = _Expansion(old).schema, _Expansion(new).schema
    return Comparison(tuple(dict.fromkeys(_changes("body", before, after))))


# Texts about a schema, which no message depends on.
_NOTES = frozenset(
    {
        *("$schema", "$id", "id", "$comment", "$anchor", "$defs", "definitions", "title"),
        *("description", "default", "examples", "example", "readOnly", "writeOnly", "deprecated"),
    }
)
_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
# Keywords with a number; True if a larger one allows less.
_LIMITS = {
    "minimum": True,
    "exclusiveMinimum": True,
    "minLength": True,
    "minItems": True,
    "minProperties": True,
    "maximum": False,
    "exclusiveMaximum": False,
    "maxLength": False,
    "maxItems": False,
    "maxProperties": False,
}
_OF_OBJECTS = ("properties", "required", "additionalProperties")
# Parts of a schema that are expanded; references within references may be a great many.
_MOST_PARTS = 50_000


class _Expansion:
    """A schema with the targets of its references in their place.

    A reference to a schema that contains it stays: its target was compared where it began. One that
    cannot be followed stays, too, beside the whole document, on which it perhaps depends.
    """

    def __init__(self, document: Any) -> None:
        self._document = document
        self._left = _MOST_PARTS
        self.schema = self._expanded(document, {}, 0)

    def _expanded(self, part: Any, active: Mapping[str, int], depth: int) -> Any:
        if isinstance(part, list):
            return [self._expanded(each, active, depth + 1) for each in part]
        if not isinstance(part, dict):
            return part
        self._left -= 1
        reference = part.get("$ref")
        if not isinstance(reference, str):
            return {key: self._expanded(value, active, depth + 1) for key, value in part.items()}
        rest = {k: v for k, v in part.items() if k != "$ref" and k not in _NOTES}
        others = self._expanded(rest, active, depth)
        if reference in active:
            # So many levels up in the schema.
            return {"$ref": f"{reference} {depth - active[reference]}", **others}
        target = _followed(reference, self._document)
        if target is None or self._left < 0:
            whole = self._document if reference.startswith("#") else None
            return {"$ref": f"{reference} {_text(whole)}", **others}
        found = self._expanded(target, {**active, reference: depth}, depth)
        return {"$ref": found, **others} if others else found


def _followed(reference: str, document: Any) -> Any:
    """Return the target of a JSON pointer into *document* (RFC 6901); None for other references."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found = document
    for word in reference.split("/")[1:]:
        key = word.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def _changes(path: str, old: Any, new: Any) -> Iterator[Change]:
    old, new = _plain(old), _plain(new)
    yield from _object_changes(path, old, new)
    for keyword in dict.fromkeys((*old, *new)):
        if keyword not in _OF_OBJECTS:
            yield from _keyword_changes(path, keyword, old, new)


def _plain(schema: Any) -> dict[str, Any]:
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        return {"not": {}}
    made = {keyword: value for keyword, value in schema.items() if keyword not in _NOTES}
    for keyword in ("anyOf", "oneOf"):
        # How many a schema says "or null".
        types = _only_types(made.get(keyword))
        if types and "type" not in made and (keyword == "anyOf" or _are_apart(types)):
            del made[keyword]
            made["type"] = types
    return made


def _only_types(branches: Any) -> list[str]:
    found: list[str] = []
    for branch in branches if isinstance(branches, list) else ():
        if not isinstance(branch, dict) or set(branch) - _NOTES != {"type"}:
            return []
        kinds = branch["type"]
        found += kinds if isinstance(kinds, list) else [kinds]
    return found


def _are_apart(types: list[str]) -> bool:
    return len(set(types)) == len(types) and not {"integer", "number"} <= set(types)


# Objects


def _object_changes(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    before, after = _properties(old), _properties(new)
    removed = [name for name in before if name not in after]
    added = [name for name in after if name not in before]
    renamed = _renamed(before, after, removed, added)
    for name in removed:
        where, to = f"{path}.{name}", renamed.get(name)
        what = f"was renamed to {to}, it seems" if to else "was removed"
        yield Change(where, f"{what}: consumers that read it find nothing", Breaks.CONSUMERS)
        yield from _left_over(where, before[name], new)
    for name in added:
        addition = _addition(f"{path}.{name}", old, after[name])
        if name not in renamed.values() or addition.breaks is not Breaks.NOBODY:
            yield addition
    for name in before:
        if name in after:
            yield from _changes(f"{path}.{name}", before[name], after[name])
    yield from _required_changes(path, old, new, after)
    yield from _additional_changes(path, old, new)


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("properties", {})
    return found if isinstance(found, dict) else {}


def _required(schema: Mapping[str, Any]) -> list[str]:
    # Draft 3 has true and false here, which later drafts ignore.
    found = schema.get("required", [])
    return found if isinstance(found, list) else []


def _renamed(
    before: Mapping[str, Any], after: Mapping[str, Any], removed: list[str], added: list[str]
) -> dict[str, str]:
    """Pair removed and added properties that have the same schema, and no other has it."""
    pairs = {}
    for name in removed:
        same = [other for other in added if _text(after[other]) == _text(before[name])]
        rivals = [other for other in removed if _text(before[other]) == _text(before[name])]
        if len(same) == 1 and len(rivals) == 1:
            pairs[name] = same[0]
    return pairs


def _left_over(path: str, schema: Any, new: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the break for publishers that still send a property that was removed."""
    rest = new.get("additionalProperties", True)
    if any(change.breaks.publishers for change in _changes(path, schema, rest)):
        text = "is no longer allowed: messages that have it are refused"
        yield Change(path, text, Breaks.PUBLISHERS)


def _addition(path: str, old: Mapping[str, Any], schema: Any) -> Change:
    rest = old.get("additionalProperties", True)
    if rest is not True and any(change.breaks.consumers for change in _changes(path, rest, schema)):
        text = "was added, and the old schema refuses messages that have it"
        return Change(path, text, Breaks.CONSUMERS)
    return Change(path, "was added")


def _required_changes(
    path: str, old: Mapping[str, Any], new: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Change]:
    before, now = _required(old), _required(new)
    for name in before:
        if name not in now and (name in after or name not in _properties(old)):
            text = "is no longer required: consumers may miss it"
            yield Change(f"{path}.{name}", text, Breaks.CONSUMERS)
    for name in now:
        if name not in before:
            text = "is required now: publishers of the old version may leave it out"
            yield Change(f"{path}.{name}", text, Breaks.PUBLISHERS)


def _additional_changes(
    path: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[Change]:
    before, after = old.get("additionalProperties", True), new.get("additionalProperties", True)
    if _text(before) == _text(after):
        return
    if after is False:
        # A publisher of the old version sends no others: see above.
        yield Change(path, "allows no other properties any more")
    elif before is False:
        text = "allows other properties now, and the old schema refuses messages that have them"
        yield Change(path, text, Breaks.CONSUMERS)
    else:
        yield from _changes(f"{path}.*", before, after)


# Single keywords


def _keyword_changes(
    path: str, keyword: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[Change]:
    before, after = old.get(keyword), new.get(keyword)
    if keyword == "items" and not isinstance(before, list) and not isinstance(after, list):
        absent = True
        yield from _changes(f"{path}[]", old.get(keyword, absent), new.get(keyword, absent))
    elif keyword in old and keyword in new and _text(before) == _text(after):
        return
    elif keyword == "type":
        yield from _type_changes(path, _types(old), _types(new))
    elif keyword in _LIMITS and _is_limit(old, keyword) and _is_limit(new, keyword):
        yield _limit_change(path, keyword, before, after)
    else:
        compared = _COMPARED.get(keyword, _other_change)
        yield compared(path, keyword, _Pair(before, after, keyword in old, keyword in new))


@dataclass(frozen=True, slots=True)
class _Pair:
    before: Any
    after: Any
    was: bool
    is_now: bool


def _types(schema: Mapping[str, Any]) -> set[str]:
    found = schema.get("type")
    if found is None:
        return set(_TYPES)
    kinds = set(found if isinstance(found, list) else [found])
    return kinds | {"integer"} if "number" in kinds else kinds


def _type_changes(path: str, before: set[str], after: set[str]) -> Iterator[Change]:
    more, less = after - before, before - after
    text = f"is {_kinds(after)}, and was {_kinds(before)}"
    if more and less:
        yield Change(path, text, Breaks.BOTH)
    elif more:
        yield Change(path, f"{text}: consumers may not expect that", Breaks.CONSUMERS)
    elif less:
        yield Change(path, f"{text}: publishers may still send that", Breaks.PUBLISHERS)


def _kinds(types: set[str]) -> str:
    if types >= _TYPES:
        return "of any type"
    shown = types - {"integer"} if "number" in types else types
    return " or ".join(sorted(shown)) or "of no type"


def _is_limit(schema: Mapping[str, Any], keyword: str) -> bool:
    # In draft 4, exclusiveMinimum is true or false.
    value = schema.get(keyword, 0)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _limit_change(path: str, keyword: str, before: Any, after: Any) -> Change:
    if before is None or after is None:
        is_less = before is None
    else:
        is_less = (after > before) is _LIMITS[keyword]
    was = "there was none" if before is None else f"it was {before}"
    what = f"the limit {keyword} is gone" if after is None else f"{keyword} is {after}"
    return _told(path, f"{what}, {was}", is_less=is_less)


def _told(path: str, text: str, *, is_less: bool) -> Change:
    if is_less:
        end = "messages of the old version may be refused"
        return Change(path, f"{text}: {end}", Breaks.PUBLISHERS)
    end = "consumers may get values that were not allowed"
    return Change(path, f"{text}: {end}", Breaks.CONSUMERS)


def _enum_change(path: str, keyword: str, pair: _Pair) -> Change:
    if not (pair.was and pair.is_now):
        return _other_change(path, keyword, pair)
    before = {_text(value) for value in _listed(pair.before)}
    after = {_text(value) for value in _listed(pair.after)}
    more, less = sorted(after - before), sorted(before - after)
    texts = [f"may be {', '.join(more)} now"] if more else []
    texts += [f"may no longer be {', '.join(less)}"] if less else []
    text = " and ".join(texts)
    if more and less:
        return Change(path, text, Breaks.BOTH)
    if not texts:
        return Change(path, "has the same values in another order")
    return _told(path, text, is_less=bool(less))


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _unique_change(path: str, _keyword: str, pair: _Pair) -> Change:
    if bool(pair.before) == bool(pair.after):
        return Change(path, "says the same of repeated entries")
    if pair.after:
        return _told(path, "may no longer have equal entries", is_less=True)
    return _told(path, "may have equal entries now", is_less=False)


def _other_change(path: str, keyword: str, pair: _Pair) -> Change:
    if keyword in _DEPENDENT:
        return Change(path, f"{keyword} changed; compare the two by hand", Breaks.BOTH)
    if not pair.was:
        return _told(path, f"has the keyword {keyword} now ({_short(pair.after)})", is_less=True)
    if not pair.is_now:
        text = f"has no longer the keyword {keyword} ({_short(pair.before)})"
        return _told(path, text, is_less=False)
    text = f"{keyword} is {_short(pair.after)}, it was {_short(pair.before)}"
    return Change(path, f"{text}; compare them by hand", Breaks.BOTH)


# Keywords whose meaning depends on others: also one of them less may forbid more.
_DEPENDENT = frozenset(
    {
        *("$ref", "if", "then", "else", "contains", "minContains", "maxContains"),
        *("items", "prefixItems", "additionalItems", "unevaluatedItems"),
        *("patternProperties", "unevaluatedProperties", "$dynamicRef", "$recursiveRef", "extends"),
    }
)
# Keywords with a comparison of their own.
_COMPARED: dict[str, Callable[[str, str, _Pair], Change]] = {
    "enum": _enum_change,
    "uniqueItems": _unique_change,
}

_SHOWN = 60


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)
