"""Runs Python scripts for the tests, each in a fork of one process that has imported PyTorch and `transformers`: that takes longer than
most scripts do.

    python.py

Prints the path of a socket once it listens, and ends when its input does. A connection asks in one line of JSON: `argv`, the script's path
first, and `talks`. The answer is a line `{"status", "stdout"}`, the status as of waitpid and how many bytes of output follow, then those
bytes and those of the errors. A script that `talks` has the connection as its input and output instead.
"""

import gc
import json
import os
import runpy
import select
import shutil
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import jinja2  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
import transformers.modeling_utils
import transformers.utils.chat_template_utils  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401


def status_of(script):
    """Runs a script as `python SCRIPT` would; its exit status."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def become(asked, stdin, stdout, stderr):
    """Ends as the script does, with these as its input and outputs."""
    # A fork replaces torch's pool at the next call, which two threads at once would trip over.
    torch.set_num_threads(1)
    for number, file in enumerate([stdin, stdout, stderr]):
        os.dup2(file.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))
    sys.argv = asked["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    status = status_of(sys.argv[0])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def answer(connection):
    """Reads what is asked, and runs it in a process of its own, whose end this one waits for."""
    # Without a buffer: what follows the line is for the script.
    with connection, connection.makefile("rb", buffering=0) as words, open(os.devnull, "r+b") as nothing:
        asked = json.loads(words.readline())
        if asked["talks"]:
            become(asked, connection, connection, nothing)
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            child = os.fork()
            if child == 0:
                become(asked, nothing, stdout, stderr)
            status = os.waitpid(child, 0)[1]
            outputs = []
            for file in (stdout, stderr):
                file.seek(0)
                outputs.append(file.read())
        head = {"status": status, "stdout": len(outputs[0])}
        connection.sendall(json.dumps(head).encode() + b"\n" + b"".join(outputs))


def serve(path):
    """Forks for each connection, until the input ends."""
    running = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print(path, flush=True)
        while True:
            ready, _, _ = select.select([sys.stdin, listener], [], [])
            if sys.stdin in ready:
                break
            connection, _ = listener.accept()
            running = [child for child in running if os.waitpid(child, os.WNOHANG)[0] == 0]
            child = os.fork()
            if child == 0:
                listener.close()
                try:
                    answer(connection)
                except BaseException:
                    traceback.print_exc()
                os._exit(0)
            running.append(child)
            connection.close()
    for child in running:
        os.waitpid(child, 0)


def main():
    # A fork has the thread alone that forks; another's locks would stay locked.
    n_threads = len(os.listdir("/proc/self/task"))
    if n_threads > 1:
        sys.exit(f"python.py: {n_threads} threads after the imports, expected one")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    directory = tempfile.mkdtemp()
    try:
        serve(os.path.join(directory, "socket"))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
