"""Handwritten digits and a network for them: what the coordinator and every node must have alike.

The digits are real (1,797 images of 8 x 8 pixels) and come with scikit-learn: pip install "manyhands[demo]".
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

NUM_TEST = 297


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and test set: images as 64 values from 0 to 1, and the digit."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32) / 16
    targets = torch.tensor(labels)
    return (
        TensorDataset(pixels[:-NUM_TEST], targets[:-NUM_TEST]),
        TensorDataset(pixels[-NUM_TEST:], targets[-NUM_TEST:]),
    )


def network() -> nn.Module:
    """A small network, with the same first weights on every machine."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(128, 10),
    )
