"""Other people's programs, each training a tiny model with the callback in it; every one is held to the same.

A client is one function: it makes the model, trains it with the callback and saves what came out as its program does.
`tests/clients/` runs all of them, and `clients_table.py` makes the table in docs/clients.md from them.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.trainer_callback import EarlyStoppingCallback

from helpers.families import IMAGE, SMALL_DECODERS, TEXT
from helpers.models import Inputs, roughen
from helpers.trainer_options import OPTIONS
from helpers.vocabulary import WORDS, save_tokenizer
from optimum.dendritic import (
    DendriticCallback,
    DendriticConfig,
    compress_,
    inject_,
    mask_,
    save,
    score_,
    update_,
    update_plan,
)
from optimum.dendritic.structure.wrappers import inner_model

STEPS = 20
CONFIG = DendriticConfig(sparsity=0.4, segment_size=4, updates=3)
SENTENCES = [f"{article} film was {word}" for article in ("the", "a") for word in WORDS[:6]]
WORD_TEXT = TEXT | {"vocab_size": 20}


@dataclass(frozen=True)
class Client:
    """`needs` is the package to install; `load` reads what was saved in a fresh process."""

    name: str
    model: str
    train: Callable[[Path], tuple[nn.Module, Inputs]]
    load: str
    needs: str = "transformers"

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None


def arguments(kind: Any, folder: Path, **changes: Any) -> Any:
    settings = {
        "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True,
    } | changes  # fmt: skip
    return kind(str(folder / "run"), **settings)


def callback() -> DendriticCallback:
    return DendriticCallback(CONFIG)


def rough(make: Callable[[], nn.Module]) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    model = roughen(make())
    assert isinstance(model, hf.PreTrainedModel)
    return model


def tokenizer(folder: Path) -> hf.PreTrainedTokenizerBase:
    save_tokenizer(folder / "words")
    words = hf.AutoTokenizer.from_pretrained(folder / "words")
    words.eos_token = "[SEP]"
    return words


def tokens() -> Inputs:
    ids = torch.arange(3, 9)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def stock(model: hf.PreTrainedModel, samples: list[dict], folder: Path, inputs: Inputs, **changes: Any) -> Any:
    """A stock Trainer."""
    more = changes.pop("callbacks", [])
    settings = arguments(hf.TrainingArguments, folder, **changes)
    trainer = hf.Trainer(model, settings, train_dataset=samples, eval_dataset=samples, callbacks=[callback(), *more])
    trainer.train()
    trainer.save_model(str(folder / "small"))
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False), inputs  # without autocast


def samples_of(inputs: Inputs, labels: int = 3, count: int = 8) -> list[dict]:
    return [{**{k: v[0] for k, v in inputs.items()}, "labels": i % labels} for i in range(count)]


def bert() -> hf.PreTrainedModel:
    return hf.BertForSequenceClassification(hf.BertConfig(**TEXT, num_labels=3))


def classifier(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: stock(rough(bert), samples_of(tokens()), folder, tokens(), **changes)


def early_stopping(folder: Path) -> Any:
    """Patient enough for the mask to become final; before that there is nothing to pack."""
    patience = EarlyStoppingCallback(early_stopping_patience=STEPS)
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    return stock(
        rough(bert),
        samples_of(tokens()),
        folder,
        tokens(),
        callbacks=[patience],
        load_best_model_at_end=True,
        **settings,
    )


def model_init(folder: Path) -> Any:
    trainer = hf.Trainer(
        model_init=lambda: inject_(rough(bert), CONFIG), args=arguments(hf.TrainingArguments, folder),
        train_dataset=samples_of(tokens()), callbacks=[callback()],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder / "small"))
    return trainer.model, tokens()


def translation(folder: Path) -> Any:
    config = hf.BartConfig(
        **SMALL_DECODERS, vocab_size=50, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    model, ids = rough(lambda: hf.BartForConditionalGeneration(config)), tokens()
    samples = [{"input_ids": ids["input_ids"][0], "labels": ids["input_ids"][0]} for _ in range(8)]
    settings = arguments(hf.Seq2SeqTrainingArguments, folder, predict_with_generate=True, generation_max_length=6)
    trainer = hf.Seq2SeqTrainer(model, settings, train_dataset=samples, eval_dataset=samples, callbacks=[callback()])
    trainer.train()
    assert trainer.predict(samples).predictions.shape[0] == 8
    trainer.save_model(str(folder / "small"))
    return model, ids | {"decoder_input_ids": ids["input_ids"]}


def audio(folder: Path) -> Any:
    shape = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = hf.Wav2Vec2Config(**TEXT, **shape, num_labels=3, classifier_proj_size=16, mask_time_prob=0.0)
    inputs = {"input_values": draw(1, 3200)}
    return stock(rough(lambda: hf.Wav2Vec2ForSequenceClassification(config)), samples_of(inputs), folder, inputs)


def clip(folder: Path) -> Any:
    config = hf.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=16, num_labels=3)
    inputs = {"pixel_values": draw(1, 3, 32, 32)}
    return stock(rough(lambda: hf.CLIPForImageClassification(config)), samples_of(inputs), folder, inputs)


def decoder(kind: type) -> hf.PreTrainedModel:
    return rough(lambda: kind(kind.config_class(**WORD_TEXT | {"num_key_value_heads": 2, "head_dim": 4})))


def fine_tuning(kind: type, packing: bool) -> Callable[[Path], Any]:
    def train(folder: Path) -> Any:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        settings = arguments(SFTConfig, folder, packing=packing, max_length=16, bf16=False)
        data, model = Dataset.from_dict({"text": SENTENCES * 4}), decoder(kind)
        trainer = SFTTrainer(
            model, args=settings, train_dataset=data, processing_class=tokenizer(folder), callbacks=[callback()]
        )
        trainer.train()
        trainer.save_model(str(folder / "small"))
        return trainer.model, tokens()

    return train


def preferences(kind: type) -> Callable[[Path], Any]:
    def train(folder: Path) -> Any:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        pairs = {"prompt": ["the film"] * 12, "chosen": [" was good"] * 12, "rejected": [" was bad"] * 12}
        settings = arguments(DPOConfig, folder, max_length=16, bf16=False)
        dense = decoder(kind)
        dense.save_pretrained(folder / "dense")  # where DPOTrainer finds the model that it compares with
        model = kind.from_pretrained(folder / "dense")
        trainer = DPOTrainer(
            model, args=settings, train_dataset=Dataset.from_dict(pairs), processing_class=tokenizer(folder),
            callbacks=[callback()],
        )  # fmt: skip
        trainer.train()
        trainer.save_model(str(folder / "small"))
        return trainer.model, tokens()

    return train


def sentences(folder: Path) -> Any:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses, modules

    tokenizer(folder)
    rough(lambda: hf.BertModel(hf.BertConfig(**WORD_TEXT))).save_pretrained(folder / "words")
    parts = [modules.Transformer(str(folder / "words")), modules.Pooling(16)]
    model = SentenceTransformer(modules=parts, device="cpu")
    data = Dataset.from_dict({"anchor": SENTENCES, "positive": SENTENCES[::-1]})
    trainer = SentenceTransformerTrainer(
        model, arguments(SentenceTransformerTrainingArguments, folder), train_dataset=data,
        loss=losses.MultipleNegativesRankingLoss(model), callbacks=[callback()],
    )  # fmt: skip
    trainer.train()
    model.save_pretrained(str(folder / "small"))
    return inner_model(model), tokens()


def timm_model(**changes: Any) -> nn.Module:
    """Random weights, since the trained ones lie on the Hub."""
    import timm

    torch.manual_seed(0)
    return timm.create_model(TIMM, num_classes=3, **changes)


def timm_plain(folder: Path) -> Any:
    model, images, labels = timm_model(), draw(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    inputs = {"x": images[:1]}
    inject_(model, CONFIG, example_inputs=inputs)
    optimizer, plan = torch.optim.AdamW(model.parameters(), lr=1e-3), update_plan(CONFIG, STEPS)
    for step in range(1, STEPS + 1):
        nn.functional.cross_entropy(model(images), labels).backward()
        score_(model)
        if step in plan:
            update_(model, plan[step].sparsity, regrow=plan[step].regrow, optimizer=optimizer)
        optimizer.step()
        mask_(model)
        optimizer.zero_grad()
    save(compress_(model, inputs), folder / "small")
    return model, inputs


def timm_wrapped(folder: Path) -> Any:
    config, inputs = hf.TimmWrapperConfig(architecture=TIMM, num_labels=3), {"pixel_values": draw(1, 3, 32, 32)}
    torch.manual_seed(0)
    model = hf.TimmWrapperForImageClassification(config)
    return stock(model, samples_of(inputs), folder, inputs)


TIMM = "mobilenetv3_small_100"
TIMM_PLAIN = "lambda path: __import__('optimum.dendritic', fromlist=['load']).load(path, clients.timm_model())"
SENTENCE = "lambda path: inner_model(__import__('sentence_transformers').SentenceTransformer(path, device='cpu'))"
TRAINER, BERT, BERTS = "Trainer", "BertForSequenceClassification", "hf.AutoModelForSequenceClassification"
ALL = [
    Client(TRAINER, BERT, classifier(), BERTS),
    *[Client(name, BERT, classifier(**changes), BERTS) for name, changes in OPTIONS.items()],
    Client("EarlyStoppingCallback, load_best_model_at_end", BERT, early_stopping, BERTS),
    Client("model_init", BERT, model_init, BERTS),
    Client("Seq2SeqTrainer, generation", "BartForConditionalGeneration", translation, "hf.AutoModelForSeq2SeqLM"),
    Client(TRAINER, "Wav2Vec2ForSequenceClassification", audio, "hf.AutoModelForAudioClassification"),
    Client(TRAINER, "CLIPForImageClassification", clip, "hf.AutoModelForImageClassification"),
    Client("SFTTrainer", "LlamaForCausalLM", fine_tuning(hf.LlamaForCausalLM, False), "hf.AutoModelForCausalLM", "trl"),
    Client(
        "SFTTrainer, packing", "Qwen3ForCausalLM", fine_tuning(hf.Qwen3ForCausalLM, True), "hf.AutoModelForCausalLM",
        "trl",
    ),
    Client("DPOTrainer", "LlamaForCausalLM", preferences(hf.LlamaForCausalLM), "hf.AutoModelForCausalLM", "trl"),
    Client("DPOTrainer", "Qwen3ForCausalLM", preferences(hf.Qwen3ForCausalLM), "hf.AutoModelForCausalLM", "trl"),
    Client("SentenceTransformerTrainer", "BertModel", sentences, SENTENCE, "sentence_transformers"),
    Client("plain functions", "MobileNetV3", timm_plain, TIMM_PLAIN, "timm"),
    Client(
        TRAINER, "TimmWrapperForImageClassification", timm_wrapped, "hf.AutoModelForImageClassification", "timm",
    ),
]  # fmt: skip
