"""A reconstruction for `minitron prune --heal torchscript:path=reconstruction.pt`: the second projection of every MLP, scaled so that its
Frobenius norm is the teacher's again.

    python reconstruction.py reconstruction.pt
"""

import sys

import torch
from torch import Tensor


class Reconstruction(torch.nn.Module):
    def forward(self, student_ef: Tensor, teacher_ef: Tensor, kept_e: Tensor, kept_f: Tensor) -> Tensor:
        """The new weight [E, F]; `kept_e` and `kept_f` are the teacher's rows and columns that the student has."""
        return student_ef * (teacher_ef.norm() / student_ef.norm())


torch.jit.script(Reconstruction()).save(sys.argv[1])
