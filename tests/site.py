"""The whole application for tests, built as the server builds it: inside a running event loop."""

import asyncio

from fastapi import FastAPI

from chatbot.config import ServeConfig
from chatbot.turns import Turns
from chatbot.web import build_app
from data.database import Database
from data.home import Home


def built_app(db: Database, turns: Turns, home: Home, config: ServeConfig | None = None) -> FastAPI:
    """Outside a loop Gradio opens one of its own and never closes it."""

    async def build() -> FastAPI:
        return build_app(db, turns, home, config or ServeConfig())

    return asyncio.run(build())
