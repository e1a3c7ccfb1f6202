"""Options of `TrainingArguments`, by what the table of clients calls them: each is trained with by itself."""

from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "max_grad_norm": {"max_grad_norm": 0.1},
    "lr_scheduler_type, warmup_steps": {"lr_scheduler_type": "cosine", "warmup_steps": 5},
    "optim, weight_decay": {"optim": "sgd", "weight_decay": 0.1},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "train_sampling_strategy": {"train_sampling_strategy": "group_by_length"},
    "dataloader_num_workers": {"dataloader_num_workers": 1, "dataloader_drop_last": True},
    "num_train_epochs": {"num_train_epochs": 10, "max_steps": -1},
    "remove_unused_columns": {"remove_unused_columns": False},
    "full_determinism": {"full_determinism": True},
    "eval_on_start, eval_strategy": {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 10},
    "save_only_model": {"save_strategy": "steps", "save_steps": 10, "save_only_model": True},
}
