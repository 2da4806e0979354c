"""Networks as a user of fastprune writes them: classes in a file, named by their import path."""

import torch
from torch import nn


class ConvBlock(nn.Module):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(
                in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.projection = None
        if stride != 1 or in_channels != out_channels:
            self.projection = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x):
        out = self.conv_block(x)
        out += x if self.projection is None else self.projection(x)
        return torch.relu_(out)


class TutorialResNet32(nn.Module):
    """ResNet-32 of a tutorial: 1x1 convolutions as shortcuts, 472,756 parameters."""

    def __init__(self, num_classes=100, blocks=5):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        )
        channels = 16
        self.blocks = nn.ModuleList()
        for stage in range(3):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                self.blocks.append(ConvBlock(channels, 16 * 2**stage, stride))
                channels = 16 * 2**stage
        self.pool = nn.AvgPool2d(8)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.pool(x)
        return self.fc(x.view(x.size(0), -1))


class CustomVGG(nn.Module):
    """A VGG that flattens maps of 4x4 pixels of a 32x32 image into a linear head.

    Args:
        hidden: features between the maps and the classes; None goes to the classes at once.
    """

    def __init__(self, num_classes=100, widths=(32, 64, 128), hidden=None):
        super().__init__()
        layers = []
        channels = 3
        for width in widths:
            for _ in range(2):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        if hidden is None:
            self.classifier = nn.Linear(channels * 4 * 4, num_classes)
        else:
            self.classifier = nn.Sequential(
                nn.Linear(channels * 4 * 4, hidden),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(hidden, num_classes),
            )

    def forward(self, x):
        x = self.features(x)
        return self.classifier(torch.flatten(x, 1))


def custom_vgg_with_hidden_layer(num_classes=100):
    return CustomVGG(num_classes, hidden=256)
