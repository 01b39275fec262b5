# SPDX-License-Identifier: GPL-2.0-or-later
"""The views of composes. Each change adds a message to the list of its request."""

import json
from typing import Any

from django.http import JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from .models import Compose


@csrf_exempt
def composes(request: Any) -> JsonResponse:
    """List the composes, or import one."""
    if request.method == "GET":
        found = Compose.objects.order_by("compose_id").values_list("compose_id", flat=True)
        return JsonResponse({"composes": list(found)})
    compose_id = json.loads(request.body)["compose_id"]
    _, is_new = Compose.objects.get_or_create(compose_id=compose_id)
    request._messagings.append((".compose", {"action": "create", "compose_id": compose_id}))
    request._messagings.append((".images", {"action": "import", "compose_id": compose_id}))
    if not is_new:
        return JsonResponse({"detail": "it exists"}, status=409)
    return JsonResponse({"compose_id": compose_id}, status=201)


urlpatterns = [path("composes", composes)]
