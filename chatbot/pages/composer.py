"""The composer: where a message is written, sent and stopped."""

from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

from chatbot.pages.board import View, script


class Composer(gr.HTML):
    """The text box, with Send and Stop."""

    def __init__(self, value: View | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value,
            html_template="<div></div>",
            js_on_load=script("composer.js"),
            apply_default_css=False,
            elem_id="composer",
            **arguments,
        )


@dataclass(frozen=True)
class Answer:
    """What became of a message that the page waits to hear of."""

    answered: str = ""
    """The message's key; empty where the page waits for none."""
    is_sent: bool = False
    reason: str = ""
    """Why it was not taken, as a sentence."""


def composer_view(conversation_id: str, answer: Answer) -> View:
    """The composer of a conversation."""
    return {"conversation_id": conversation_id, **asdict(answer)}
