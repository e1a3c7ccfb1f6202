"""`optimum-cli dendritic bench`: what a model costs, beside a baseline."""

from argparse import Namespace

from ..efficiency import measure
from .loading import check_runs, example_inputs, import_modules, load_model, write_json


def run(args: Namespace) -> str:
    """Load, measure, write the JSON file if one is asked for, and return the table.

    Raises:
        DendriticError: an argument names something that does not exist or cannot be measured.
    """
    import_modules(args.modules)
    model = load_model(args.model, args)
    baseline = None if args.baseline is None else load_model(args.baseline, args, "--baseline")
    inputs = example_inputs(model, args.sequence_length)
    check_runs(model, inputs, "MODEL", args.model)
    if baseline is not None:
        check_runs(baseline, inputs, "--baseline", str(args.baseline))
    report = measure(
        model,
        inputs,
        baseline=baseline,
        large_batch=args.batch_size,
        threads=args.threads,
        seconds=args.seconds,
        energy=args.energy,
        compiled=args.compiled,
    )
    write_json(args, report.to_dict())
    return report.table()
