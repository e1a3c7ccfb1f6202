"""`optimum-cli dendritic push`: a packed model from a folder to the Hub, with its processor and its card."""

from argparse import Namespace

from ..huggingface.hub.commit import Upload
from ..huggingface.hub.push import push_to_hub
from .loading import import_modules, load_model, processor_beside, write_json


def run(args: Namespace) -> str:
    """Ask the Hub who pushes, load, push in one commit, write the JSON file if one is asked for; return where it is.

    Raises:
        DendriticError: an argument names something that does not exist, or the push failed (`PushError`).
    """
    Upload(args.repo_id, revision=args.revision).ask()  # before anything is loaded
    import_modules(args.modules)
    model = load_model(args.model, args)
    processor = processor_beside(args.model, args)
    commit = push_to_hub(
        model,
        args.repo_id,
        processor=processor,
        private=True if args.private else None,
        commit_message=args.message,
        revision=args.revision,
        remote_code=args.remote_code,
        measuring=not args.no_measure,
    )
    write_json(args, {"model": args.model, "repo_id": args.repo_id, "commit": commit.oid, "url": commit.commit_url})
    beside = "no processor was found beside it" if processor is None else f"with its {type(processor).__name__}"
    return f"Pushed {args.model}, {beside}: {commit.commit_url}"
