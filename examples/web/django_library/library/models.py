# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of the library."""

from django.db import models


class Book(models.Model):
    """A book of the library."""

    id = models.BigAutoField(primary_key=True)
    title = models.CharField(max_length=200, unique=True)

    def __str__(self) -> str:
        return str(self.title)
