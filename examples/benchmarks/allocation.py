"""Does a searched division of the budget beat the global ranking: in one shot, and after the same training?

    python examples/benchmarks/allocation.py search sst2    # every method the same number of evaluations; one shot
    python examples/benchmarks/allocation.py train sst2     # the same training with each division
    python examples/benchmarks/allocation.py render sst2    # model_cards/allocation-sst2.json, .md and .png

`cifar10` likewise. Options and bases are those of `sst2.py` and `cifar10.py`; on SST-2 whole heads and neurons are
pruned. `search` and `train` resume, evaluation by evaluation and epoch by epoch, and processes may divide the seeds.
Besides the methods of `search_allocation` there are ways that were tried on the way to them, in one shot alone: judged
by the bare pruned model (`-bare`), and an agent that begins with the same of everything (`rl-uniform`).
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import torch
from harness.comparison import against, mean, percent
from harness.runs import Run, environment, write_json
from harness.task import Task
from harness.training import ensure, pruning_config
from torch import Tensor, nn
from tqdm import tqdm
from two_tasks import CHANGES, TITLES, calibration, parsed

from optimum.dendritic import Allocation, compress_, inject_, prune_, search_allocation
from optimum.dendritic.search.agent import learn
from optimum.dendritic.search.objective import Objective

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

METHODS = ("global", "uniform", "evolution", "rl")
WAYS = ("rl-uniform", "evolution-bare", "rl-uniform-bare")
STYLES = {"evolution": ("#0072B2", "o"), "rl": ("#D55E00", "^"), "rl-uniform": ("#009E73", "v")}  # of Okabe and Ito


def searches(args: argparse.Namespace) -> Iterator[tuple[int, float, str]]:
    for seed in args.seeds:
        for level in args.levels:
            yield from ((seed, level, method) for method in args.methods)


def folder_of(args: argparse.Namespace) -> Path:
    return args.output_dir / f"allocation-{args.evaluations}"


def search(task: Task, args: argparse.Namespace) -> None:
    folder = folder_of(args)
    folder.mkdir(exist_ok=True)
    batches = calibration(task, args.calibration)
    for seed, level, method in tqdm(list(searches(args)), desc="search"):
        name = f"{method}-{level:g}-seed{seed}"
        if (folder / f"{name}.one-shot.json").exists():
            continue
        own = Run("dendritic", level, seed, changes=CHANGES[args.task], base_seed=args.base_seed)
        ensure(task, own.base, args.output_dir)
        model = task.load(args.output_dir / own.base.name)
        inject_(model, pruning_config(task, own), example_inputs=task.example_inputs())  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            found = searched(model, batches, args.evaluations, seed, method, folder / f"{name}.losses")
        found.save(folder / f"{name}.json")
        prune_(model, batches, allocation=found)
        score = task.score(compress_(model))
        tqdm.write(f"{name}: loss {found.loss:.4f} of {found.controls}, one shot {score.value:.4f}")
        write_json(folder / f"{name}.one-shot.json", {"score": score.value, "examples": score.examples})


def searched(
    model: nn.Module, batches: list[dict[str, Tensor]], evaluations: int, seed: int, method: str, cache: Path
) -> Allocation:
    def around_uniform(objective: Objective) -> dict[str, float]:
        kept = learn(objective, evaluations=evaluations, seed=seed, start="uniform")
        return dict(zip(objective.names, kept, strict=True))

    name, reconstruct = method.removesuffix("-bare"), not method.endswith("-bare")
    own = around_uniform if name == "rl-uniform" else name
    return search_allocation(
        model, batches, method=own, evaluations=evaluations, seed=seed, reconstruct=reconstruct, cache=cache
    )


def trained(args: argparse.Namespace, seed: int, level: float, method: str) -> Run:
    """The training with a division; that with the global one is the run of the plain recipe."""
    changes = dict(CHANGES[args.task])
    variant = ",".join(changes)
    if method != "global":
        kept = "uniform" if method == "uniform" else division(args, seed, level, method).kept
        changes, variant = {**changes, "allocation": kept}, f"{variant},{method}".lstrip(",")
    return Run("dendritic", level, seed, variant=variant, changes=changes, base_seed=args.base_seed)


def division(args: argparse.Namespace, seed: int, level: float, method: str) -> Allocation:
    return Allocation.load(folder_of(args) / f"{method}-{level:g}-seed{seed}.json")


def train(task: Task, args: argparse.Namespace) -> None:
    for chosen in tqdm([chosen for chosen in searches(args) if chosen[-1] in METHODS], desc="train"):
        run = trained(args, *chosen)
        ensure(task, run.base, args.output_dir)
        ensure(task, run, args.output_dir)


def gathered(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """All that was found so far, ready for JSON."""
    rows = []
    for seed, level, method in searches(args):
        path = folder_of(args) / f"{method}-{level:g}-seed{seed}.one-shot.json"
        if not path.exists():
            continue
        one_shot = json.loads(path.read_text())
        found = division(args, seed, level, method)
        about = {"seed": seed, "level": level, "method": method, "evaluations": found.evaluations}
        rows.append(about | {"loss": found.loss, "controls": found.controls, "history": found.history})
        rows[-1] |= {"one_shot": one_shot, "kept": found.kept}
        path = args.output_dir / f"{trained(args, seed, level, method).name}.json"
        if method in METHODS and path.exists():
            run = json.loads(path.read_text())
            rows[-1]["trained"] = {"score": run["score"], "examples": run["examples"]}
    about = {"task": args.task, "recipe": task.recipe(), "environment": environment()}
    return {**about, "evaluations": args.evaluations, "calibration": args.calibration, "rows": rows}


def scored(rows: list[dict[str, Any]], which: str) -> list[dict[str, Any]]:
    """The scores "one_shot" or "trained", where there is one."""
    return [{"seed": row["seed"], **row[which]} for row in rows if which in row]


def render(args: argparse.Namespace) -> None:
    found = json.loads(args.output.read_text())
    rows, task = found["rows"], found["task"]
    seeds = sorted({row["seed"] for row in rows})
    precision = "" if found["recipe"]["bf16"] else " --no-bf16"
    lines = [
        f"# How the budget is divided: {TITLES[task]}",
        "",
        f"Divisions found on {found['calibration']} training samples by at most {found['evaluations']} evaluations, "
        "each from the dense base of its seed. *Loss* is that of the pruned model on these samples, with each layer "
        "fitted for itself, or, of the ways that end with `-bare`, of the bare pruned model: "
        "these were searched in float32, with as many evaluations as the table says. "
        "*One shot* is the validation accuracy after `prune_` with reconstruction; "
        f"*trained* that after the training of the table. Seeds {', '.join(map(str, seeds))}, ± one standard "
        "deviation; differences with the paired bootstrap's 95 % interval over the validation samples; "
        f"{found['environment']['device']}.",
        "",
        f"`python examples/benchmarks/allocation.py search|train|render {task} --evaluations {found['evaluations']}"
        f" --calibration {found['calibration']}{precision}`",
        "",
        "| removed | division | evaluations | loss | one shot % | against global | trained % | against global |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for level in sorted({row["level"] for row in rows}):
        for method in dict.fromkeys(row["method"] for row in rows if row["level"] == level):
            own, others = ([r for r in rows if r["level"] == level and r["method"] == m] for m in (method, "global"))
            cells = [f"{statistics.mean(row['evaluations'] for row in own):.0f}", mean([row["loss"] for row in own], 3)]
            for which in ("one_shot", "trained"):
                mine, theirs = (scored(side, which) for side in (own, others))
                cells += [percent(mine), "" if method == "global" else against(mine, theirs)]
            lines.append(f"| {level:.0%} | {method} | {' | '.join(cells)} |")
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    draw(rows, args.output.with_suffix(".png"), TITLES[task])


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """The best loss so far over the evaluations, of each search."""
    levels = sorted({row["level"] for row in rows})
    figure, axes = pyplot.subplots(1, len(levels), figsize=(6 * len(levels), 4), layout="constrained", squeeze=False)
    figure.suptitle(f"{title}: the best division so far")
    for level, plot in zip(levels, axes[0], strict=True):
        own = [row for row in rows if row["level"] == level and not row["method"].endswith("-bare")]
        for row in own:
            if row["method"] in STYLES and row["history"]:
                colour, marker = STYLES[row["method"]]
                spent, losses = zip(*row["history"], strict=True)
                label = row["method"] if row["seed"] == own[0]["seed"] else None
                plot.step(spent, losses, where="post", color=colour, marker=marker, markevery=0.2, label=label)
        for control, style in (("global", "-"), ("uniform", "--")):
            level_loss = statistics.mean(row["controls"][control] for row in own)
            plot.axhline(level_loss, color="#000000", linestyle=style, label=control)
        plot.set(title=f"{level:.0%} removed", xlabel="evaluations", ylabel="loss on the calibration samples")
        plot.set_yscale("log")
        plot.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["search", "train", "render"])
    parser.add_argument("--levels", type=float, nargs="+", default=[0.6, 0.8])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *WAYS], choices=[*METHODS, *WAYS])
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--calibration", type=int, default=128, help="training samples")
    args, task = parsed(parser, "allocation")
    if args.phase == "search":
        search(task, args)
    elif args.phase == "train":
        train(task, args)
    else:
        write_json(args.output, gathered(task, args))
        render(args)


if __name__ == "__main__":
    main()
