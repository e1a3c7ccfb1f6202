"""docs/clients.md, made from the clients that `tests/clients/` trains and never written by hand.

cd tests
python -m helpers.clients_table            # print it
python -m helpers.clients_table --write    # put it in its place
"""

import sys
from pathlib import Path

from helpers.clients import ALL

FILE = Path(__file__).parents[2] / "docs" / "clients.md"
TEXT = """\
# Other people's programs

Each of these trains a tiny model with `DendriticCallback` among its callbacks and nothing else changed, or, where the
table says so, by the plain functions. It ends packed within the budget, is saved by the client's own method, and gives
the same outputs, bit for bit, when it is loaded in a fresh process. Where the name is that of an option of
`TrainingArguments`, it is a stock `Trainer` with that option.
`.ci/clients` runs all of them, in an environment of its own; in yours, `pip install -c constraints.txt ".[clients]"`
brings the packages, and `python -m pytest tests/clients` runs those that are installed.

{table}

* **Early stopping** can end a training before the mask is final. The model is then not packed, and a warning says
  so; `DendriticCallback(config, until_final=True)` keeps a training from ending so.
* **model_init** injects inside: `model_init=lambda: inject_(make_model(), config)`.
* **timm** is trained with random weights: its models and layers are the real ones. It imports torchvision; where the
  compiled operators of that do not load, as PyPI's beside a build of torch for CPUs, the tests declare the two that are
  missed, which none of these models calls.
* **SentenceTransformer**, and any module around one `PreTrainedModel`: that model is compressed, and its config holds
  the layout.

This file is generated: `cd tests && python -m helpers.clients_table --write`.
"""


def document() -> str:
    """The whole file, as Markdown."""
    rows = [f"| `{client.name}` | `{client.model}` | {client.needs} |" for client in ALL]
    return TEXT.format(table="\n".join(["| client | model | package |", "| --- | --- | --- |", *rows]))


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(document())
    else:
        sys.stdout.write(document())
