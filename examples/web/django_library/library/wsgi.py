# SPDX-License-Identifier: GPL-2.0-or-later
"""The WSGI application of the library."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "library.settings")
application = get_wsgi_application()
