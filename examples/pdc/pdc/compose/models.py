# SPDX-License-Identifier: GPL-2.0-or-later
"""A compose: a set of packages and images that was made at once."""

from django.db import models


class Compose(models.Model):
    """A compose, by its id."""

    compose_id = models.CharField(max_length=200, unique=True)

    def __str__(self) -> str:
        return str(self.compose_id)
