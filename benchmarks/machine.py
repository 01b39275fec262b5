# SPDX-License-Identifier: GPL-2.0-or-later
"""Describe the machine of a measurement, without names of hosts or paths."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .wire import Wire

LIBRARIES = (
    "consumer-framework",
    "fedora-messaging",
    "pika",
    "twisted",
    "kombu",
    "amqp",
    "aio-pika",
    "aiormq",
    "faststream",
    "dramatiq",
)


def describe(url: str) -> dict[str, Any]:
    """Return the description of this machine and of the broker at *url*."""
    with Wire(url) as wire:
        broker = wire.server
    return {
        "cores": os.cpu_count(),
        "cpu": _first("/proc/cpuinfo", "model name"),
        "memory_gib": round(int(_first("/proc/meminfo", "MemTotal").split()[0]) / 2**20),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rabbitmq": broker,
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def _first(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "0 unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
