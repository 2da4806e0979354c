"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastprune.data._dataset import Dataset, Images, PadCrop, check_size, registry
from fastprune.data._draws import stratified_order
from fastprune.data._options import DataOptions

_TEST_FRACTION = 0.15
_TEST_SEED = 0
_SCALE = 4
_HIGHEST = 16


@registry.register("digits")
def build(options: DataOptions) -> Dataset:
    """1,797 handwritten digits, 8x8 in 17 greys, brought to 32x32x3.

    270 of them are the test set, 15 % of each class and the same ones for every seed: a network
    trained with one seed must not meet its test images when it is fine-tuned with another.
    """
    check_size(options, 8 * _SCALE)

    def part(*, test: bool) -> Images:
        # Imported late: scikit-learn takes a second to load.
        from sklearn.datasets import load_digits

        found = load_digits()
        labels = found.target.astype(np.int64)
        order = stratified_order(labels, _TEST_SEED)
        held = round(_TEST_FRACTION * len(labels))
        chosen = np.sort(order[:held] if test else order[held:])
        grey = upsampled(found.images[chosen].astype(np.int64))
        return Images(np.repeat(grey[:, None], 3, axis=1), labels[chosen])

    return Dataset(
        classes=tuple(str(digit) for digit in range(10)),
        input_shape=(3, 8 * _SCALE, 8 * _SCALE),
        # Measured over the 1,527 training images.
        mean=(0.305, 0.305, 0.305),
        std=(0.323, 0.323, 0.323),
        # A mirrored digit is another sign, so no flip.
        transform=PadCrop(padding=2, flip=False),
        train=lambda: part(test=False),
        test=lambda: part(test=True),
    )


def upsampled(images: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """``[N, 8, 8]`` in 0..16 -> ``[N, 32, 32]`` in 0..255, bilinear, in integers alone.

    Pixel centres are aligned and edges repeated, as torch does it with ``align_corners=False``;
    integers make the bytes the same on every machine.
    """
    size = images.shape[-1]
    # Position of output pixel i in eighths of an input pixel: (i + 1/2) / 4 - 1/2 = (2i - 3) / 8.
    at = 2 * np.arange(size * _SCALE) - (_SCALE - 1)
    lower, weight = at // (2 * _SCALE), at % (2 * _SCALE)
    low, high = np.clip(lower, 0, size - 1), np.clip(lower + 1, 0, size - 1)
    rows = images[:, low] * (2 * _SCALE - weight[:, None]) + images[:, high] * weight[:, None]
    both = rows[:, :, low] * (2 * _SCALE - weight) + rows[:, :, high] * weight
    unit = _HIGHEST * (2 * _SCALE) ** 2
    return np.asarray((both * 255 + unit // 2) // unit, np.uint8)
