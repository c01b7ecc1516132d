"""The rival of the training step: CLIP of the same shape, written plainly in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from clipdef_jax.models.config import CLIPConfig


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).reshape(rows, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        hidden = self.up(self.norm_2(x))
        return x + self.down(hidden * torch.sigmoid(1.702 * hidden))


class _VisionTransformer(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        width, patch = config.image_width, config.patch_size
        self.patches = nn.Conv2d(3, width, patch, patch, bias=False)
        self.token = nn.Parameter(torch.randn(width) * width**-0.5)
        length = (config.image_size // patch) ** 2 + 1
        self.position = nn.Parameter(torch.randn(length, width) * width**-0.5)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        assert isinstance(config.image_layers, int)
        blocks = (_Block(width, config.image_heads, False) for _ in range(config.image_layers))
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Linear(width, config.embed_dim, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, -1), x], dim=1) + self.position
        return self.project(self.after(self.blocks(self.before(x))[:, 0]))


class _Text(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.text_width
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.position = nn.Parameter(torch.randn(config.context_length, width) * 0.01)
        blocks = (_Block(width, config.text_heads, True) for _ in range(config.text_layers))
        self.blocks = nn.Sequential(*blocks)
        self.after = nn.LayerNorm(width)
        self.project = nn.Linear(width, config.embed_dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.after(self.blocks(self.embedding(tokens) + self.position))
        return self.project(x[torch.arange(len(tokens)), tokens.argmax(dim=-1)])


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv_1, self.norm_1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv_3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm_3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, bias=False)
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm_1(self.conv_1(x)))
        y = self.relu(self.norm_2(self.conv_2(y)))
        return self.relu(self.norm_3(self.conv_3(self.pool(y))) + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.image_width
        stem: list[nn.Module] = []
        half = width // 2
        for inputs, outputs, stride in ((3, half, 2), (half, half, 1), (half, width, 1)):
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            stem += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem, nn.AvgPool2d(2))
        blocks, inputs = [], width
        assert isinstance(config.image_layers, tuple)
        for stage, count in enumerate(config.image_layers):
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(_Bottleneck(inputs, width * 2**stage, stride))
                inputs = 4 * width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.heads = config.image_heads
        length = (config.image_size // 32) ** 2 + 1
        self.position = nn.Parameter(torch.randn(length, inputs) * inputs**-0.5)
        self.query, self.key, self.value = (nn.Linear(inputs, inputs) for _ in range(3))
        self.out = nn.Linear(inputs, config.embed_dim)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(pixels)).flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.position

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(len(y), -1, self.heads, y.shape[-1] // self.heads).transpose(1, 2)

        query, key, value = self.query(x[:, :1]), self.key(x), self.value(x)
        mixed = functional.scaled_dot_product_attention(heads(query), heads(key), heads(value))
        return self.out(mixed.transpose(1, 2).reshape(len(x), -1))


class _Clip(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        vit = config.image_tower == "vit"
        self.image = _VisionTransformer(config) if vit else _ResNet(config)
        self.text = _Text(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        image = functional.normalize(self.image(pixels), dim=-1)
        text = functional.normalize(self.text(tokens), dim=-1)
        logits = self.log_scale.exp() * image @ text.T
        own = torch.arange(len(logits))
        both = functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
        return both / 2


def training_step(config: CLIPConfig, batch: int) -> Callable[[], float]:
    """Returns a function that takes a training step, AdamW included, on random data.

    Args:
      config: the shape; MLPs are four times as wide as their towers, and QuickGELU.
      batch: pairs a step.
    """
    torch.manual_seed(0)
    model = _Clip(config)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)
    side = config.image_size
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    tokens = torch.randint(1, config.vocab_size, (batch, config.context_length))

    def step() -> float:
        loss = model((images.float() / 255 - 0.45) / 0.27, tokens)
        loss.backward()
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            model.log_scale.clamp_(0, 4.6052)
        return loss.item()

    return step
