"""Language models for machines without code: the text example's, and a GPT-2 of transformers, random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from manyhands.pool.server import CentralServer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


class Sentences(Dataset[dict[str, Tensor]]):
    """Counting modulo 61 from a start and by a stride, in ragged lengths: -100 and a mask where a line is over."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        length = 16 + index % 9
        ids = (index + (1 + index % 5) * torch.arange(24)) % 61
        mask = (torch.arange(24) < length).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def gpt2() -> CentralServer:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=48, n_layer=2, n_head=3)
    return _server(GPT2LMHeadModel(config), Sentences())


def text() -> CentralServer:
    from text_model import Lines, TextModel

    torch.manual_seed(0)
    return _server(TextModel(), Lines())


def _server(model: nn.Module, dataset: Any) -> CentralServer:
    return CentralServer(
        model,
        dataset,
        batch_size=16,
        micro_batches=8,
        clip_norm=1.0,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
    )
