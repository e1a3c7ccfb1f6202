"""The process of `helpers.llama_cpp`: python -m helpers.llama_cpp_process FILE REQUESTS.json ANSWERS.json"""

import json
import os
import sys
from pathlib import Path

import xllamacpp

CONTEXT, THREADS = 64, 1


def main(file: str, asked: str, answered: str) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = CONTEXT, 1, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = THREADS
    server = xllamacpp.Server(parameters)
    answers = [server.handle_completions(request) for request in json.loads(Path(asked).read_text())]
    Path(answered).write_text(json.dumps(answers))
    os._exit(0)  # the threads of the server do not end


if __name__ == "__main__":
    main(*sys.argv[1:])
