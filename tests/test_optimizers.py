"""A user's own optimizer, passed to the Trainer beside the callback: it works, or is refused where it could not."""

import pytest
import torch
from helpers.compare import assert_same
from helpers.models import build
from helpers.trainers import CONFIG, make_dataset, make_model, make_trainer, tensors
from torch import nn
from transformers import Trainer, TrainingArguments

from optimum.dendritic import DendriticCallback, DendriticConfig, DendriticError, inject_
from optimum.dendritic.state import layout_of

SPROUTS = DendriticConfig(sparsity=0.5, updates=2, segment_size=4, sprout_rank=1)
MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),  # has its state before the first step
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),  # has factors of its second moments
}


def train(folder, model: nn.Module, optimizer: torch.optim.Optimizer, config=CONFIG, data=None) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=20, per_device_train_batch_size=4, lr_scheduler_type="constant", save_strategy="no",
        report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data or make_dataset(),
        optimizers=(optimizer, constant),
        callbacks=[DendriticCallback(config)],
    )
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("maker", MAKERS)
def test_an_optimizer_built_before_the_injection_trains_to_a_packed_model(tmp_path, maker):
    model = make_model()
    optimizer = MAKERS[maker](model.parameters())
    own = train(tmp_path, model, optimizer)
    assert layout_of(own.model).packed and own.evaluate(make_dataset())["eval_loss"] > 0
    if maker == "sgd":
        settings = {"lr_scheduler_type": "constant", "optim": "sgd", "logging_strategy": "no"}
        stock = make_trainer(tmp_path, **settings)
        stock.train()
        assert_same(tensors(stock.model), tensors(own.model))


@pytest.mark.slow
def test_one_that_leaves_parameters_out_is_the_users_choice(tmp_path):
    model = make_model()
    kept = model.resnet.embedder.embedder.convolution.weight.detach().clone()
    chosen = [p for name, p in model.named_parameters() if "embedder" not in name]
    own = train(tmp_path, model, torch.optim.SGD(chosen, lr=1e-2))
    assert layout_of(own.model).packed
    left = own.model.resnet.embedder.embedder.convolution.weight
    assert {row.tobytes() for row in left.detach().numpy()} <= {row.tobytes() for row in kept.numpy()}


class TestSprouts:
    DATA = [{"input_ids": torch.arange(6) + index, "labels": index % 3} for index in range(8)]

    def test_an_optimizer_that_would_never_train_them_is_refused(self, tmp_path):
        model, _ = build("bert")
        with pytest.raises(DendriticError, match=r"optimizer = .*had its sprout.*inject_\(model, config\) first"):
            train(tmp_path, model, torch.optim.AdamW(model.parameters()), SPROUTS, self.DATA)

    @pytest.mark.slow
    def test_one_built_after_the_injection_trains_them(self, tmp_path):
        model = inject_(build("bert")[0], SPROUTS)
        own = train(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=1e-2), SPROUTS, self.DATA)
        assert layout_of(own.model).packed and any("sprout" in name for name, _ in own.model.named_parameters())
