"""One rank of a peer: KL distillation in eager PyTorch under torchrun, on Gloo.

    torchrun --standalone --nproc-per-node 2 benches/peer_ranks.py MODE TEACHER STUDENT TOKENS.npy BATCH SEQ STEPS

MODE is ddp (DistributedDataParallel), zero1 (the same with ZeroRedundancyOptimizer) or fsdp2 (fully_shard of every block of student
and teacher). BATCH is that of all ranks together. Rank 0 prints seconds of each step, and all ranks' peak memory.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import AutoModelForCausalLM


def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def prepared(mode, teacher, student):
    adamw = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
    if mode == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for model in (teacher, student):
            for block in model.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        return student, torch.optim.AdamW(student.parameters(), **adamw)
    wrapped = torch.nn.parallel.DistributedDataParallel(student)
    if mode == "zero1":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return wrapped, ZeroRedundancyOptimizer(wrapped.parameters(), optimizer_class=torch.optim.AdamW, **adamw)
    return wrapped, torch.optim.AdamW(wrapped.parameters(), **adamw)


def main(mode, teacher, student, tokens, batch, seq, steps):
    batch, seq, steps = int(batch), int(seq), int(steps)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    teacher = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval().requires_grad_(False)
    student = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).train()
    model, optimizer = prepared(mode, teacher, student)
    ids = torch.from_numpy(np.load(tokens).astype(np.int64)).view(-1, seq)
    seconds = []
    for step in range(steps):
        begin = time.time()
        windows = ids[(step * batch) % len(ids) :][:batch][rank::size]
        with torch.no_grad():
            said = teacher(input_ids=windows, use_cache=False).logits
        logits = model(input_ids=windows, use_cache=False).logits
        loss = F.kl_div(
            F.log_softmax(logits, -1).flatten(0, 1), F.log_softmax(said, -1).flatten(0, 1), log_target=True, reduction="batchmean"
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.time() - begin)
    peaks = [None] * size
    dist.all_gather_object(peaks, peak_mib())
    if rank == 0:
        print(json.dumps({"seconds": seconds, "peak_mib": peaks}))
    dist.destroy_process_group()


main(*sys.argv[1:])
