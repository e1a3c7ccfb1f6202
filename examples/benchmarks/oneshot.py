"""One shot on a trained model: pruning with and without reconstruction, by dendritic importance and by magnitude.

    python examples/benchmarks/oneshot.py --model path/to/minilm-sst2 --dataset stanfordnlp/sst2

Each run is what `optimum-cli dendritic compress` does, with its JSON kept in `--output_dir`: a run whose JSON is there
is not repeated, and several processes may divide the seeds. A seed draws the calibration samples; where the model was
trained several times, `{seed}` in `--model` picks the one of that seed. The table goes to `--card` (Markdown, and JSON
beside it).
"""

import argparse
import json
import shlex
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.runs import environment, write_json
from tqdm import tqdm
from transformers.utils import logging

from optimum.commands.register.register_dendritic import CompressCommand
from optimum.dendritic.cli import compress


@dataclass(frozen=True)
class Run:
    """One compressed model."""

    importance: str
    reconstruct: bool
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.importance}-{'reconstructed' if self.reconstruct else 'bare'}-{self.sparsity:g}-seed{self.seed}"


def planned(args: argparse.Namespace) -> Iterator[Run]:
    """Seed by seed, so that an interrupted table is a whole table of fewer seeds."""
    for seed in args.seeds:
        for sparsity in args.levels:
            for importance in args.importances:
                for reconstruct in (False, True):
                    yield Run(importance=importance, reconstruct=reconstruct, sparsity=sparsity, seed=seed)


def compress_one(run: Run, args: argparse.Namespace) -> dict:
    """Run the command in this process; the packed model itself is not kept."""
    parser = argparse.ArgumentParser()
    CompressCommand.parse_args(parser)
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        options = {
            "--dataset": args.dataset,
            "--sparsity": run.sparsity,
            "--budget": args.budget,
            "--importance": run.importance,
            "--seed": run.seed,
            "--samples": args.samples,
            "--eval-samples": args.eval_samples,
            "--sequence-length": args.sequence_length,
            "--output": Path(folder) / "model",
            "--json": figures,
        }
        words = [args.model.format(seed=run.seed), *(str(word) for option in options.items() for word in option)]
        compress.run(parser.parse_args(words if run.reconstruct else [*words, "--no-reconstruct"]))
        return {**asdict(run), **json.loads(figures.read_text())}


def run_all(args: argparse.Namespace) -> list[dict]:
    """The results of all runs, those that were made before included."""
    results = []
    for run in tqdm(list(planned(args)), desc="one shot"):
        path = args.output_dir / f"{run.name}.json"
        if not path.exists():
            write_json(path, compress_one(run, args))
        result = json.loads(path.read_text())
        if result["dataset"] != args.dataset or result["model"] != args.model.format(seed=run.seed):
            raise ValueError(f"{path} was made with {result['model']} on {result['dataset']}: choose --output_dir.")
        results.append(result)
    return results


def table(results: list[dict], args: argparse.Namespace) -> str:
    """A row for each level, a column for each way of pruning: mean ± standard deviation over the seeds."""
    metric = next(name for name in ("accuracy", "perplexity") if name in results[0]["after"])
    scale = 100 if metric == "accuracy" else 1
    ways = [(importance, reconstruct) for importance in args.importances for reconstruct in (True, False)]
    head = ["removed", *(f"{i}{', reconstructed' if r else ''}" for i, r in ways), "weights", "MACs"]
    rows = [head, ["---"] * len(head)]
    dense = {result["seed"]: scale * result["before"][metric] for result in results}
    rows.append(["nothing", spread(list(dense.values())), *[""] * (len(ways) - 1), "1", "1"])
    for level in args.levels:
        at = [result for result in results if result["sparsity"] == level]
        cells = [
            spread([scale * x["after"][metric] for x in at if (x["importance"], x["reconstruct"]) == way])
            for way in ways
        ]
        rows.append([f"{level:.0%}", *cells, *(share(at, figure) for figure in ("parameters", "macs"))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def share(results: list[dict], figure: str) -> str:
    """Of the dense model's, for the first importance, reconstructed."""
    ratios = [x["after"][figure] / x["before"][figure] for x in results if x["importance"] == results[0]["importance"]]
    return f"{statistics.mean(ratios):.3f}"


def render(results: list[dict], args: argparse.Namespace) -> None:
    """Write the card and its JSON."""
    first = results[0]
    seconds = [result["seconds"] for result in results if result["reconstruct"]]
    made = environment()
    text = f"""# One shot

{args.name or Path(args.model).name} on {Path(args.dataset).name}, pruned without any training:
`optimum-cli dendritic compress`, {first["calibration_samples"]} samples to calibrate,
{first["evaluation_samples"]} of the held-out split, seeds {" ".join(map(str, args.seeds))}, budget `{args.budget}`.
Every column scores, prunes and packs alike; "reconstructed" adds the least-squares fit of what is kept.

{table(results, args)}

"removed" is the share of the body's {args.budget}; "weights" and "MACs" are the whole packed model's shares of the
dense model's. A reconstructed run took {statistics.median(seconds):.0f} s from loading to saving, evaluations included,
on {made["device"]}, {made["threads"]} thread(s).

{", ".join(f"{name} {version}" for name, version in made["versions"].items())}. Made by

```bash
{command(args)}
```
"""
    args.card.write_text(text)
    named = [result | {key: Path(result[key]).name for key in ("model", "dataset")} for result in results]
    args.card.with_suffix(".json").write_text(json.dumps({"environment": made, "runs": named}, indent=2) + "\n")


def command(args: argparse.Namespace) -> str:
    """What makes this card again, where the model and the dataset lie at hand."""
    options = {
        "model": Path(args.model).name,
        "name": args.name,
        "dataset": Path(args.dataset).name,
        "levels": args.levels,
        "seeds": args.seeds,
        "importances": args.importances,
        "budget": args.budget,
        "samples": args.samples,
        "eval_samples": args.eval_samples,
        "sequence_length": args.sequence_length,
    }
    words = ["python", "examples/benchmarks/oneshot.py"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", help="what the card calls the model; default: its folder or id")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/oneshot"))
    parser.add_argument("--card", type=Path, default=Path("model_cards/oneshot.md"))
    parser.add_argument("--levels", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--importances", nargs="+", default=["dendritic", "magnitude"])
    parser.add_argument("--budget", default="params")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--eval_samples", type=int, default=100_000, help="at most; more than there are means all")
    parser.add_argument("--sequence_length", type=int, default=128)
    args = parser.parse_args()
    logging.disable_progress_bar()  # of every loading and pruning; one bar counts the runs
    args.output_dir.mkdir(parents=True, exist_ok=True)
    render(run_all(args), args)


if __name__ == "__main__":
    main()
