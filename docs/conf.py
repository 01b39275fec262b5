# SPDX-License-Identifier: GPL-2.0-or-later
"""Sphinx's configuration. Needs no network: nothing here refers to another site's inventory."""

from importlib.metadata import version as version_of

project = "consumer_framework"
author = "The consumer_framework developers"
project_copyright = author
release = version_of("consumer-framework")
version = release

extensions = [
    "myst_parser",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"consumer_framework {release}"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
