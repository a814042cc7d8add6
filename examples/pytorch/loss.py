"""A loss for `minitron distill --loss torchscript:path=loss.pt`: KL(teacher ‖ student) of every row, which is what `forward_kl`
is.

    python loss.py loss.pt
"""

import sys

import torch
from torch import Tensor


class Loss(torch.nn.Module):
    def forward(self, student_nv: Tensor, teacher_nv: Tensor, labels_n: Tensor) -> Tensor:
        """One number per row of logits [N, V]; no reduction, minitron runs over chunks of rows."""
        log_p, log_q = teacher_nv.log_softmax(-1), student_nv.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)


torch.jit.script(Loss()).save(sys.argv[1])
