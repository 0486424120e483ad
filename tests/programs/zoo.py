"""Models as people write them, tiny, with batches and the loss that the pool would take.

A :class:`Member` is what the tests run over. Weights are random from a seed; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyhands.training.objective import Objective

MakeBatch = Callable[[int], Any]
"""``(samples) -> batch``, from the default generator."""


@dataclass(frozen=True)
class Member:
    """One model of the zoo. `lengths` is whether its batches differ in a second dimension too."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int, int], Any]
    criterion: Any = None
    lengths: bool = False

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build()

    def batches(self, *sizes: tuple[int, int]) -> list[Any]:
        """One batch for each (samples, length)."""
        torch.manual_seed(1)
        return [self.batch(samples, length) for samples, length in sizes]

    def loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        return Objective(self.criterion).loss(model, batch)


class ResidualCNN(nn.Module):
    """Convolutions, batch normalisation, pooling, up-sampling, a residual, dropout of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.GroupNorm(2, 8)
        self.drop = nn.Dropout2d(0.2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = functional.relu(x + self.block(x), inplace=True)
        x = x + self.up(self.pool(x))
        x = functional.silu(self.norm(self.depthwise(self.drop(x))))
        x = functional.avg_pool2d(x, 2)
        result: Tensor = self.head(x)
        return result


class UNet(nn.Module):
    """A U-Net in small: transposed convolution, a skip that is concatenated, instance normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1))
        self.deep = nn.Sequential(
            nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ELU()
        )
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.near = nn.Upsample(scale_factor=2, mode="nearest")
        self.out = nn.Conv2d(16, 1, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = self.deep(skip)
        result: Tensor = self.out(torch.cat([skip, self.up(deep), self.near(deep)], dim=1))
        return result


class Recurrent(nn.Module):
    """An embedding with padding, a recurrent layer over it, the last step classified."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8, padding_idx=0)
        self.rnn = kind(8, 12, batch_first=True, **options)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(12 * (2 if self.rnn.bidirectional else 1), 5)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.rnn(self.embed(tokens))
        result: Tensor = self.head(self.drop(states[:, -1]))
        return result


class CausalEncoder(nn.Module):
    """``nn.TransformerEncoder`` with a causal mask made in forward, weights tied, positions in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.register_buffer("positions", torch.randn(32, 16), persistent=False)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        x = self.embed(tokens) * 4.0 + self.positions[:length]
        result: Tensor = self.head(self.encoder(x, mask=mask, is_causal=True))
        return result


class Attention(nn.Module):
    """Scaled dot product attention with a mask of its own, a frozen parameter, RMSNorm, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.scale = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("level", torch.ones(16))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            self.level.mul_(0.9).add_(x.detach().mean(dim=(0, 1)), alpha=0.1)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        y = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=0.1 if self.training else 0.0
        )
        y = y.transpose(1, 2).flatten(2) * self.scale + x * self.level
        result: Tensor = self.head(y.mean(dim=1)).squeeze(-1)
        return result


class Extended(nn.Module):
    """A pre-norm encoder whose padding mask comes with the batch."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.embed = nn.Embedding(30, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, padding: Tensor) -> Tensor:
        x = self.encoder(self.embed(input_ids), src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(x.dtype)
        result: Tensor = self.head((x * kept).sum(1) / kept.sum(1).clamp(min=1))
        return result


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 32),
        nn.Tanh(),
        nn.BatchNorm1d(32),
        nn.Dropout(0.5),
        nn.Linear(32, 32),
        nn.GELU(),
        nn.Linear(32, 4),
    )


def _images(channels: int, size: int) -> Callable[[int, int], Any]:
    return lambda n, _: (torch.randn(n, channels, size, size), torch.randint(0, 10, (n,)))


def _tokens(vocabulary: int, classes: int) -> Callable[[int, int], Any]:
    return lambda n, length: (torch.randint(0, vocabulary, (n, length)), torch.randint(0, classes, (n,)))


