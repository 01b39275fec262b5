# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of an instance: frozen, checked whole, every error with its TOML path.

The file format is fedora-messaging's. The framework's own settings are in
``[consumer_config.framework]``; everything else under ``[consumer_config]`` is the author's.
"""

from .author import is_config_type, known_keys, parse_consumer_config
from .changes import FRAMEWORK_TABLE, TABLE, Change, Takes, changes, in_force, is_authors
from .model import (
    INSTANCE_NAME,
    TRANSIENT_QUEUE,
    Address,
    Batch,
    Binding,
    BreakerSettings,
    Framework,
    Monitoring,
    Ordering,
    Qos,
    Queue,
    Recovery,
    RuleSettings,
    Settings,
    StoreKind,
    Tls,
    instance_name_problem,
)
from .parsing import NO_OVERRIDES, Overrides, conflicts, override, parse, refuse_conflicts
from .problems import toml_path

__all__ = [
    "FRAMEWORK_TABLE",
    "INSTANCE_NAME",
    "NO_OVERRIDES",
    "TABLE",
    "TRANSIENT_QUEUE",
    "Address",
    "Batch",
    "Binding",
    "BreakerSettings",
    "Change",
    "Framework",
    "Monitoring",
    "Ordering",
    "Overrides",
    "Qos",
    "Queue",
    "Recovery",
    "RuleSettings",
    "Settings",
    "StoreKind",
    "Takes",
    "Tls",
    "changes",
    "conflicts",
    "in_force",
    "instance_name_problem",
    "is_authors",
    "is_config_type",
    "known_keys",
    "override",
    "parse",
    "parse_consumer_config",
    "refuse_conflicts",
    "toml_path",
]
