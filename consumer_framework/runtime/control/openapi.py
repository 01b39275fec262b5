# SPDX-License-Identifier: GPL-2.0-or-later
"""The OpenAPI document of the control API, made of the table of routes and the typed schema.

Nothing is written twice: methods, paths and rights come from :data:`.routes.ROUTES`, fields and
answers from the classes of :mod:`.schema`, and every text from their docstrings.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from .routes import JSON, PROBLEM, ROUTES, STREAM, Page, ProblemDetails, Right
from .schema import VERSION, Done, answers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .routes import Route

PATH = f"/v{VERSION}/openapi.json"
_REFERENCES = "#/components/schemas/{model}"
RIGHTS = {
    Right.LOOK: "For everyone who can connect.",
    Right.OPERATE: "For root, the user of the process, and operators. It leaves a line in the log.",
    Right.ADMINISTER: "For root and the user of the process. It leaves a line in the log.",
}
# The texts of a process that are no JSON.
PAGES = {
    "/metrics": "The metrics, as Prometheus reads them.",
    "/live": "200 if the watchdog is content, 503 otherwise.",
    "/ready": "200 if the process does its work, 503 otherwise.",
}


def page(_accept: str = "") -> Page:
    """Return the document as a page of the control socket."""
    return Page(json.dumps(document(), indent=2).encode() + b"\n", JSON)


@cache
def document() -> dict[str, Any]:
    """Return the document, of OpenAPI 3.1."""
    schemas = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    for path, text in PAGES.items():
        paths[path] = {"get": _page_operation(path, text)}
    description = (
        "HTTP/1.1 on the Unix socket of an instance or a relay. A stream of answers has one JSON "
        "object a line, and ends with Done. Clients ignore fields that they do not know."
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Control API of consumer_framework",
            "version": str(VERSION),
            "description": description,
            "license": {"name": "GPL-2.0-or-later", "identifier": "GPL-2.0-or-later"},
        },
        "servers": [{"url": "http://localhost"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def text_of(kind: type) -> str:
    """Return the docstring of *kind* up to its attributes, as one paragraph a line."""
    whole = inspect.getdoc(kind) or ""
    paragraphs = whole.partition("\nAttributes:")[0].strip().split("\n\n")
    return "\n\n".join(_plain(" ".join(each.split())) for each in paragraphs)


def meanings_of(kind: type) -> dict[str, str]:
    """Return the meanings of the attributes of *kind*, from its docstring and those it inherits."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, listed = inspect.cleandoc(each.__doc__ or "").partition("\nAttributes:\n")
        pairs = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", listed, re.MULTILINE)
        found |= {name: _plain(" ".join(text.split())) for name, text in pairs}
    return found


def _plain(text: str) -> str:
    """Return *text* without the marks of reStructuredText."""
    without_roles = re.sub(r":\w+:`[.~]*([^`]+)`", r"`\1`", text)
    return re.sub(r"\bNone\b", "null", without_roles.replace("``", "`"))


def _schemas() -> dict[str, Any]:
    kinds = [kind for route in ROUTES for kind in (route.request, *answers_of(route.request))]
    adapters: dict[str, TypeAdapter[Any]] = {
        kind.__name__: TypeAdapter(kind) for kind in [*kinds, Done, ProblemDetails]
    }
    _, found = TypeAdapter.json_schemas(
        [(name, "validation", adapter) for name, adapter in adapters.items()],
        ref_template=_REFERENCES,
    )
    schemas: dict[str, Any] = found["$defs"]
    documented = dict(_documented([*kinds, Done, ProblemDetails]))
    for name, schema in schemas.items():
        if (kind := documented.get(name)) is not None:
            schema["description"] = text_of(kind)
            for field, meaning in meanings_of(kind).items():
                if field in schema.get("properties", {}):
                    schema["properties"][field]["description"] = meaning
    return schemas


def _documented(kinds: list[Any]) -> Iterator[tuple[str, type]]:
    """Yield the dataclasses among *kinds* and in their fields, by name."""
    seen: set[str] = set()
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if not (isinstance(kind, type) and is_dataclass(kind)) or kind.__name__ in seen:
            continue
        seen.add(kind.__name__)
        yield kind.__name__, kind
        module = inspect.getmodule(kind)
        names = {word for field in fields(kind) for word in re.findall(r"\w+", str(field.type))}
        waiting += [getattr(module, name, None) for name in names]


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    first, _, more = text_of(route.request).partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": route.request.__name__,
        "summary": first.rstrip("."),
        "description": "\n\n".join(filter(None, [more, RIGHTS[route.right]])),
        "responses": {"200": _success(route), "default": _failure()},
    }
    own = schemas[route.request.__name__]
    in_path = re.findall(r"{(\w+)}", route.path)
    if route.method == "GET":
        required = {*own.get("required", []), *in_path}
        operation["parameters"] = [
            _parameter(name, schema, is_in_path=name in in_path, is_required=name in required)
            for name, schema in own.get("properties", {}).items()
        ]
    elif own.get("properties"):
        reference = {"$ref": _REFERENCES.format(model=route.request.__name__)}
        content = {JSON: {"schema": reference}}
        operation["requestBody"] = {"required": bool(own.get("required")), "content": content}
    return operation


def _parameter(
    name: str, schema: dict[str, Any], *, is_in_path: bool, is_required: bool
) -> dict[str, Any]:
    own = {key: value for key, value in schema.items() if key != "description"}
    place = "path" if is_in_path else "query"
    found = {"name": name, "in": place, "required": is_required, "schema": own}
    return {**found, "description": schema["description"]} if "description" in schema else found


def _success(route: Route) -> dict[str, Any]:
    kinds = answers_of(route.request)
    references = [
        {"$ref": _REFERENCES.format(model=kind.__name__)}
        for kind in (*kinds, *([Done] if route.is_stream else []))
    ]
    if route.is_stream:
        what = "A stream: one of these objects a line, and Done at the end"
        return {"description": what, "content": {STREAM: {"schema": {"anyOf": references}}}}
    return {"description": text_of(kinds[0]), "content": {JSON: {"schema": references[0]}}}


def _failure() -> dict[str, Any]:
    reference = {"$ref": _REFERENCES.format(model=ProblemDetails.__name__)}
    what = "The request was not carried out (RFC 9457)"
    return {"description": what, "content": {PROBLEM: {"schema": reference}}}


def _page_operation(path: str, text: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": path[1:],
        "summary": text.rstrip("."),
        "responses": {"200": {"description": text, "content": content}},
    }


OWN_PAGES: dict[str, Callable[[str], Page]] = {PATH: page}
