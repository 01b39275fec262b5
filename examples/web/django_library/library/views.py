# SPDX-License-Identifier: GPL-2.0-or-later
"""The views of the library, and their URLs."""

import json
from datetime import UTC, date, datetime

from django.db import IntegrityError, transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import path
from django.views.decorators.http import require_POST
from fedora_messaging.message import Message

from consumer_framework.publishing.integrations.django import publish
from consumer_framework.publishing.integrations.django.middleware import OutboxMiddleware

from .models import Book


class LibraryMiddleware(OutboxMiddleware):
    """Stores the messages of requests that succeed."""

    def enrich(self, request: HttpRequest, _message: object) -> dict[str, str]:
        """Return the header that each message of a request gets."""
        return {"library_client": request.META["REMOTE_ADDR"]}


@require_POST
def add_book(request: HttpRequest) -> JsonResponse:
    """Add a book. It is there if, and only if, its message is sent."""
    book = Book(title=json.loads(request.body)["title"])
    try:
        with transaction.atomic():
            publish(Message(topic="library.book.added", body={"title": book.title}), book.title)
            book.save()
    except IntegrityError:
        return JsonResponse({"error": "the library has this book"}, status=409)
    return JsonResponse({"id": book.pk}, status=201)


@require_POST
def lend(request: HttpRequest, book: int) -> JsonResponse:
    """Lend a book until a day."""
    loan = {"book": book, "until": json.loads(request.body)["until"]}
    # It is stored when this request has succeeded. Any failure below takes it back.
    publish(Message(topic="library.book.lent", body=loan))
    get_object_or_404(Book, pk=book)
    days = date.fromisoformat(loan["until"]) - datetime.now(UTC).date()
    return JsonResponse({"days": days.days}, status=201)


urlpatterns = [path("books", add_book), path("books/<int:book>/loans", lend)]
