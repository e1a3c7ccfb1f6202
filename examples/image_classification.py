"""Train an image classifier that ends up 60 % smaller, next to a dense control that is trained exactly as long.

    python examples/image_classification.py
    python examples/image_classification.py --dataset ylecun/mnist --epochs 3 --sparsity 0.8 --budget macs
    accelerate launch examples/image_classification.py

The default data are the handwritten digits inside scikit-learn: nothing is downloaded. The pruned model is saved,
loaded by plain `AutoModelForImageClassification.from_pretrained` in a fresh process, and measured against the control.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from sklearn.datasets import load_digits
from transformers import (
    AutoModelForImageClassification,
    BaseImageProcessor,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from convnet import ConvNetConfig, ConvNetForImageClassification
from optimum.dendritic import DendriticCallback, DendriticConfig, last_checkpoint, measure
from optimum.dendritic.metrics import accuracy


@dataclass
class Arguments:
    dataset: str = "digits"  # or a folder, or a Hub id such as ylecun/mnist, with the columns "image" and "label"
    image_size: int = 28
    sparsity: float = 0.6
    budget: str = "params"
    importance: str = "dendritic"
    epochs: float = 12
    batch_size: int = 64
    learning_rate: float = 2e-3
    max_train_samples: int | None = None
    seed: int = 0
    output_dir: str = "runs/image_classification"
    resume: bool = False  # go on from the last complete checkpoints in output_dir


def load_images(name: str) -> DatasetDict:
    """The splits "train" and "test", with the columns "image" and "label"."""
    if name != "digits":
        return load_dataset(name)
    rows, labels = load_digits(return_X_y=True)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    columns = {"image": list((np.reshape(rows, (-1, 8, 8)) * 255 / 16).astype(np.uint8)), "label": labels}
    return Dataset.from_dict(columns, features=features).train_test_split(test_size=0.2, seed=0)


def with_pixels(dataset: Dataset, processor: BaseImageProcessor) -> Dataset:
    """The dataset as the model reads it."""
    return dataset.with_transform(
        lambda rows: {**processor(rows["image"], return_tensors="pt"), "labels": torch.tensor(rows["label"])}
    )


def train(name: str, args: Arguments, data: DatasetDict, processor: BaseImageProcessor, callbacks: list) -> Trainer:
    """Train and save one model in a stock Trainer; every model starts from the same weights."""
    set_seed(args.seed)
    train_set, test_set = (with_pixels(data[split], processor) for split in ("train", "test"))
    config = ConvNetConfig(
        image_size=args.image_size,
        num_channels=train_set[:1]["pixel_values"].shape[1],
        id2label=dict(enumerate(data["train"].features["label"].names)),
    )
    trainer = Trainer(
        model=ConvNetForImageClassification(config),
        args=TrainingArguments(
            output_dir=f"{args.output_dir}/{name}",
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=256,
            learning_rate=args.learning_rate,
            warmup_steps=0.1,
            seed=args.seed,
            logging_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=train_set,
        eval_dataset=test_set,
        processing_class=processor,
        compute_metrics=accuracy,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir) if args.resume else None)
    trainer.save_model()
    return trainer


def reload(folder: str, pixels: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every tensor and the logits of a saved model; run in a process that knows nothing but the folder."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels)).logits
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}, logits.numpy()


def check_reload(model: torch.nn.Module, folder: str, pixels: torch.Tensor) -> float:
    """Largest difference of a logit after reloading in a fresh process; raises where a tensor or a logit differs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        tensors, logits = fresh.submit(reload, folder, pixels.numpy()).result()
    own = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    equal = own.keys() == tensors.keys() and all(np.array_equal(own[name], tensors[name]) for name in own)
    with torch.no_grad():
        difference = float(np.abs(model(pixels).logits.numpy() - logits).max())
    if not equal or difference > 1e-5:
        raise RuntimeError(f"Loaded from {folder}: tensors equal: {equal}, logits within {difference:.1e}.")
    return difference


def main() -> None:
    from transformers import ViTImageProcessor  # here: without torchvision, every process that imports it warns

    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # pyright: ignore[reportArgumentType]
    data = load_images(args.dataset)
    if args.max_train_samples is not None:
        data["train"] = data["train"].shuffle(seed=args.seed).take(args.max_train_samples)
    processor = ViTImageProcessor(size=args.image_size, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False)

    dense = train("dense", args, data, processor, [])
    config = DendriticConfig(sparsity=args.sparsity, budget=args.budget, importance=args.importance, seed=args.seed)
    packed = train("packed", args, data, processor, [DendriticCallback(config)])
    scores = [trainer.evaluate()["eval_accuracy"] for trainer in (dense, packed)]
    if not packed.is_world_process_zero():
        return
    pixels = with_pixels(data["test"], processor)[:64]["pixel_values"]
    model, baseline = (trainer.accelerator.unwrap_model(trainer.model).cpu().eval() for trainer in (packed, dense))
    difference = check_reload(model, f"{args.output_dir}/packed", pixels)
    print(measure(model, {"pixel_values": pixels}, baseline=baseline).table())
    print(f"\naccuracy: dense {scores[0]:.4f}, packed {scores[1]:.4f}")
    print(f"reloaded in a fresh process: tensors equal, logits within {difference:.1e}")


if __name__ == "__main__":
    main()
