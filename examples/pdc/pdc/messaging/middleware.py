# SPDX-License-Identifier: GPL-2.0-or-later
"""The middleware of PDC: a list of messages for each request, which its response decides about."""

from typing import Any

from django.apps import apps
from django.utils.deprecation import MiddlewareMixin

FIRST_FAILURE = 400


class MessagingMiddleware(MiddlewareMixin):
    """Makes the list ``request._messagings``, and sends it if the request succeeded."""

    def process_request(self, request: Any) -> None:
        """Begin with an empty list."""
        request._messagings = []

    def process_response(self, request: Any, response: Any) -> Any:
        """Add the facts of the request to each message, and send them all."""
        if not getattr(response, "exception", 0) and response.status_code < FIRST_FAILURE:
            extra_fields = {
                "author": request.META.get("REMOTE_USER", ""),
                "comment": request.META.get("HTTP_PDC_CHANGE_COMMENT"),
            }
            for _topic, msg in request._messagings:
                msg.update(extra_fields)
            apps.get_app_config("messaging").messenger.send_messages(request._messagings)
        request._messagings = None
        return response
