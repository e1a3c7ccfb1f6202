"""The dense baseline of a compressed model: what it was before, rebuilt from its config, to measure beside it.

Its weights are random. What a forward pass costs does not depend on their values, so the baseline costs what the
dense model did; of what the dense model answered it says nothing.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ...efficiency import EfficiencyReport, measure
from ...process_state import kept_random_state
from ...state import layout_of
from ...structure.example_inputs import of_length
from ...structure.made_inputs import example_inputs_for, longest_text

logger = logging.get_logger(__name__)

TOKENS = 128  # of a text sample, where nobody hands one in


def dense_baseline(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and config without the compression, on the same device and in the same dtype. The
    random state is left alone."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    with kept_random_state([model.device] if model.device.type == "cuda" else []), model.device:
        baseline = type(model)(config).eval()
        return baseline.to(dtype=model.dtype)  # type: ignore[call-arg]


def measure_beside_dense(
    model: PreTrainedModel, example_inputs: Any = None, *, length: int = TOKENS, **options: Any
) -> EfficiencyReport | None:
    """`measure` with the dense baseline; without one if the config does not say what the dense model was:
    for a model that is dense, or of the native form.

    Args:
        example_inputs: as for `measure`; by default one sample made from the config, of `length` tokens if it is text
            and the model has places for as many.
        options: of `measure`.

    Returns:
        The report; None, and a warning that says why, where it cannot be measured.
    """
    try:
        inputs = typical_inputs(model, length) if example_inputs is None else example_inputs
        layout = layout_of(model)
        baseline = None if layout is None or (layout.config.native and layout.packed) else dense_baseline(model)
        return measure(model, inputs, baseline=baseline, **options)
    except Exception as error:  # the model's own code runs, on inputs that may not suit it
        logger.warning(f"The efficiency of {type(model).__name__} is not measured: {type(error).__name__}: {error}")
        return None


def typical_inputs(model: PreTrainedModel, length: int = TOKENS) -> dict[str, torch.Tensor]:
    """One sample made from the config; text of `length` tokens, or as many as the model has places for.

    Raises:
        DendriticError: its main input is neither text nor images.
    """
    inputs = example_inputs_for(model)
    if model.main_input_name != "input_ids":
        return inputs
    most = longest_text(model)
    return of_length(inputs, length if most is None else min(length, most))
