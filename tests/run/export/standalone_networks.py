"""Networks of users' own that try what a stand-alone file can hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastprune.nn import ReLUWithZeroCount


class Scaled(nn.Module):
    """A parameter of its own, and a buffer that is not saved."""

    mask: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.register_buffer("mask", torch.linspace(0.5, 1, 7)[:1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * self.mask


class OwnNorm(nn.LayerNorm):
    """A layer of the user's own that is one of torch's."""


class Everything(nn.Module):
    """Sizes read from the images, steps in place, constants, tied weights, several parts."""

    steps: Tensor

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect")
        self.norm = nn.GroupNorm(2, 8)
        self.scaled = Scaled(8)
        self.left = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.same = nn.Conv2d(8, 8, 1)
        self.again = self.same
        self.other = nn.Conv2d(8, 8, 1)
        self.other.weight = self.same.weight
        self.plain = nn.BatchNorm2d(8, affine=False, eps=1e-3)
        self.add_module("odd-name", nn.BatchNorm2d(8))
        self.tokens = nn.LayerNorm(8, eps=1e-6)
        self.own = OwnNorm(8)
        self.act = nn.PReLU(8)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(32, 16)
        self.fc = nn.Linear(16, num_classes)
        self.alone = nn.Linear(2, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        x = self.scaled(self.norm(self.stem(x)))
        x = F.conv2d(x, self.left.weight, None, 2, 1, 1, self.left.groups)
        x = self.act(x)
        x = self.other(self.again(self.same(x))) + x
        x = self.get_submodule("odd-name")(self.plain(x))
        n, c, h, w = x.shape
        x = x + torch.zeros(1, c, 1, 1)
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        first, second = x.chunk(2, 1)
        x = torch.cat([first, second.sigmoid() * torch.tensor(0.25)], 1)
        with torch.no_grad():
            x = x.masked_fill(x > 2, float("-inf")).clamp_(-1, 1)
        x = F.interpolate(x, scale_factor=2)[:, :, 1:-3:2, -4:]
        x = self.own(self.tokens(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = F.adaptive_avg_pool2d(x, 2).to(torch.float32)
        x *= 2
        x = x.flatten(2).repeat(1, 1, 2)[..., :4]
        x = x.softmax(-1) + x.mean(-1, keepdim=True)
        return self.fc(self.drop(F.gelu(self.hidden(x.reshape(x.size(0), -1)))))


class Root(nn.Sequential):
    """Its layers are called 0, 1, ..., as those of a fusion head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, num_classes),
        )


class Counting(nn.Module):
    """Has an op that is no torch's own."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.relu = ReLUWithZeroCount(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


class Bessel(nn.Module):
    """Has a step of torch's that ONNX has not."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.special.bessel_j0(self.conv(x)).mean((2, 3)))


class Deciding(nn.Module):
    """What it does depends on what is in the images."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.mean() > 0.5:
            x = x * 2
        return self.fc(x.mean((2, 3)))


class Fixed(nn.Module):
    """Its code knows two images in a batch."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return self.fc(x + torch.zeros(x.shape[0] if x.shape[0] != 2 else 2, 1))
