"""The factor of a student's logits that is nearest to its teacher, from what PyTorch computes, against the folder of a student.

    temperature.py TEACHER_DIR PLAIN_DIR STUDENT_DIR IDS.safetensors

STUDENT is PLAIN behind `temperature_scaling` over all of IDS. Fails where more than a norm differs, where its logits are not those of PLAIN
at the factor of the least KL (1e-3, relative), where its KL is another (3e-6), and where PLAIN was there before.
"""

import sys
from pathlib import Path

import torch
from reference import load
from safetensors.torch import load_file


def logits(model, ids, factor):
    """As the head makes them of `factor` times what it reads."""
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0] * factor,))
    with torch.no_grad():
        found = model(input_ids=ids, use_cache=False).logits
    hook.remove()
    return found.double()


def main(teacher_dir, plain_dir, student_dir, ids):
    ids = load_file(ids)["input_ids"]
    before, after = (load_file(Path(of) / "model.safetensors") for of in (plain_dir, student_dir))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all("norm" in name or "ln_f" in name for name in changed), changed
    teacher, plain, student = (load(of).double() for of in (teacher_dir, plain_dir, student_dir))
    log_p = logits(teacher, ids, 1.0).log_softmax(-1)

    def kl(at):
        return (log_p.exp() * (log_p - at.log_softmax(-1))).sum(-1).mean().item()

    # Sections of a valley, each 0.62 of the one before.
    low, high, share = 0.2, 5.0, (5**0.5 - 1) / 2
    for _ in range(60):
        nearer, farther = high - share * (high - low), low + share * (high - low)
        if kl(logits(plain, ids, nearer)) < kl(logits(plain, ids, farther)):
            high = farther
        else:
            low = nearer
    factor = (low + high) / 2
    wanted, found, start = logits(plain, ids, factor), logits(student, ids, 1.0), logits(plain, ids, 1.0)
    error = ((found - wanted).norm() / wanted.norm()).item()
    assert error < 1e-3, f"{teacher_dir}: {error} away from the logits at {factor}"
    said = f"{teacher_dir}: {kl(start)} -> {kl(found)}, {kl(wanted)} at {factor}"
    assert kl(found) < kl(wanted) * (1 + 3e-6), said
    assert kl(start) > kl(wanted) * (1 + 1e-4), said


if __name__ == "__main__":
    main(*sys.argv[1:])
