"""The composer: where a message is written, sent and stopped."""

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


def composer_view(conversation_id: str, look: int, default_replies: int, **answer: object) -> View:
    """The composer of a conversation; `answered`, `is_sent` and `reason` tell what became of a message."""
    return {
        "look": look,
        "conversation_id": conversation_id,
        "default_replies": default_replies,
        "answered": "",
        "is_sent": False,
        "reason": "",
        **answer,
    }
