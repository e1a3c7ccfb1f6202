# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # A pretrained text model, compressed while it is fine-tuned
#
# Open this file as a notebook with Jupytext (`jupytext --to notebook text_classifier.py`), or run it as it is. It needs
# `pip install "optimum-dendritic[train,metrics]"`, and downloads the model that the next cell names.

# %%
MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# %% [markdown]
# A handful of sentences stands in for a dataset, so that this runs in seconds; take your own in their place.

# %%
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import optimum.dendritic
from optimum.dendritic import DendriticCallback, DendriticConfig, describe

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
sentences = [("the film was good", 1), ("a good film", 1), ("the film was bad", 0), ("a bad film", 0)] * 16
data = [tokenizer(text) | {"labels": label} for text, label in sentences]

# %% [markdown]
# One callback is all that a `Trainer` needs. 60 % of the parameters of the body go: heads, neurons and input segments.

# %%
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        "runs", num_train_epochs=4, learning_rate=2e-4, report_to="none", save_strategy="no", disable_tqdm=True
    ),
    train_dataset=data,
    processing_class=tokenizer,
    callbacks=[DendriticCallback(DendriticConfig(sparsity=0.6))],
)
trainer.train()

# %% [markdown]
# The model is packed now: its layers are smaller, and there are no masks.

# %%
for layer, words in list(describe(trainer.model).items())[:6]:
    print(layer, "·", words)

# %% [markdown]
# It is saved as plain safetensors, and loaded as any model is, after `import optimum.dendritic`.

# %%
trainer.save_model("small")
small = AutoModelForSequenceClassification.from_pretrained("small").eval()
with torch.no_grad():
    print(small(**tokenizer("a good film", return_tensors="pt")).logits.softmax(-1))
