"""Writes tests/golden/fixtures/megatron*: tokenised documents by Megatron-LM's own writer, and what they hold.

    .deps/venv/bin/python -m pip install --no-deps megatron-core==0.16.1
    .deps/venv/bin/python tests/golden/megatron_pairs.py

fixtures/megatron_TYPE.idx, .bin    a pair for each element type
fixtures/megatron.json              TYPE -> documents, each its ids with its sequences joined
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.dont_write_bytecode = True  # leave the folder as it is
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder  # noqa: E402

FIXTURES = Path(__file__).parent / "fixtures"
# Documents of one sequence, of several, of none, and with an empty sequence.
DOCUMENTS = [[[1, 2, 3]], [[4], [5, 6]], [], [[7, 8, 9, 10], [], [11]], [[12]]]
LARGEST = {"uint8": 255, "uint16": 65535, "int32": 2**31 - 1, "int64": 2**32 - 1}

held = {}
for dtype, largest in LARGEST.items():
    builder = IndexedDatasetBuilder(str(FIXTURES / f"megatron_{dtype}.bin"), dtype=getattr(np, dtype))
    documents = [*DOCUMENTS, [[largest, 0]]]
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(str(FIXTURES / f"megatron_{dtype}.idx"))
    held[dtype] = [[id for sequence in document for id in sequence] for document in documents]
(FIXTURES / "megatron.json").write_text(json.dumps(held) + "\n")
