"""What sentence-transformers makes of a model folder, on the CPU in f32.

    sentence_transformer.py embed MODEL_DIR TEXTS.json OUT.safetensors SAVED_DIR
    sentence_transformer.py with_dense MODEL_DIR SAVED_DIR

`embed` writes the `embeddings` of length 1 and prints the dimension that the model announces; then it saves the model.
`with_dense` saves the model with a Dense to a third of its width before what follows pooling.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

try:
    from sentence_transformers.sentence_transformer.modules import Dense
except ImportError:
    from sentence_transformers.models import Dense


def load(model_dir):
    # Stored in 16 bits, it would be computed in them.
    return SentenceTransformer(model_dir, device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})


def dimension(model):
    ask = getattr(model, "get_sentence_embedding_dimension", None) or model.get_embedding_dimension
    return ask()


def embed(model_dir, texts, out, saved):
    model = load(model_dir)
    texts = json.loads(Path(texts).read_text())
    vectors = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
    save_file({"embeddings": vectors.float().contiguous()}, out)
    model.save(saved)
    print(json.dumps({"dimension": dimension(model), "width": vectors.shape[1]}))


def with_dense(model_dir, saved):
    torch.manual_seed(0)
    model = load(model_dir)
    modules = list(model.children())
    dense = Dense(in_features=dimension(model), out_features=dimension(model) // 3)
    SentenceTransformer(modules=[*modules[:2], dense, *modules[2:]], device="cpu").save(saved)


if __name__ == "__main__":
    {"embed": embed, "with_dense": with_dense}[sys.argv[1]](*sys.argv[2:])
