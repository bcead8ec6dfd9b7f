"""Which samples are classified right, and which count."""

import pytest
import torch
from torch import nn

from gradflow.loss.empirical import count_correct

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [4.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("criterion", "output", "target", "expected"),
    [
        (nn.CrossEntropyLoss(), LOGITS, [0, 1, 0, 0], (3, 4)),
        (nn.CrossEntropyLoss(), LOGITS, [0, -100, 0, 1], (1, 3)),
        (nn.CrossEntropyLoss(ignore_index=0), LOGITS, [0, 1, 2, 1], (2, 3)),
        (nn.MSELoss(), LOGITS, [[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], (2, 4)),
        (nn.MSELoss(), LOGITS, [[1.0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], (0, 0)),  # not one class each
        (nn.MSELoss(), LOGITS, [[0.5, 0.5, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], (0, 0)),
        (nn.BCEWithLogitsLoss(), LOGITS[:, :1] - 1, [[1.0], [0.0], [1.0], [0.0]], (2, 4)),
        (nn.BCEWithLogitsLoss(), LOGITS[:, 0], [0.0, 0.0, 0.0, 1.0], (3, 4)),  # a logit of 0 says 0
        (nn.BCEWithLogitsLoss(), LOGITS[:, 0], [0.2, 0.0, 0.0, 1.0], (0, 0)),
        (nn.MSELoss(), LOGITS[:, 0], [0.0, 0.0, 0.0, 1.0], (0, 0)),
    ],
)
def test_samples_classified_right_are_counted(criterion, output, target, expected):
    assert count_correct(criterion, output, torch.tensor(target)) == expected
