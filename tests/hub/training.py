"""What the tests let a client of the local Hub train; run there by `Client`."""

from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hub.actions import tokenizer

STEPS = 6


@cache
def dataset() -> list[dict[str, Any]]:
    return [{"input_ids": [2, 3, 4, 2 + i % 3], "attention_mask": [1] * 4, "labels": i % 2} for i in range(24)]


def trainer(repo_id: str, **arguments: Any) -> Any:
    """A stock Trainer of a small BERT with the callback in place."""
    from helpers.models import build
    from transformers import Trainer, TrainingArguments

    from optimum.dendritic import DendriticCallback, DendriticConfig

    settings = {
        "hub_model_id": repo_id,
        "hub_always_push": True,  # also while the push before is not done
        "max_steps": STEPS,
        "save_steps": 2,
        "save_strategy": "steps",
        "logging_steps": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    config = DendriticConfig(sparsity=0.5, segment_size=4, updates=2)
    return Trainer(
        model=build("bert")[0],
        args=TrainingArguments(mkdtemp(), **settings | arguments),
        train_dataset=dataset(),
        processing_class=tokenizer(),
        callbacks=[DendriticCallback(config)],
    )


def train_and_push(repo_id: str, push: dict[str, Any] | None = None, **arguments: Any) -> tuple[str, list[list[float]]]:
    """Train, push at the end; returns the commit's sha and what the trained model answers."""
    from helpers.models import outputs, text

    from optimum.dendritic.huggingface.card.write import write_card
    from optimum.dendritic.huggingface.trainer import push as pushes

    pushes.write_card = partial(write_card, measuring=False)  # not the subject here, and slow
    made = trainer(repo_id, **arguments)
    made.train()
    commit = made.push_to_hub(**push or {})
    assert list(Path(made.args.output_dir).glob("README.md"))
    return commit.oid, outputs(made.model.eval(), text()).tolist()


def forms(repo_id: str, revisions: list[str], subfolder: str = "") -> list[str]:
    """Load each commit; tells whether its model is injected or packed."""
    from transformers import AutoModelForSequenceClassification

    from optimum.dendritic.state import layout_of

    found = []
    for revision in revisions:
        model = AutoModelForSequenceClassification.from_pretrained(repo_id, revision=revision, subfolder=subfolder)
        layout = layout_of(model)
        assert layout is not None
        found.append("packed" if layout.packed else "injected")
    return found


def reload_arguments(content: bytes) -> Any:
    """The token in a training_args.bin."""
    import io

    import torch

    return torch.load(io.BytesIO(content), weights_only=False).hub_token
