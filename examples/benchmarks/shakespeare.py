"""Tiny Shakespeare with a character-level GPT-2, several seeds: dendritic pruning against dense training and controls.

    python examples/benchmarks/shakespeare.py base      # the dense models that all others start from
    python examples/benchmarks/shakespeare.py train
    python examples/benchmarks/shakespeare.py time      # the first seed, in turn with its dense model; a quiet machine
    python examples/benchmarks/shakespeare.py render    # model_cards/gpt2-tinyshakespeare.md, .json and figures

Every phase resumes, and processes with the same options share the work. `--dataset` is a text file (or its address), or
a folder with an `input.txt`; its last tenth is held out.
An ablation: `--methods dendritic --config regrow=0.0 --variant no-regrow`.
"""

import argparse
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from harness.budget import widest_within
from harness.cli import main
from harness.images import as_it_is
from harness.metric import BITS
from harness.task import Card, Score, Task
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
LENGTH = 128  # characters that the model sees
EPOCH = 500  # steps, after each of which a training is scored and saved
PROMPT, SAMPLE, TEMPERATURE = "\n", 300, 0.8


def gpt2(vocabulary: int, width: int = 128) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=LENGTH,
        n_embd=width,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


class Windows(Dataset):
    """Random windows of the text: sample `i` is a new one each time. Served a whole batch at a time."""

    def __init__(self, ids: Tensor, count: int):
        self.ids, self.count = ids, count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        starts = torch.randint(len(self.ids) - LENGTH + 1, (len(indices), 1))
        windows = self.ids[starts + torch.arange(LENGTH)]
        return {"input_ids": windows, "labels": windows}


