"""Kill training runs again and again and see whether the same model comes out.

    python examples/benchmarks/crashes.py --kills 30 --json crashes.json

A run is trained to its end once, undisturbed. Then it is trained again by processes that die at seeded random moments
(`harness/deaths.py`), each followed by one that resumes from `last_checkpoint`. The packed model's file must equal the
undisturbed one's byte for byte. All processes are forks of one that has imported everything, so that a death costs half
a second; the case `ddp` is two processes under gloo.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness.deaths import WINDOWS, Death, Mortal
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.trainer_utils import get_last_checkpoint

from optimum.dendritic import DendriticConfig, last_checkpoint

STEPS, SAVE = 12, 3
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_labels": 4,
}


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **SHAPE))


def vit() -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **SHAPE))


PLAIN = DendriticConfig(sparsity=0.5, segment_size=4, updates=6, regrow=0.5)
FULL = DendriticConfig(sparsity=0.5, segment_size=4, updates=6, regrow=0.5, sprout_rank=2, distillation=1.0)
CASES: dict[str, tuple[Callable[[], PreTrainedModel], DendriticConfig, int]] = {  # model, config, processes
    "bert": (bert, PLAIN, 1),
    "taught": (bert, FULL, 1),  # with a teacher and sprouts
    "vit": (vit, PLAIN, 1),  # its files use other names than its modules
    "ddp": (bert, PLAIN, 2),
}


def train(case: str, folder: Path, death: Death) -> None:
    """One life of a run: from its last complete checkpoint to its end, or to its death."""
    make, config, _ = CASES[case]
    torch.manual_seed(0)
    model = make()
    model.accepts_loss_kwargs = False  # pyright: ignore  # a plain mean; two processes would double it
    draw = torch.Generator().manual_seed(1)
    rows: Any  # a list is all that the Trainer needs
    if case == "vit":
        rows = [{"pixel_values": torch.randn(3, 16, 16, generator=draw), "labels": i % 4} for i in range(20)]
    else:
        rows = [{"input_ids": torch.randint(3, 50, (8,), generator=draw), "labels": i % 4} for i in range(20)]
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        save_strategy="steps",
        save_steps=SAVE,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    callback = Mortal(config)
    callback.death = death
    trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[callback])
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_model(str(folder / "packed"))
    death.leave()
    if trainer.is_world_process_zero():
        (folder / "calls.json").write_text(json.dumps(death.calls))


def live(case: str, folder: Path, death: Death, victim: int = 0) -> bool:
    """Fork the processes of one life, of which `death` awaits one; whether they reached the end of the training."""
    ranks, children = CASES[case][2], {}
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for stream in (1, 2):
                    os.dup2(log, stream)
                if ranks > 1:
                    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                    os.environ |= world | {name: str(value) for name, value in own.items()}
                train(case, folder, death if death.at is None or rank == victim else Death())
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)  # a fork must not go on with what its parent has still to do
        children[child] = rank
    ended = {}
    while children:
        child, status = os.wait()
        ended[children.pop(child)] = status
        for other in children if status else ():  # what a launcher does with the rest
            os.kill(other, signal.SIGKILL)
    if any(os.WIFEXITED(status) and status for status in ended.values()) and not os.WIFSIGNALED(ended[victim]):
        logs = "".join(file.read_text() for file in sorted(folder.glob("log-*.txt")))
        raise RuntimeError(f"{case}: it was not killed, but failed.\n{logs[-5000:]}")
    return not any(ended.values())


def fingerprint(folder: Path) -> str:
    return hashlib.sha256((folder / "packed/model.safetensors").read_bytes()).hexdigest()


def check(case: str, kills: int, deaths: int, seed: int, folder: Path) -> dict[str, Any]:
    """Runs of `case`, each killed up to `deaths` times, until processes have died `kills` times."""
    whole = folder / "whole"
    live(case, whole, Death(at=None))
    calls, expected = json.loads((whole / "calls.json").read_text()), fingerprint(whole)
    calls["file"] = max(file.stat().st_size for file in (whole / f"checkpoint-{STEPS}").iterdir()) - 1  # bytes
    chance, died, torn, runs, same = random.Random(f"{case} {seed}"), Counter(), 0, 0, 0
    while died.total() < kills:
        run, left, alive = folder / f"run-{runs}", deaths, True
        while alive:
            resumed, death = last_checkpoint(run), Death()
            torn += resumed is not None and resumed != get_last_checkpoint(str(run))
            done = int(resumed.rpartition("-")[2]) if resumed else 0
            window = min(WINDOWS, key=lambda window: died[window])
            if left and died.total() < kills and (done < STEPS or window == "end"):
                steps = range(done + 1, STEPS + 1)
                if window in ("save", "file"):
                    steps = range((done // SAVE + 1) * SAVE, STEPS + 1, SAVE)
                elif window == "end":
                    steps = [STEPS]
                death = Death(window, chance.choice(steps), chance.randint(1, calls[window]))
            alive = not live(case, run, death, chance.randrange(CASES[case][2]))
            died[death.window] += alive
            left -= 1
        runs += 1
        same += fingerprint(run) == expected
        shutil.rmtree(run)
    return {"kills": dict(+died), "torn checkpoints passed over": torn, "runs": runs, "identical": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--kills", type=int, default=30, help="of each case")
    parser.add_argument("--deaths", type=int, default=5, help="at most, in one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    report: dict[str, dict[str, Any]] = {}
    for case in options.cases:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = check(case, options.kills, options.deaths, options.seed, Path(folder))
        report[case] = found | {"seconds": round(time.perf_counter() - start, 1)}
        print(f"{case}: {report[case]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    if any(found["identical"] != found["runs"] for found in report.values()):
        sys.exit("A run that was killed ended with another model.")


if __name__ == "__main__":
    main()
