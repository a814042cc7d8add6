"""A metric for `minitron score --metric torchscript:path=importance.pt`: the L2 norm over windows of the mean over tokens of
|activation|, which is what `activation:batch=l2,seq=mean` is.

    python importance.py importance.pt
"""

import sys

import torch
from torch import Tensor


class Importance(torch.nn.Module):
    @torch.jit.export
    def observe(self, x_btc: Tensor, block: int) -> Tensor:
        """Statistics [S, U] of one batch [B, T, U · block], which are added up over batches in f64."""
        if block == 1:
            size_btu = x_btc.abs()
        else:
            size_btu = torch.linalg.vector_norm(x_btc.unflatten(-1, [-1, block]), dim=-1)
        return size_btu.mean(dim=1).double().square().sum(dim=0, keepdim=True)

    @torch.jit.export
    def finish(self, sums_su: Tensor) -> Tensor:
        """Scores [U] of the sums."""
        return sums_su[0].sqrt()


torch.jit.script(Importance()).save(sys.argv[1])
