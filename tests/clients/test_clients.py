"""Every client trains with the callback, ends packed, saves, and answers alike when it is loaded in a fresh process."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import clients_table
from helpers.clients import ALL, CONFIG, Client
from helpers.processes import environment

from optimum.dendritic.layout.records import Form
from optimum.dendritic.state import layout_of
from optimum.dendritic.structure.example_inputs import tensors_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.clients,
    pytest.mark.filterwarnings("default"),  # clients warn of one another, which is theirs to mend
]

LOAD = """
from helpers import clients  # first: see helpers/torchvision_operators.py
import sys, torch, transformers as hf, optimum.dendritic
from optimum.dendritic.state import layout_of
from optimum.dendritic.structure.example_inputs import tensors_of
from optimum.dendritic.structure.wrappers import inner_model
load = {load}
model = (load.from_pretrained if isinstance(load, type) else load)(sys.argv[1]).eval()
inputs, expected = torch.load(sys.argv[2])
with torch.no_grad():
    found = tensors_of(model(**inputs))
assert layout_of(model).packed and len(found) == len(expected) > 0
assert all(torch.equal(a, b) for a, b in zip(found, expected))
"""


@pytest.mark.parametrize("client", ALL, ids=[f"{client.name}, {client.model}" for client in ALL])
def test_a_client(client: Client, tmp_path: Path):
    if not client.is_installed:
        warnings.warn(f"{client.name} was not tried: pip install {client.needs}, of the extra clients", stacklevel=1)
        pytest.skip(f"{client.needs} is absent: pip install -c constraints.txt '.[clients]'")
    model, inputs = client.train(tmp_path)
    layout = layout_of(model)
    assert type(model).__name__ == client.model and layout is not None and layout.packed
    targets = [name for name, record in layout.modules.items() if isinstance(record, Form)]
    left = sum(p.numel() for name in targets for p in model.get_submodule(name).parameters())
    assert left <= (1 - CONFIG.sparsity) * layout.dense_cost
    with torch.no_grad():
        expected = tensors_of(model.eval()(**inputs))
    torch.save((inputs, expected), tmp_path / "expected.pt")
    code = LOAD.format(load=client.load)
    command = [sys.executable, "-c", code, str(tmp_path / "small"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_is_up_to_date():
    file = Path(__file__).parents[2] / "docs" / "clients.md"
    assert file.read_text() == clients_table.document(), "run cd tests && python -m helpers.clients_table --write"
