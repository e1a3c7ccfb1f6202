# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # A trained image classifier, pruned in one shot and exported
#
# Open this file as a notebook with Jupytext (`jupytext --to notebook one_shot_images.py`), or run it as it is. It needs
# `pip install "optimum-dendritic[train,metrics,onnx]"`, and downloads nothing: the images are the handwritten digits of
# scikit-learn.

# %%
import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(np.kron(digits.images, np.ones((4, 4))) / 8 - 1).float()[:, None]  # 1,797 of 32 x 32
labels = torch.tensor(digits.target)
sizes = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **sizes))

# %% [markdown]
# A short training stands in for the model that you have.

# %%
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for places in torch.randperm(1400).split(32):
    model(pixel_values=pixels[places], labels=labels[places]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def accuracy(model):
    with torch.no_grad():
        return (model.eval()(pixel_values=pixels[1400:]).logits.argmax(-1) == labels[1400:]).float().mean().item()


print(f"dense: {accuracy(model):.3f}")

# %% [markdown]
# A few hundred samples say which channels matter. What is left is fitted to what the dense layers answered, and packed.

# %%
from optimum.dendritic import DendriticConfig, compress_, inject_, prune_

samples = [{"pixel_values": pixels[i : i + 64], "labels": labels[i : i + 64]} for i in range(0, 256, 64)]
inject_(model, DendriticConfig.preset("speed", sparsity=0.3), example_inputs={"pixel_values": pixels[:1]})
compress_(prune_(model, samples), {"pixel_values": pixels[:1]})
print(f"30 % of the multiplications removed: {accuracy(model):.3f}")

# %% [markdown]
# What is left of each group of channels:

# %%
from optimum.dendritic.inspection.figures import save_density_figure

save_density_figure(model, "density.png")

# %% [markdown]
# The packed model is exported as any other; ONNX Runtime runs the graph, and one that does not answer as the model does
# is not kept.

# %%
from optimum.dendritic import export_onnx

print(export_onnx(model, {"pixel_values": pixels[:1]}, "small-onnx").name)
