"""What lm-eval, the language-model evaluation harness, measures of a model on files: its own tasks, but for where the items come from.

    harness.py OUT.json MODEL... NAME=TASK:FILE...

TASK is the path of one of its task definitions without `.yaml`, such as `arc/arc_easy`; FILE is a .jsonl of items with the fields
that the benchmark publishes.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()

import datasets
import lm_eval.tasks
import transformers
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

# What the harness can say besides what a task asks for, by kind of task.
MORE = {"multiple_choice": ["acc", "acc_norm", "acc_bytes"], "loglikelihood": ["acc", "perplexity"]}


def task(name, definition, file):
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / f"{definition}.yaml", resolve_func=True)
    elsewhere = ("training_split", "validation_split", "fewshot_split", "fewshot_config", "dataset_name", "tag", "task_alias")
    for key in elsewhere:
        config.pop(key, None)
    metrics = MORE.get(config["output_type"])
    if metrics:
        config["metric_list"] = [{"metric": metric} for metric in metrics]
    here = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}}, "test_split": "test"}
    return ConfigurableTask(config=config | here | {"task": name})


def measured(model_dir, tasks):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")
    # Errors of means have a closed form; those of the rest are not compared, but none at all is asked for by 0 alone.
    return simple_evaluate(model=harness, tasks=tasks, bootstrap_iters=2, log_samples=False)["results"]


def main(out, *words):
    datasets.disable_progress_bars()
    models = [word for word in words if "=" not in word]
    tasks = [word.split("=", 1) for word in words if "=" in word]
    tasks = [task(name, *rest.split(":", 1)) for name, rest in tasks]
    Path(out).write_text(json.dumps([measured(model, tasks) for model in models]))


main(*sys.argv[1:])
