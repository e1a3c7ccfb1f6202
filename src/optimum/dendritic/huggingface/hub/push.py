"""`push_to_hub`: a model, its layout, its processor and its card become one commit on the Hub."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ...efficiency import EfficiencyReport
from ...errors import invalid
from ...state import layout_of
from ..card.write import write_card
from ..checkpoint.save import check_remote_code, save
from .commit import Upload

logger = logging.get_logger(__name__)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    report: EfficiencyReport | None = None,
    processor: Any = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload model",
    revision: str | None = None,
    remote_code: bool = False,
    example_inputs: Any = None,
    metrics: Mapping[str, float] | None = None,
    baseline_metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    base_model: str | None = None,
    measuring: Mapping[str, Any] | bool = True,
) -> CommitInfo:
    """Push a model with its card, in one commit, so that readers of the repository find all of it or the former state.

    The Hub is asked first: a push that it refuses is refused before anything is measured or written.

    Args:
        model: packed, or injected (mid-training, with its masks); a `PreTrainedModel`, unwrapped.
        repo_id: "user/name", or "name" under the user of the token. The repository is created if it does not exist.
        report: what `measure` returned, for the card and efficiency.json.
        processor: tokenizer, image processor, … to push beside the model: anything with `save_pretrained`.
        private: whether a repository that is created is private; the Hub decides if None. True is refused for one that
            exists already and is public.
        token: the token to push with. Default: that of `hf auth login` or HF_TOKEN.
        commit_message: the title of the commit.
        revision: a branch, which is created if it does not exist. Default: main.
        remote_code: also push a stub for `from_pretrained(…, trust_remote_code=True)`, which needs no
            `import optimum.dendritic` (but the package).
        example_inputs: keyword arguments of `model.forward`, for what the card shows.
        metrics: scores of these weights, for the card.
        baseline_metrics: scores of a dense model that was trained as long, on the same data.
        license: of the model, as the Hub calls it.
        base_model: the id on the Hub of the model that this one was made from.
        measuring: options of `measure` for a card without a `report`; False measures nothing.

    Returns:
        The commit; the newest one if the repository held all of this already.

    Raises:
        DendriticError: the arguments are refused; nothing was sent.
        PushError: the Hub refused, or could not be reached in several attempts. The message says what is there now.
    """
    if not isinstance(model, PreTrainedModel):
        rule = "only a PreTrainedModel has the config that the layout is kept in"
        raise invalid("model", type(model).__name__, rule, "Push the model itself, not a wrapper around it.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise invalid("repo_id", repo_id, str(error), 'Name it "user/name".') from error
    if not commit_message:
        raise invalid("commit_message", commit_message, "a commit needs one", "Leave it at its default.")
    if remote_code:
        check_remote_code(model)
    layout = layout_of(model)
    if layout is not None and not layout.packed:
        logger.warning(f"{repo_id}: the model is not packed; masks and scores are pushed too. See compress_.")
    upload = Upload(repo_id, token=token, revision=revision)
    told = {"metrics": metrics, "baseline_metrics": baseline_metrics, "license": license, "base_model": base_model}
    told |= {"report": report, "example_inputs": example_inputs, "measuring": measuring}
    with TemporaryDirectory() as name, logging.tqdm(total=4, desc="push: ask the Hub", unit="step") as bar:
        folder, repo_id = Path(name), upload.name()
        upload.open(private)
        _next(bar, "save")
        save(model, folder, processor=processor, remote_code=remote_code)
        _next(bar, "measure and write the card")
        write_card(model, folder, repo_id=repo_id, **told)
        _next(bar, "send")
        commit = upload.send(folder, commit_message)
        _next(bar, "done")
        return commit


def _next(bar: Any, step: str) -> None:
    """Show that a step has ended and which one begins."""
    bar.update()
    bar.set_description(f"push: {step}")
