"""A packed network of ReLUs as a spiking network: accuracy over time steps, spikes and synaptic operations, on MNIST.

    python examples/benchmarks/spiking.py train     # dense and packed networks, one pair for each seed
    python examples/benchmarks/spiking.py measure   # model_cards/spiking-mnist.json
    python examples/benchmarks/spiking.py render    # model_cards/spiking-mnist.md

The network is that of `examples/convnet.py` with average pooling. `--dataset` is a Hub id or a folder with the columns
"image" and "label" and the splits "train" and "test". `train` resumes. What is measured is the network of the NIR file
that `optimum-cli dendritic export --format nir` writes, run by sinabs: pixels go in as a current at every time step. A
synaptic operation is one spike that reaches one neuron; what the first layer multiplies stands apart.
"""

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from harness.images import decoded, normalised
from harness.runs import environment, write_json
from torch import Tensor, nn
from tqdm import tqdm

from optimum.dendritic import DendriticConfig, Pruner
from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import count_macs
from optimum.dendritic.huggingface.checkpoint.auto_class import load
from optimum.dendritic.runtimes.nir import run_spiking, spiking_chain, spiking_network

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnet import ConvNetConfig, ConvNetForImageClassification  # noqa: E402

MEAN, STD = torch.tensor([0.1307]), torch.tensor([0.3081])
CALIBRATION = 256
MODELS = ("dense", "packed")
Splits = dict[str, tuple[Tensor, Tensor]]


