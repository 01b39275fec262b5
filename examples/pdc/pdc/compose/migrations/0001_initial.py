# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the table of composes."""

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    """The first migration of the app."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[migrations.CreateModel]] = [
        migrations.CreateModel(
            name="Compose",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("compose_id", models.CharField(max_length=200, unique=True)),
            ],
        ),
    ]
