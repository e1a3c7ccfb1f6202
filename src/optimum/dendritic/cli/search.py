"""`optimum-cli dendritic search`: how to divide the budget between the parts of a model."""

from argparse import Namespace
from dataclasses import asdict

from ..inject import inject_
from ..one_shot.allocate import search_allocation
from .data import load_splits, split_of
from .loading import check_runs, example_inputs, import_modules, load_model, write_json
from .requests import configs_of
from .tasks import task_of


def run(args: Namespace) -> str:
    """Load, inject, search and save what was found; return what that is worth.

    Raises:
        DendriticError: an argument names something that does not exist or cannot be compressed.
        ImportError: a package of the extra `rl` is missing.
    """
    (config,) = configs_of(args)
    import_modules(args.modules)
    model = load_model(args.model, args).eval()
    task = task_of(model)
    check_runs(model, example_inputs(model, args.sequence_length), "MODEL", args.model)
    processor = task.load_processor(args.model, args)
    data = split_of(load_splits(args), "--split", args.split)
    batches = task.batches(model, processor, data, args.samples, args)
    inject_(model, config)
    found = search_allocation(
        model, batches, method=args.method, evaluations=args.evaluations, seed=args.seed, cache=args.cache
    )
    found.save(args.output)
    write_json(args, asdict(found))
    rows = {**found.controls, found.method: found.loss}
    width = max(map(len, rows))
    table = "\n".join(f"{name.ljust(width)}  {loss:.4f}" for name, loss in rows.items())
    return f"loss\n{table}\n\nSaved in {args.output}."
