from transformers import TrainerCallback


class DendriticCallback(TrainerCallback):
    pass
