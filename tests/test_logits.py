"""What is made of hidden states is what the model itself makes of them, or the model is refused."""

from typing import Any, cast

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from chatbot.logits import logits_in_parts, logits_of
from chatbot.models import load_model
from data.errors import Refused
from data.home import Home
from tests.tiny import SMALL, base_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SMALL, logits_scaling=8.0),
        CohereConfig(**SMALL, logit_scale=0.25),
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5),
    ],
    ids=["divided", "multiplied", "capped"],
)
def test_logits_are_the_model_s_own_though_it_scales_or_caps_them(
    home: Home, config: PreTrainedConfig
) -> None:
    model = load_model(base_of(config, home), device=CPU, dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(logits_of(model, hidden), cast(Any, model)(input_ids=ids).logits)


def test_a_model_that_was_not_loaded_here_has_its_own_logits_too() -> None:
    config = GraniteConfig(**SMALL, logits_scaling=8.0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0]
        parts = torch.cat(list(logits_in_parts(model, hidden)))
        torch.testing.assert_close(parts, cast(Any, model)(input_ids=ids).logits[0])


def test_a_model_whose_logits_are_not_understood_is_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.logits._FACTOR_NAMES", ())
    base = base_of(GraniteConfig(**SMALL, logits_scaling=8.0), home)
    with pytest.raises(Refused, match="What 'granite' makes of its head's output is not known here"):
        load_model(base, device=CPU, dtype=torch.float32)
