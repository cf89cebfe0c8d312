"""Greedy in float32 is transformers' `generate`, on fifty prompts, alone and beside others, across swaps.

make slow ARGS=tests/test_engine_parity.py        the same on the embedded model
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base, load_base
from chatbot.engine import Engine
from chatbot.models import merged_model
from data.home import Home
from data.prompts import practice_prompts
from data.records import Sampling
from tests.adapter_files import write_adapter

GREEDY = Sampling(temperature=0, max_new_tokens=24)
PROMPTS = [list(prompt.messages) for prompt in practice_prompts()[:50]]


def check(base: Base, adapter: Path) -> None:
    """Base and adapter, one prompt at a time and all at once, while they take turns in serving."""
    engine = Engine(base, precision="float32", max_waiting=64)
    engine.start()
    wanted = {name: written(base, path) for name, path in (("base", None), ("v000001", adapter))}
    assert wanted["base"] != wanted["v000001"]
    for name in ("base", "v000001", "base", "v000001"):
        if name != "base":
            engine.load(name, adapter)
        engine.serve(name)
        together = [engine.submit(prompt, sampling=GREEDY) for prompt in PROMPTS]
        for i, generation in enumerate(together):
            assert generation.wait(600)
            assert_same(engine, name, generation.prompt, generation.replies[0].token_ids, wanted[name][i])
        for i, prompt in enumerate(PROMPTS[:10]):
            alone = engine.submit(prompt, sampling=GREEDY)
            assert alone.wait(60) and alone.version == name
            assert_same(engine, name, alone.prompt, alone.replies[0].token_ids, wanted[name][i])
    engine.close()


@torch.no_grad()
def written(base: Base, adapter: Path | None) -> list[list[int]]:
    """What transformers writes to each prompt, alone."""
    model: PreTrainedModel = merged_model(base, adapter, device=torch.device("cpu"), dtype=torch.float32)
    replies = []
    for prompt in PROMPTS:
        ids = torch.tensor([base.format.fit(prompt, base.context - GREEDY.max_new_tokens).ids])
        out = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=GREEDY.max_new_tokens,
            do_sample=False,
            eos_token_id=base.format.end_of_turn,
            pad_token_id=0,
        )
        replies.append(out[0, ids.shape[1] :].tolist())
    return replies


def assert_same(
    engine: Engine, name: str, prompt: list[int], ours: Sequence[int], theirs: Sequence[int]
) -> None:
    """Token for token, or first differing where both tokens are as likely up to rounding."""
    if list(ours) != list(theirs):
        at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        before = [*prompt, *ours[:at]]
        likely = [
            engine.mean_logprob(name, [*before, token], len(before)) for token in (ours[at], theirs[at])
        ]
        assert abs(likely[0] - likely[1]) < 1e-3


def test_greedy_is_generate_on_the_tiny_model(tiny_base: Base, tmp_path: Path) -> None:
    check(tiny_base, write_adapter(tmp_path / "adapter", tiny_base.config, size=0.5))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_greedy_is_generate_on_the_embedded_model(home: Home, tmp_path: Path) -> None:
    base = load_base(None, home)
    check(base, write_adapter(tmp_path / "adapter", base.config, size=0.02))
