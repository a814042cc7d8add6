"""A loss for `minitron distill --loss torchscript_states:path=state_loss.pt` on states after a layer: the mean over tokens of
1 − cosine, which is what `hidden_state` is.

    python state_loss.py state_loss.pt
"""

import sys

import torch
from torch import Tensor


class StateLoss(torch.nn.Module):
    def forward(self, student_nc: Tensor, teacher_nc: Tensor) -> Tensor:
        """One number of the states [N, C] of all tokens."""
        return (1.0 - torch.nn.functional.cosine_similarity(student_nc, teacher_nc, dim=-1)).mean()


torch.jit.script(StateLoss()).save(sys.argv[1])