def fit(model: nn.Module, splits: Splits, steps: int, args: argparse.Namespace, prune: bool = False) -> nn.Module:
    """Train for some steps, with a learning rate that falls linearly to zero, and pack what is pruned."""
    images, labels = splits["train"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    pruner = None
    if prune:
        config = DendriticConfig(sparsity=args.sparsity, units="structured")
        example = {"pixel_values": normalised(splits["train"][0][:8], MEAN, STD)}
        pruner = Pruner(model, config, steps=steps, optimizer=optimizer, example_inputs=example)
    model.train()
    for _ in tqdm(range(steps), desc="pruned" if prune else "dense"):
        own = torch.randint(len(labels), (args.batch_size,))
        model(pixel_values=normalised(images[own], MEAN, STD), labels=labels[own]).loss.backward()
        if pruner is not None:
            pruner.before_step()
        optimizer.step()
        if pruner is not None:
            pruner.after_step()
        optimizer.zero_grad()
        schedule.step()
    if pruner is not None:
        pruner.pack()
    return model.eval()


def train(splits: Splits, args: argparse.Namespace) -> None:
    """For each seed one base, from which both networks go on for as many steps."""
    for seed in args.seeds:
        folders = {name: args.output_dir / f"{name}-seed{seed}" for name in MODELS}
        if all(folder.exists() for folder in folders.values()):
            continue
        torch.manual_seed(seed)
        width = args.hidden / 128
        channels = (max(1, round(32 * width)), max(1, round(64 * width)))
        config = ConvNetConfig(
            conv_channels=channels,
            hidden_size=args.hidden,
            pooling="average",
            feature_dropout=0.0,
            classifier_dropout=0.1,
        )
        base = fit(ConvNetForImageClassification(config), splits, args.steps0, args)
        for name, folder in folders.items():
            model: Any = fit(copy.deepcopy(base), splits, args.steps1, args, prune=name == "packed")
            model.save_pretrained(folder)


def fan_out(layer: nn.Conv2d | nn.Linear, shape: torch.Size) -> Tensor:
    """How many neurons each input reaches, `(1, *shape)`: fewer at the edges of an image."""
    inputs, ones = torch.zeros(1, *shape, requires_grad=True), torch.ones_like(layer.weight)
    with torch.enable_grad():
        if isinstance(layer, nn.Conv2d):
            reached = nn.functional.conv2d(inputs, ones, None, layer.stride, layer.padding, layer.dilation)
        else:
            reached = nn.functional.linear(inputs, ones)
        (found,) = torch.autograd.grad(reached.sum(), inputs)
    return found


def costs(network: nn.Module, samples: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs `(batch, steps, classes)`, and spikes and synaptic operations, `(steps,)`, of one sample in the mean."""
    spikes, operations, handles = torch.zeros(steps), torch.zeros(steps), []
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]

    def count(layer: Any, args: tuple[Tensor, ...]) -> None:
        (inputs,) = args
        reached = inputs * fan_out(layer, inputs.shape[1:])
        for total, each in ((spikes, inputs), (operations, reached)):
            total += each.flatten(1).sum(1).unflatten(0, (len(samples), steps)).mean(0)

    for layer in layers[1:]:
        handles.append(layer.register_forward_pre_hook(count))
    try:
        return run_spiking(network, samples, steps), spikes, operations
    finally:
        for handle in handles:
            handle.remove()


def measured(model: nn.Module, splits: Splits, args: argparse.Namespace) -> dict[str, Any]:
    images, labels = (each[: args.samples] for each in splits["validation"])
    pixels = normalised(images, MEAN, STD)
    calibration = {"pixel_values": normalised(splits["train"][0][:CALIBRATION], MEAN, STD)}
    with torch.inference_mode():
        logits = torch.cat([model(pixel_values=part).logits for part in pixels.split(100)])
    most, rows = max(args.time_steps), {}
    for rate in args.rates:
        chain, _ = spiking_chain(model, calibration, rate=rate)
        parts = [
            costs(spiking_network(chain, len(part)), part, most)
            for part in tqdm(pixels.split(args.parts), desc=f"rate {rate:g}")
        ]
        outputs = torch.cat([part[0] for part in parts])
        spikes, operations = (torch.stack([part[i] for part in parts]).mean(0).cumsum(0) for i in (1, 2))
        rows[f"{rate:g}"] = {
            str(t): {
                "accuracy": float((outputs[:, :t].mean(1).argmax(-1) == labels).float().mean()),
                "spikes": float(spikes[t - 1]),
                "synaptic_operations": float(operations[t - 1]),
            }
            for t in args.time_steps
        }
    return {
        "accuracy": float((logits.argmax(-1) == labels).float().mean()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, Batch.of({"pixel_values": pixels[:1]})),
        "first_layer_macs": first_macs(model, pixels[:1]),
        "spiking": rows,
    }


def first_macs(model: nn.Module, pixels: Tensor) -> int:
    """What the first layer, whose inputs are no spikes, multiplies in each time step."""
    layer = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    with torch.no_grad():
        return layer(pixels).numel() * layer.weight[0].numel()


def measure(splits: Splits, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    found = {
        str(seed): {name: measured(load(args.output_dir / f"{name}-seed{seed}"), splits, args) for name in MODELS}
        for seed in args.seeds
    }
    names = ("sparsity", "hidden", "steps0", "steps1", "batch_size", "learning_rate", "samples")
    recipe = {name: vars(args)[name] for name in names}
    write_json(args.output, {"environment": environment(), "recipe": recipe, "seeds": found})


def render(args: argparse.Namespace) -> None:
    found = json.loads(args.output.read_text())
    recipe, seeds = found["recipe"], list(found["seeds"].values())

    def over(name: str, *path: str) -> tuple[float, float]:
        values = []
        for value in (seed[name] for seed in seeds):
            for key in path:
                value = value[key]
            values.append(value)
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    about = {name: f"{100 * over(name, 'accuracy')[0]:.2f} ± {100 * over(name, 'accuracy')[1]:.2f}" for name in MODELS}
    lines = [
        "# Spiking networks of a dense and a packed CNN on MNIST",
        "",
        f"The CNN of `examples/convnet.py` with average pooling and all widths scaled by {recipe['hidden'] / 128:g}: "
        f"{recipe['steps0']} steps of {recipe['batch_size']} images, then {recipe['steps1']} more, in which the packed "
        f"one lost {recipe['sparsity']:.0%} of its parameters in whole units. The spiking networks are those of the "
        "NIR file, run by sinabs; nothing was trained after the conversion. The rate is that of a neuron at the "
        f"largest value of its ReLU, in spikes a time step. The first {recipe['samples']:,} test images; means of "
        f"seeds {', '.join(found['seeds'])}, ± one standard deviation; spikes and synaptic operations are of one "
        "image.",
        "",
        "`python examples/benchmarks/spiking.py train|measure|render`",
        "",
        "| network | parameters | MACs | accuracy % without spikes | MACs of the first layer, each time step |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {over(name, 'parameters')[0]:,.0f} | {over(name, 'macs')[0]:,.0f} | {about[name]} | "
        f"{over(name, 'first_layer_macs')[0]:,.0f} |"
        for name in MODELS
    ]
    names = ("accuracy %", "spikes", "synaptic operations")
    columns = [f"{model}: {name}" for name in names for model in MODELS]
    lines += ["", f"| rate | time steps | {' | '.join(columns)} |", f"| {' | '.join(['---'] * (2 + len(columns)))} |"]
    first = seeds[0]["dense"]["spiking"]
    for rate, steps in ((rate, steps) for rate, row in first.items() for steps in row):
        cells = [f"{100 * mean:.2f} ± {100 * spread:.2f}" for mean, spread in
                 (over(name, "spiking", rate, steps, "accuracy") for name in MODELS)]  # fmt: skip
        for field in ("spikes", "synaptic_operations"):
            cells += [f"{over(name, 'spiking', rate, steps, field)[0]:,.0f}" for name in MODELS]
        lines.append(f"| {rate} | {steps} | {' | '.join(cells)} |")
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["train", "measure", "render"])
    parser.add_argument("--dataset", default="ylecun/mnist")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/spiking"))
    parser.add_argument("--output", type=Path, default=Path("model_cards/spiking-mnist.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--hidden", type=int, default=32, help="of 128: all widths are scaled alike")
    parser.add_argument("--steps0", type=int, default=200, help="of the base")
    parser.add_argument("--steps1", type=int, default=200, help="of both networks, from the base")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--time_steps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--samples", type=int, default=200, help="the first of the test images")
    parser.add_argument("--parts", type=int, default=20, help="images that are run at once")
    args = parser.parse_args()
    if args.phase == "render":
        return render(args)
    splits = decoded(args.dataset, args.output_dir / "data", validation="test", mode="L")
    (train if args.phase == "train" else measure)(splits, args)


if __name__ == "__main__":
    main()
