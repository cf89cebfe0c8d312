"""Sequences of different length as one rectangle."""

import torch

from chatbot.batch import TokenBatch

CPU = torch.device("cpu")


def test_masks_come_from_lengths_though_the_text_holds_the_pad_token() -> None:
    batch = TokenBatch.of([[0, 0, 4], [0]], CPU, left_pad=1)
    assert batch.mask.sum(1).tolist() == [3, 1]
    assert batch.positions.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0]]


def test_the_tokens_stand_on_the_left_or_with_room_before_them_on_the_right() -> None:
    assert TokenBatch.of([[7, 8], [9]], CPU).ids.tolist() == [[7, 8], [9, 0]]
    assert TokenBatch.of([[7, 8], [9]], CPU, left_pad=1).ids.tolist() == [[0, 7, 8], [0, 0, 9]]
