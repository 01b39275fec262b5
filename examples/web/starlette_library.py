# SPDX-License-Identifier: GPL-2.0-or-later
"""A library with a web API: Starlette, and an asynchronous session of SQLAlchemy.

The messages about a new book share the transaction that stores the book. A loan changes no table:
the response of its request decides about the message.
"""

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from typing import Any

from fedora_messaging.message import Message
from sqlalchemy import String
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from consumer_framework.publishing import default
from consumer_framework.publishing.integrations.asgi import OutboxMiddleware

# The outbox of the configuration file; its database is that of the library too.
outbox = default()
url = outbox.store.engine.url
drivers = {"sqlite": "sqlite+aiosqlite", "mariadb+pymysql": "mariadb+asyncmy"}
engine = create_async_engine(url.set(drivername=drivers.get(url.drivername, url.drivername)))
Session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The tables of the library."""


class Book(Base):
    """A book of the library."""

    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(200), unique=True)


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Make the tables of the library and of its outbox; close the connections at the end."""
    outbox.store.migrate()
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


async def add_book(request: Request) -> JSONResponse:
    """Add a book. It is there if, and only if, its message is sent."""
    book = Book(title=(await request.json())["title"])
    message = Message(topic="library.book.added", body={"title": book.title})
    async with Session.begin() as session:
        session.add(book)
        await outbox.publish_async(message, book.title, session=session)
        try:
            await session.flush()
        except IntegrityError:
            raise HTTPException(409, "the library has this book") from None
    return JSONResponse({"id": book.id}, 201)


async def lend(request: Request) -> JSONResponse:
    """Lend a book until a day."""
    loan = {"book": request.path_params["book"], "until": (await request.json())["until"]}
    # It is stored when this request has succeeded. Any failure below takes it back.
    await outbox.publish_async(Message(topic="library.book.lent", body=loan))
    async with Session() as session:
        if await session.get(Book, loan["book"]) is None:
            raise HTTPException(404)
    days = date.fromisoformat(loan["until"]) - datetime.now(UTC).date()
    return JSONResponse({"days": days.days}, 201)


def client(scope: MutableMapping[str, Any], _message: object) -> dict[str, str]:
    """Return the header that each message of a request gets."""
    return {"library_client": scope["client"][0]}


app = Starlette(
    routes=[
        Route("/books", add_book, methods=["POST"]),
        Route("/books/{book:int}/loans", lend, methods=["POST"]),
    ],
    middleware=[Middleware(OutboxMiddleware, outbox, enrich=client)],
    lifespan=lifespan,
)
