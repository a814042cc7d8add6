"""What people run today on a GPU: forward-KL distillation of logits in transformers, bf16 by autocast over f32 weights, fused
AdamW; with --liger, Liger's kernels for the layers of the student.

    python benches/gpu_peer.py TEACHER STUDENT TOKENS.npy BATCH SEQ STEPS DEVICE [--liger]

Prints one JSON object. Loading and the first two steps are left out of the rate. On the CPU it computes in f32.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM


def load(folder, device, liger, trains):
    kind = torch.float32 if trains or device == "cpu" else torch.bfloat16
    maker = AutoModelForCausalLM
    if liger:
        from liger_kernel.transformers import AutoLigerKernelForCausalLM as maker
    return maker.from_pretrained(folder, dtype=kind).to(device).train(trains)


def main(teacher, student, tokens, batch, seq, steps, device, liger=""):
    batch, seq, steps = int(batch), int(seq), int(steps)
    teacher, student = load(teacher, device, False, False), load(student, device, liger == "--liger", True)
    settings = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": device != "cpu"}
    optimizer = torch.optim.AdamW(student.parameters(), **settings)
    ids = torch.from_numpy(np.load(tokens).astype(np.int64))
    ids = ids[: len(ids) // seq * seq].view(-1, seq)
    cast = torch.autocast(device, torch.bfloat16, enabled=device != "cpu")
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    n = 0
    for step in range(steps):
        if step == 2:
            wait()
            begin, n = time.monotonic(), 0
        rows = (step * batch + torch.arange(batch)) % len(ids)
        inputs = ids[rows].to(device)
        with torch.no_grad():
            log_p = F.log_softmax(teacher(input_ids=inputs, use_cache=False).logits[:, :-1].float(), -1)
        with cast:
            logits = student(input_ids=inputs, use_cache=False).logits[:, :-1]
        log_q = F.log_softmax(logits.float(), -1)
        loss = F.kl_div(log_q.flatten(0, 1), log_p.flatten(0, 1), log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        n += inputs.numel()
    wait()
    rate = n / (time.monotonic() - begin)
    dtype = "f32" if device == "cpu" else "bf16"
    print(json.dumps({"tokens_per_second": rate, "loss": loss.item(), "dtype": dtype}))


main(*sys.argv[1:])
