# SPDX-License-Identifier: GPL-2.0-or-later
"""The JSON schema accepts the files that the product accepts, and describes every key."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from consumer_framework.cli.main import main
from consumer_framework.settings import Batch, Framework, Recovery, Settings
from consumer_framework.settings.schema import json_schema, rows

from .test_docs import ROOT, blocks

SCHEMA = json_schema()
VALID = jsonschema.Draft202012Validator(SCHEMA)
SAMPLE = tomllib.loads(blocks(ROOT / "docs/reference/configuration.md", "toml")[0])


def sample(**framework: Any) -> dict[str, Any]:
    return {**SAMPLE, "consumer_config": {"framework": framework, "packages": ["kernel"]}}


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_whole_file_fits_and_so_does_an_empty_one():
    VALID.validate(SAMPLE)
    VALID.validate({})


@pytest.mark.parametrize(
    "framework",
    [
        {"slots": 4, "ordering": "key", "ordering_key": "topic"},
        {"handler_timeout": "2m", "start_timeout": 30},
        {"handler_timeout": "infinity", "rate": "50/s", "burst": 3},
        {"batch": {"size": 10}, "store": "memory"},
        {"recovery": {"delays": ["10s", 60], "breaker": {"probe": ["1m"]}}},
        {"recovery": {"rules": [{"exceptions": ["OSError"], "then": "dependency"}]}},
    ],
)
def test_settings_that_parse_fit(framework):
    Framework.model_validate(framework)
    VALID.validate(sample(**framework))


@pytest.mark.parametrize(
    "framework",
    [
        {"slots": 0},
        {"slots": "4"},
        {"slosts": 4},
        {"ordering": "sometimes"},
        {"batch": {"seconds": True}},
        {"recovery": {"rules": [{"exceptions": []}]}},
        {"recovery": {"on_exhausted": "lose"}},
    ],
)
def test_settings_that_do_not_parse_do_not_fit(framework):
    with pytest.raises(ValueError, match="validation error"):
        Framework.model_validate(framework)
    assert not VALID.is_valid(sample(**framework))


def test_every_key_has_a_meaning():
    models = [SCHEMA, *SCHEMA["$defs"].values()]
    keys = [key for model in models for key in model.get("properties", {}).values()]
    assert len(keys) > 60
    assert all(key.get("description") for key in keys)
    assert not any("](" in key["description"] for key in keys), "an editor shows no links"


@pytest.mark.parametrize("model", [Settings, Framework, Recovery, Batch])
def test_a_row_for_each_key(model):
    found = rows(model, dict.fromkeys(model.model_fields, 0) if model is Settings else None)
    assert [row.key for row in found] == list(model.model_fields)


def test_the_command_prints_it():
    result = CliRunner().invoke(main, ["check", "--json-schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == SCHEMA
