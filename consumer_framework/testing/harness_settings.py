# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn the arguments of the harness into a configuration and a plan."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedora_messaging import config as upstream

from consumer_framework.core import settings as core
from consumer_framework.host import loader
from consumer_framework.host.batching import check_batch, with_batch
from consumer_framework.host.loader import Target, factory, find, recovery_of, usual_timeout
from consumer_framework.host.ordering import source_for
from consumer_framework.host.plan import Plan, fitted
from consumer_framework.host.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def plan_for(consumer: Any, document: dict[str, Any], files: Path) -> Plan:
    """Plan an instance of *consumer*, as :class:`.Harness` takes it.

    Args:
        consumer: Names or is the author's object.
        document: The whole configuration.
        files: What the consumer finds as its ``state_dir``.

    Raises:
        ConfigurationError: *document* would start no instance.
    """
    target = _target(consumer)
    checked = core.parse(document, default_bindings=True)
    make = factory(target, checked.consumer_config, state_dir=files)
    written = checked.framework.recovery
    policy, recovery = policy_of(written, recovery_of(target), "settings", target.name)
    check_batch(checked.framework, target.value)
    framework = with_batch(checked.framework, target.value)
    source_of = source_for(framework, target.value)
    usual = usual_timeout(target)
    plan = Plan(target.name, make, policy, framework, source_of, usual_timeout=usual)
    return fitted(plan, checked, recovery)


def _target(consumer: Any) -> Target:
    if isinstance(consumer, str):
        return find(consumer, "the test")
    name = getattr(consumer, "__qualname__", type(consumer).__qualname__)
    return loader.checked(Target(f"{consumer.__module__}:{name}", "the test", consumer))


def document_of(config: dict[str, Any], framework: dict[str, Any]) -> dict[str, Any]:
    """The whole file, with these tables of ``consumer_config`` and its ``framework``."""
    defaults: dict[str, Any] = copy.deepcopy(dict(upstream.DEFAULTS))
    return {
        **defaults,
        # As in a file that does not say: the prefetch count follows from the framework's settings.
        "qos": {},
        "log_config": None,
        "monitoring": None,
        "consumer_config": {**config, "framework": framework} if framework else config,
    }


@contextmanager
def upstream_config(document: dict[str, Any]) -> Iterator[None]:
    """Make *document* what fedora-messaging has read: callbacks read its ``conf`` themselves."""
    conf = upstream.conf
    before, loaded = dict(conf.items()), conf.loaded
    conf.loaded = True
    try:
        conf.update({**document, "monitoring": {}})
        yield
    finally:
        conf.clear()
        conf.update(before)
        conf.loaded = loaded
