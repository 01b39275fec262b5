# SPDX-License-Identifier: GPL-2.0-or-later
"""The OpenAPI document of the control API: valid, complete, and true of the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from consumer_framework.runtime.control import openapi, schema
from consumer_framework.runtime.control.routes import ROUTES, Call, Refusal, page_for, write_call

from .test_control_schema import ANSWERS, REQUESTS


def conforms(value: Any, name: str) -> None:
    document = openapi.document()
    reference = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    Draft202012Validator(reference).validate(value)


def test_the_document_is_valid_and_has_every_route():
    document = openapi.document()
    validate(document)
    operations = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert {(route.method, route.path) for route in ROUTES} <= operations
    assert {("GET", path) for path in openapi.PAGES} <= operations


def test_every_request_and_every_field_of_it_is_explained():
    schemas = openapi.document()["components"]["schemas"]
    for route in ROUTES:
        own = schemas[route.request.__name__]
        assert "Attributes" not in own["description"]
        assert own["description"].endswith(".")


@pytest.mark.parametrize(("_request", "answer", "document"), ANSWERS)
def test_the_answers_are_as_the_document_says(_request, answer, document):
    conforms(document, type(answer).__name__)


@pytest.mark.parametrize(("request_", "call"), REQUESTS)
def test_the_requests_are_as_the_document_says(request_, call):
    assert write_call(request_) == call
    if call.body:
        conforms(json.loads(call.body), type(request_).__name__)


def test_an_error_is_as_the_document_says():
    conforms(json.loads(Refusal(404, "there is no /x").body), "ProblemDetails")
    conforms(json.loads(schema.encode_answer(schema.Done())), "Done")


def test_a_process_has_the_document():
    make = page_for(Call("GET", "/v1/openapi.json"), openapi.OWN_PAGES)
    assert make is not None
    page = make("")
    assert page.content_type == "application/json"
    assert json.loads(page.body) == openapi.document()