def _language(vocabulary: int) -> Callable[[int, int], Any]:
    def make(n: int, length: int) -> Any:
        tokens = torch.randint(0, vocabulary, (n, length + 1))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return make


def _padded(n: int, length: int) -> Any:
    ends = torch.randint(1, length + 1, (n, 1))
    padding = torch.arange(length).expand(n, length) >= ends
    return {
        "input_ids": torch.randint(0, 30, (n, length)),
        "padding": padding,
        "labels": torch.randint(0, 4, (n,)),
    }


PLAIN = (
    Member("cnn", ResidualCNN, _images(3, 8)),
    Member(
        "unet", UNet, lambda n, _: (torch.randn(n, 1, 8, 8), torch.rand(n, 1, 8, 8)), nn.BCEWithLogitsLoss()
    ),
    Member(
        "mlp",
        _mlp,
        lambda n, _: (torch.randn(n, 12), torch.randint(0, 4, (n,))),
        nn.CrossEntropyLoss(label_smoothing=0.1),
    ),
    Member("lstm", lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.2), _tokens(50, 5), lengths=True),
    Member("gru", lambda: Recurrent(nn.GRU, bidirectional=True), _tokens(50, 5), lengths=True),
    Member("encoder", CausalEncoder, _language(40), lengths=True),
    Member(
        "sdpa",
        Attention,
        lambda n, t: (torch.randn(n, t, 16), torch.randn(n)),
        nn.SmoothL1Loss(),
        lengths=True,
    ),
    Member("padded", Extended, _padded, lengths=True),
)


def _hugging(make: Callable[[Any], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()
        return make(transformers)

    return build


def _gpt2(t: Any) -> nn.Module:
    return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2))


def _bert(t: Any) -> nn.Module:
    return t.BertForSequenceClassification(
        t.BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            num_labels=3,
        )
    )


def _bert_masked(t: Any) -> nn.Module:
    return t.BertForMaskedLM(
        t.BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    )


def _vit(t: Any) -> nn.Module:
    return t.ViTForImageClassification(
        t.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=4,
            num_labels=5,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        )
    )


def _t5(t: Any) -> nn.Module:
    return t.T5ForConditionalGeneration(
        t.T5Config(
            vocab_size=64,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_decoder_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            relative_attention_num_buckets=8,
        )
    )


def _llama(t: Any) -> nn.Module:
    return t.LlamaForCausalLM(
        t.LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            attention_dropout=0.1,
        )
    )


def _labelled(n: int, length: int) -> Any:
    tokens = torch.randint(1, 64, (n, length))
    return {"input_ids": tokens, "labels": tokens.clone()}


def _masked(n: int, length: int) -> Any:
    tokens = torch.randint(1, 64, (n, length))
    attention = (torch.arange(length).expand(n, length) < torch.randint(2, length + 1, (n, 1))).long()
    labels = tokens.masked_fill(attention == 0, -100)
    return {"input_ids": tokens, "attention_mask": attention, "labels": labels}


def _classified(n: int, length: int) -> Any:
    return {**_masked(n, length), "labels": torch.randint(0, 3, (n,))}


def _pictures(n: int, _: int) -> Any:
    return {"pixel_values": torch.randn(n, 3, 16, 16), "labels": torch.randint(0, 5, (n,))}


HUGGING = (
    Member("gpt2", _hugging(_gpt2), _labelled, lengths=True),
    Member("gpt2-masked", _hugging(_gpt2), _masked, lengths=True),
    Member("bert", _hugging(_bert), _classified, lengths=True),
    Member("bert-mlm", _hugging(_bert_masked), _masked, lengths=True),
    Member("vit", _hugging(_vit), _pictures),
    Member("t5", _hugging(_t5), _masked, lengths=True),
    Member("llama", _hugging(_llama), _masked, lengths=True),
)
ZOO = PLAIN + HUGGING
