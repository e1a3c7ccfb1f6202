"""`Pruner`: the plain functions in their order, for a loop without a Trainer."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from .compress import compress_
from .config import DendriticConfig
from .errors import DendriticError, invalid
from .inject import inject_
from .nn import DendriticWeight
from .state import dendritic_layers, injected_layout
from .structure.time_correction import restore_timing_, timing_of
from .train_steps import Pruning, initial_sparsity, mask_, pruning_of, score_, target_sparsity, update_, update_plan


class Pruner:
    """Compresses a model in a training loop of one's own, and says so where a call is out of place::

        pruner = Pruner(model, config, steps=1000, optimizer=optimizer, example_inputs=batch)
        for batch in batches:                       # 1000 optimizer steps
            model(**batch).loss.backward()
            pruner.before_step()                    # scores, and now and then chooses the masks anew
            optimizer.step()
            pruner.after_step()                     # pruned means zero
            optimizer.zero_grad()
        pruner.pack()

    Args:
        model: Any module that `inject_` takes, or one that it has injected with the same config.
        config: What to prune, how far and when.
        steps: The number of optimizer steps that the training takes.
        optimizer: Trains the model's parameters; its state for regrown segments is set to zero. With `sprout_rank`,
            which adds parameters, call `inject_` before it is built.
        example_inputs: Keyword arguments of `model.forward`, as for `inject_`.
        layer_by_layer: Whether to prune a model that cannot be traced, as for `inject_`.
        token_counts: How often each token occurs, as for `inject_`. It exchanges parameters with `embedding_rank`: call
            `inject_` before the optimizer is built.

    Raises:
        DendriticError: `inject_` refuses the model, no mask update fits into so many steps, or the optimizer does not
            train the sprouts.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DendriticConfig,
        *,
        steps: int,
        optimizer: Optimizer,
        example_inputs: Any = None,
        layer_by_layer: bool = False,
        token_counts: Any = None,
    ) -> None:
        if config.smaller:
            field = "sizes" if config.sizes else "dormant"
            rule = "trains a smaller model in every second step, which begins before the gradients"
            raise invalid(field, vars(config)[field], rule, "Train in a Trainer, with DendriticCallback(config).")
        update_plan(config, steps, sparsity=0.0)  # refused before the model is touched
        how = {"layer_by_layer": layer_by_layer, "token_counts": token_counts}
        inject_(model, config, example_inputs=example_inputs, **how)
        self.plan = update_plan(config, steps, target_sparsity(model), initial_sparsity(model))
        check_trains_sprouts(model, optimizer)
        self.model, self.config, self.optimizer, self.steps = model, config, optimizer, steps
        self.example_inputs = example_inputs
        self.step = 0  # optimizer steps that are done
        self._inside = self._packed = False

    @property
    def is_final(self) -> bool:
        """Whether the masks stay as they are from now on."""
        return self.step >= max(self.plan)

    @property
    def pruning(self) -> Pruning:
        """How much is pruned at present."""
        return pruning_of(self.model)

    def before_step(self) -> None:
        """Between the gradients and the optimizer's step, with gradients averaged, unscaled and clipped.

        Raises:
            DendriticError: the model has no gradients, is packed, or `after_step` was left out.
        """
        self._refuse(self._packed, "before_step", "the model is packed", "Train it as any other model from now on.")
        self._refuse(self._inside, "before_step", "the step before has not ended", "Call after_step() after each step.")
        gradients = any(parameter.grad is not None for parameter in self.model.parameters())
        self._refuse(not gradients, "before_step", "no parameter has a gradient", "Call it after loss.backward().")
        step, last = self.step + 1, max(self.plan)
        if step <= last:
            score_(self.model)
        if step in self.plan:
            due = self.plan[step]
            update_(self.model, due.sparsity, regrow=due.regrow, optimizer=self.optimizer)
        self._inside = True

    def after_step(self) -> None:
        """After the optimizer's step: what is pruned is set to zero.

        Raises:
            DendriticError: `before_step` was left out.
        """
        self._refuse(not self._inside, "after_step", "no step has begun", "Call before_step() before optimizer.step().")
        mask_(self.model)
        self.step, self._inside = self.step + 1, False

    def pack(self, *, unfinished: bool = False) -> nn.Module:
        """Make the model physically small, in place; see `compress_`.

        Args:
            unfinished: Pack it although its masks are not final.

        Returns:
            The packed model.

        Raises:
            DendriticError: the masks are not final, a step has not ended, or the model is packed already.
        """
        self._refuse(self._packed, "pack", "the model is packed already", "Go on with the model itself.")
        self._refuse(self._inside, "pack", "a step has not ended", "Call after_step() first.")
        rule = f"the masks are final after step {max(self.plan)}, and {self.step} steps are done"
        remedy = "Train on, or pass unfinished=True to pack the model as it is."
        self._refuse(not self.is_final and not unfinished, "pack", rule, remedy)
        compress_(self.model, self.example_inputs)
        self._packed = True
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the states of the model and of the optimizer; JSON-ready."""
        self._refuse(self._inside, "state_dict", "a step has not ended", "Call after_step() first.")
        timing = None if self._packed else timing_of(self.model)
        return {"step": self.step} | ({} if timing is None else {"timing": timing})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the steps that `state_dict` tells of; masks and scores come with the model's own state."""
        injected_layout(self.model)
        if "timing" in state:
            restore_timing_(self.model, state["timing"])
            self.plan = update_plan(self.config, self.steps, target_sparsity(self.model))
        self.step = state["step"]

    def _refuse(self, wrong: bool, call: str, rule: str, remedy: str) -> None:
        if wrong:
            raise self._error(call, rule, remedy)

    def _error(self, call: str, rule: str, remedy: str) -> DendriticError:
        return invalid("pruner", f"{call}() at step {self.step}", rule, remedy)


def check_trains_sprouts(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that the optimizer trains the sprouts and the factors of an embedding, the only parameters that injection
    adds.

    Raises:
        DendriticError: the optimizer has the weight of a layer and not its sprout, or not the factors, which would stay
            untrained.
    """
    learnt = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name in injected_layout(model).factored:
        if any(p.requires_grad and id(p) not in learnt for p in model.get_submodule(name).parameters()):
            rule = f"was built before {name} became two factors, and does not train them"
            remedy = "Call inject_(model, config) first, build the optimizer then, and hand both in."
            raise invalid("optimizer", type(optimizer).__name__, rule, remedy)
    for name, layer in dendritic_layers(model).items():
        if not isinstance(layer, DendriticWeight) or layer.sprout is None or id(layer.weight) not in learnt:
            continue
        if any(id(parameter) not in learnt for parameter in layer.sprout.parameters()):
            rule = f"was built before {name} had its sprout, and does not train it"
            remedy = "Call inject_(model, config) first, build the optimizer then, and hand both in."
            raise invalid("optimizer", type(optimizer).__name__, rule, remedy)