class Shakespeare(Task):
    """Trained from scratch until it is flat, then for some steps more by every method."""

    metric = BITS
    default_levels = (0.6,)
    default_output_dir = "runs/shakespeare"
    default_card = "model_cards/gpt2-tinyshakespeare.md"
    later = ("steps1", "learning_rate1", "distillation")

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dataset", default=SOURCE)
        parser.set_defaults(batch_size=16)
        parser.add_argument("--steps0", type=int, default=10000, help="of the base")
        parser.add_argument("--steps1", type=int, default=600, help="of every method, from the base")
        parser.add_argument("--learning_rate", type=float, default=2e-3)
        parser.add_argument("--learning_rate1", type=float, default=1e-3, help="of the steps1")
        parser.add_argument("--distillation", type=float, default=0.0, help="from the base")

    def recipe(self) -> dict[str, Any]:
        names = ("steps0", "steps1", "batch_size", "learning_rate", "learning_rate1", "distillation", "bf16")
        return {name: getattr(self.args, name) for name in (*names, "max_steps")}

    def stages(self) -> tuple[dict[str, Any], dict[str, Any]]:
        shared = {
            "per_device_train_batch_size": self.args.batch_size,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "weight_decay": 0.1,
            "optim": "adamw_torch_fused",
            "bf16": self.args.bf16,
        }
        limit = self.args.max_steps or self.args.steps0 + self.args.steps1
        first, second = (min(steps, limit) for steps in (self.args.steps0, self.args.steps1))
        return (
            {**shared, "max_steps": first, "learning_rate": self.args.learning_rate},
            {**shared, "max_steps": second, "learning_rate": self.args.learning_rate1},
        )

    def control(self) -> dict[str, Any]:
        return {"learning_rate": self.args.learning_rate1 / 10}

    def pruning(self, importance: str = "dendritic") -> dict[str, Any]:
        return {"distillation": self.args.distillation, "units": "structured"}

    def fresh(self) -> nn.Module:
        return gpt2(len(self._characters))

    def load(self, folder: Path) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def trained_form(self, model: nn.Module) -> nn.Module:
        """On a CPU the backward pass of PyTorch's fused attention is slow in bf16."""
        assert isinstance(model, PreTrainedModel)
        model.set_attn_implementation("eager")
        return model

    def smaller(self, level: float, base: Path) -> tuple[nn.Module, bool]:
        """The widest network within the parameters that pruning leaves, trained from scratch by both stages."""
        make = [lambda width=width: gpt2(len(self._characters), width) for width in range(124, 0, -4)]
        return widest_within(self, self.load(base), level, "params", make), True

    def card(self) -> Card:
        return Card(
            script="shakespeare.py",
            title="Dendritic pruning of a character-level GPT-2 on Tiny Shakespeare",
            description=(
                "GPT-2 (4 layers, 128 wide, 4 heads) over the 65 characters of Tiny Shakespeare, trained from scratch "
                "on random windows of 128 characters of the first nine tenths of the text; the last tenth validates, "
                "in windows that overlap by one character, so that every character but the first is predicted once."
            ),
            pipeline_tag="text-generation",
            dataset_id="karpathy/tiny_shakespeare",
            metric_id="bits_per_character",
            budget="params",
            tolerances={0.6: 0.05},
            base=f"trained from scratch for {self.args.steps0:,} steps",
            second=f"{self.args.steps1:,} steps",
            smaller="a narrower residual stream, no more parameters than that level leaves; from scratch, both stages.",
            optimizer="AdamW, linear warm-up over 5 % of the steps, then cosine decay",
            targets="all Conv1D layers; the embedding, tied to the head, shrinks with the stream and is not counted",
            selection="Hyper-parameters were not searched for this table.",
            measure="Bits per character (lower is better)",
            unit_of_examples="windows",
            shape=" of 128 characters",
        )

    def extra(self, runs: list[dict[str, Any]]) -> str:
        """What the dense and the packed models of the first seed write."""
        seed = min(run["seed"] for run in runs)
        own = [r for r in runs if r["seed"] == seed and r["method"] in ("dense", "dendritic") and not r["variant"]]
        own.sort(key=lambda run: run["level"])
        samples = [
            f"{run['method']}, {run['level']:.0%} removed:\n\n```text\n{run['sample'].strip()}\n```" for run in own
        ]
        heading = f"## Samples\n\n{SAMPLE} characters after a line break, seed {seed}, temperature {TEMPERATURE:g}.\n\n"
        return "\n" + heading + "\n\n".join(samples) + "\n" if samples else ""

    def train_data(self, stage: int) -> tuple[Dataset, Any]:
        return Windows(self._ids[0], self.args.batch_size * EPOCH), as_it_is

    @torch.inference_mode()
    def score(self, model: nn.Module) -> Score:
        """Bits per character of each window of the held-out text; every window predicts all but its first character."""
        windows = self._ids[1].unfold(0, LENGTH, LENGTH - 1)
        bits: list[float] = []
        for batch in windows.split(64):
            logits = model(input_ids=batch).logits[:, :-1]
            losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
            bits += (losses.mean(1) / math.log(2)).tolist()
        rounded = [round(value, 5) for value in bits]
        return Score(sum(rounded) / len(rounded), rounded, {"sample": self._sample(model)})

    def _sample(self, model: nn.Module) -> str:
        """What the model writes, with a fixed seed; sampled by hand because a window is as long as its memory."""
        generator = torch.Generator().manual_seed(0)  # a training goes on after it as if nothing had been drawn
        ids = [self._characters.index(PROMPT)]
        for _ in range(SAMPLE):
            logits = model(input_ids=torch.tensor([ids[-LENGTH:]])).logits[0, -1]
            ids.append(int(torch.multinomial(torch.softmax(logits / TEMPERATURE, -1), 1, generator=generator)))
        return "".join(self._characters[i] for i in ids[1:])

    def example_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self._ids[1][: 8 * LENGTH].view(8, LENGTH)}

    def samples(self) -> dict[str, int]:
        return {"train": len(self._ids[0]), "validation": len(self._ids[1])}

    @cached_property
    def _text(self) -> str:
        path = Path(self.args.dataset)
        source = str(path / "input.txt") if path.is_dir() else self.args.dataset
        return load_dataset("text", data_files={"train": source}, sample_by="document", split="train")[0]["text"]

    @cached_property
    def _characters(self) -> list[str]:
        return sorted(set(self._text))

    @cached_property
    def _ids(self) -> tuple[Tensor, Tensor]:
        number = {character: i for i, character in enumerate(self._characters)}
        ids = torch.tensor([number[character] for character in self._text])
        held_out = len(ids) // 10
        return ids[:-held_out], ids[-held_out:]


if __name__ == "__main__":
    main(Shakespeare, __doc__)
