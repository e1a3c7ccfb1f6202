"""llama.cpp on a GGUF file, in a process of its own: its server keeps threads that outlive it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.processes import HANGS


class LlamaCpp:
    """Answers about one file, by greedy choice and without a cache; every call starts llama.cpp anew."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def ask(self, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers of the completion endpoint."""
        asked, answered = self.file.with_suffix(".asked.json"), self.file.with_suffix(".answered.json")
        asked.write_text(json.dumps([{"temperature": 0.0, "cache_prompt": False, **request} for request in requests]))
        command = [sys.executable, "-m", "helpers.llama_cpp_process", str(self.file), str(asked), str(answered)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=HANGS)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(answered.read_text())


def probabilities(prompt: list[int], vocabulary: int) -> dict[str, Any]:
    """The request for every token's log-probability after the prompt; the likeliest may not be a part of a character,
    or llama.cpp keeps it back."""
    return {"prompt": prompt, "n_predict": 1, "n_probs": vocabulary}


def log_probabilities(answer: dict[str, Any]) -> Tensor:
    found = {p["id"]: p["logprob"] for p in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    return torch.tensor([found[token] for token in sorted(found)])


def greedily(prompt: list[int] | str, tokens: int) -> dict[str, Any]:
    """The request for the tokens that follow, also those that are parts of a character."""
    return {"prompt": prompt, "n_predict": tokens, "return_tokens": True, "verbose": True}


def tokens_of(answer: dict[str, Any]) -> list[int]:
    return answer["__verbose"]["tokens"]
