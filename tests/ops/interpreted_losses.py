"""Compares the kernel of the losses with PyTorch's, under TRITON_INTERPRET=1."""

import torch

from ahn.ops.logit_losses import logit_losses
from ahn.training.losses import IGNORE
from ahn.training.losses.builtin import _plain

torch.manual_seed(0)
compared = 0
for vocabulary in (5, 64, 3000):  # 3000: two rounds of a kernel
    student, teacher = 3 * torch.randn(2, 7, vocabulary)
    targets = torch.tensor([0, 1, IGNORE, vocabulary - 1, IGNORE, 2, 3])
    counts = torch.tensor([True, False, True, False, False, True, True])
    for labels in (None, targets):
        for counted in (None, counts):
            for weights in ((1.0, 0.0), (0.5, 2.0)):
                for wanted in (False, True):
                    known = (teacher, labels, counted, weights, wanted)
                    expected, slope = _plain(student, *known)
                    logits = student.clone()
                    found = logit_losses(logits, *known)
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
                    after = slope if wanted and (weights[1] == 0 or labels is not None) else None
                    if not wanted:
                        assert torch.equal(logits, student)
                    elif after is not None:
                        torch.testing.assert_close(logits, after, rtol=1e-5, atol=1e-6)
                    compared += 1
print("compared", compared)
