# SPDX-License-Identifier: GPL-2.0-or-later
"""A library with a web API: Flask, and a session of SQLAlchemy.

The messages about a new book share the transaction that stores the book. A loan changes no table:
the response of its request decides about the message.
"""

from datetime import UTC, date, datetime

from fedora_messaging.message import Message
from flask import Flask, abort, request
from sqlalchemy import String
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from consumer_framework.publishing import default
from consumer_framework.publishing.integrations.wsgi import OutboxMiddleware

app = Flask(__name__)
# The outbox of the configuration file; its database is that of the library too.
outbox = default()
Session = sessionmaker(outbox.store.engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The tables of the library."""


class Book(Base):
    """A book of the library."""

    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(200), unique=True)


@app.cli.command("init-db")
def init_db() -> None:
    """Make the tables of the library and of its outbox."""
    Base.metadata.create_all(outbox.store.engine)
    outbox.store.migrate()


@app.post("/books")
def add_book() -> tuple[dict[str, int], int]:
    """Add a book. It is there if, and only if, its message is sent."""
    book = Book(title=request.get_json()["title"])
    message = Message(topic="library.book.added", body={"title": book.title})
    with Session.begin() as session:
        session.add(book)
        outbox.publish(message, book.title, session=session)
        try:
            session.flush()
        except IntegrityError:
            abort(409, "the library has this book")
    return {"id": book.id}, 201


@app.post("/books/<int:book>/loans")
def lend(book: int) -> tuple[dict[str, int], int]:
    """Lend a book until a day."""
    loan = {"book": book, "until": request.get_json()["until"]}
    # It is stored when this request has succeeded. Any failure below takes it back.
    outbox.publish(Message(topic="library.book.lent", body=loan))
    with Session() as session:
        if session.get(Book, book) is None:
            abort(404)
    days = date.fromisoformat(loan["until"]) - datetime.now(UTC).date()
    return {"days": days.days}, 201


def client(environ: dict[str, str], _message: object) -> dict[str, str]:
    """Return the header that each message of a request gets."""
    return {"library_client": environ["REMOTE_ADDR"]}


app.wsgi_app = OutboxMiddleware(app.wsgi_app, outbox, enrich=client)
