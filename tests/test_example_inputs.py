"""What a model is traced with: a Trainer's own data, small where it runs on small ones, or what its config says."""

import random

import numpy as np
import pytest
import torch
import transformers as hf
from helpers.compare import assert_same, every
from helpers.families import IMAGE, SMALL_DECODERS, TEXT
from helpers.trainers import CONFIG, make_dataset, make_model, make_trainer, tensors
from torch import Tensor, nn

from optimum.dendritic import DendriticCallback, DendriticConfig, DendriticError, inject_
from optimum.dendritic.huggingface.trainer.first_batch import untouched_random_states
from optimum.dendritic.state import layout_of
from optimum.dendritic.structure.batch_inputs import inputs_from_batch
from optimum.dendritic.structure.example_inputs import as_mapping
from optimum.dendritic.structure.made_inputs import example_inputs_for, fault_of
from optimum.dendritic.structure.wrappers import inner_model

PRUNING = DendriticConfig(sparsity=0.3, segment_size=4)
WAVES = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
SPEECH = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16, "decoder_start_token_id": 0}
CLIP = hf.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=16)
MADE = {
    "BERT": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)), {"input_ids": (1, 4)}, 4),
    "T5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, decoder_start_token_id=0)
        ),
        {"input_ids": (1, 4), "decoder_input_ids": (1, 4)},
        3,
    ),
    "wav2vec2": (
        lambda: hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**TEXT, **WAVES, classifier_proj_size=16)),
        {"input_values": (1, 2000)},
        4,
    ),
    "spectrogram": (
        lambda: hf.ASTForAudioClassification(
            hf.ASTConfig(**IMAGE, num_mel_bins=16, max_length=32, frequency_stride=8, time_stride=8)
        ),
        {"input_values": (1, 32, 16)},
        4,
    ),
    "Whisper": (
        lambda: hf.WhisperForConditionalGeneration(
            hf.WhisperConfig(**SMALL_DECODERS, **SPEECH, vocab_size=50, pad_token_id=2, bos_token_id=0, eos_token_id=1)
        ),
        {"input_features": (1, 8, 32), "decoder_input_ids": (1, 4)},
        5,
    ),
    "CLIP vision": (lambda: hf.CLIPForImageClassification(CLIP), {"pixel_values": (1, 3, 32, 32)}, 4),
    "CLIP": (lambda: hf.CLIPModel(CLIP), {"input_ids": (1, 4), "pixel_values": (1, 3, 32, 32)}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_what_is_made_of_a_config_runs_and_shows_the_wiring(name):
    make, expected, cuts = MADE[name]
    model = make()
    inputs = example_inputs_for(model)
    shapes = {key: tuple(tensor.shape) for key, tensor in inputs.items()}
    assert expected.items() <= shapes.items() and fault_of(model, inputs) is None
    inject_(model, PRUNING)
    assert cuts is None or sum(group.cut for group in layout_of(model).groups) == cuts


class TestBatches:
    def test_long_texts_and_large_pictures_are_cut_where_the_model_runs_on_small_ones(self):
        bert = hf.BertForSequenceClassification(hf.BertConfig(**TEXT))
        ids = torch.randint(3, 50, (2, 30))
        found = inputs_from_batch(bert, bert, {"input_ids": ids, "attention_mask": ids * 0 + 1, "labels": ids[:, 0]})
        assert {key: tuple(t.shape) for key, t in found.items()} == {"input_ids": (2, 8), "attention_mask": (2, 8)}
        resnet, pixels = make_model(), torch.randn(2, 3, 224, 224)
        assert inputs_from_batch(resnet, resnet, {"pixel_values": pixels})["pixel_values"].shape == (2, 3, 64, 64)

    def test_they_stay_whole_where_the_model_needs_all(self):
        config = IMAGE | {"image_size": 96, "patch_size": 32}
        vit, pixels = hf.ViTForImageClassification(hf.ViTConfig(**config)), torch.randn(2, 3, 96, 96)
        assert inputs_from_batch(vit, vit, {"pixel_values": pixels})["pixel_values"].shape == (2, 3, 96, 96)

    def test_labels_of_a_model_that_decodes_are_inputs_of_its_decoder(self):
        model, ids = MADE["T5"][0](), torch.randint(3, 50, (2, 6))
        labels = ids.clone()
        labels[:, -1] = -100
        found = inputs_from_batch(model, model, {"input_ids": ids, "labels": labels})
        assert found.keys() == {"input_ids", "decoder_input_ids"} and bool((found["decoder_input_ids"] >= 0).all())
        inject_(model, PRUNING, example_inputs={"input_ids": ids, "labels": labels})
        assert sum(group.cut for group in layout_of(model).groups) == 3

    def test_labels_of_one_class_are_left_out(self):
        model = MADE["T5"][0]()
        assert as_mapping(model, {"input_ids": torch.ones(2, 3), "labels": torch.ones(2)}).keys() == {"input_ids"}

    @pytest.mark.parametrize("batch", [None, [1], {}, {"input_ids": torch.ones(0, 3)}, {"words": ["a"]}])
    def test_a_batch_that_says_nothing_is_none(self, batch):
        model = MADE["BERT"][0]()
        assert inputs_from_batch(model, model, batch) is None


class Holder(nn.Module):
    """A module around a model of transformers, with a head of its own."""

    def __init__(self, inner: hf.PreTrainedModel) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(16, 2)

    def forward(self, words: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.inner(words).last_hidden_state.mean(1))
        loss = nn.functional.cross_entropy(
            logits, torch.zeros(len(words), dtype=torch.int64) if labels is None else labels
        )
        return {"loss": loss, "logits": logits}


class TestWrappers:
    def test_the_one_model_inside_is_found(self):
        bert = hf.BertModel(hf.BertConfig(**TEXT))
        assert inner_model(Holder(bert)) is bert and inner_model(bert) is bert
        for whole in (nn.DataParallel(bert), nn.Linear(1, 1), nn.ModuleList([bert, make_model()])):
            assert inner_model(whole) is whole

    def test_what_arrives_at_it_is_taken(self):
        bert, words = hf.BertModel(hf.BertConfig(**TEXT)), torch.randint(3, 50, (2, 12))
        found = inputs_from_batch(bert, Holder(bert), {"words": words, "labels": torch.zeros(2, dtype=torch.int64)})
        assert found.keys() == {"input_ids"} and torch.equal(found["input_ids"], words[:, :8])

    def test_or_what_is_named_as_it_names_its_own(self):
        bert, ids = hf.BertModel(hf.BertConfig(**TEXT)), torch.randint(3, 50, (2, 5))
        batch = {"anchor_input_ids": ids, "anchor_attention_mask": ids * 0 + 1, "positive_input_ids": ids[:, :2]}
        found = inputs_from_batch(bert, Holder(bert), batch)
        assert found.keys() == {"input_ids", "attention_mask"} and torch.equal(found["input_ids"], ids)

    @pytest.mark.slow
    def test_a_trainer_compresses_it_and_it_loads_alone(self, tmp_path):
        torch.manual_seed(0)
        holder = Holder(hf.BertModel(hf.BertConfig(**TEXT)))
        generator = torch.Generator().manual_seed(1)
        samples = [{"words": torch.randint(3, 50, (6,), generator=generator), "labels": i % 2} for i in range(16)]
        arguments = hf.TrainingArguments(
            str(tmp_path), max_steps=20, per_device_train_batch_size=4, save_strategy="steps", save_steps=8,
            report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, logging_steps=5,
        )  # fmt: skip
        callback = DendriticCallback(DendriticConfig(sparsity=0.4, segment_size=4, updates=3))
        trainer = hf.Trainer(holder, arguments, train_dataset=samples, callbacks=[callback])
        trainer.train()
        assert layout_of(holder.inner).packed and layout_of(holder) is None
        assert trainer.state.log_history[0]["sparsity"] >= 0
        holder.inner.save_pretrained(tmp_path / "inner")
        loaded, words = hf.AutoModel.from_pretrained(tmp_path / "inner"), samples[0]["words"][None]
        holder.eval()
        assert torch.equal(loaded(words).last_hidden_state, holder.inner(words).last_hidden_state)


class TestInATrainer:
    def test_its_data_are_traced_and_no_random_state_moves(self, tmp_path):
        class Augmented(list):
            def __getitem__(self, index):
                noise = random.random() + np.random.rand() + torch.rand(()).item()
                return {
                    **super().__getitem__(index),
                    "pixel_values": super().__getitem__(index)["pixel_values"] + noise,
                }

        seen = []
        model = make_model()
        hook = model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
        trainer = make_trainer(tmp_path, [], model=model)
        trainer.train_dataset = Augmented(make_dataset())
        numpy, pytorch = np.random.get_state()[1].copy(), torch.get_rng_state()
        callback = DendriticCallback(CONFIG)
        trainer.add_callback(callback)
        trainer.callback_handler.on_init_end(trainer.args, trainer.state, trainer.control)
        hook.remove()
        assert every(np.random.get_state()[1] == numpy) and torch.equal(torch.get_rng_state(), pytorch)
        assert layout_of(model) is not None and every(call["pixel_values"].shape[-1] == 16 for call in seen)

    @pytest.mark.slow
    def test_tracing_its_data_changes_nothing_of_the_training(self, tmp_path):
        given = DendriticCallback(CONFIG, example_inputs={"pixel_values": torch.randn(1, 3, 16, 16)})
        own, told = make_trainer(tmp_path), make_trainer(tmp_path, [given])
        own.train()
        told.train()
        assert_same(tensors(own.model), tensors(told.model))

    def test_without_data_they_are_made_of_the_config(self, tmp_path):
        arguments = hf.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
        trainer = hf.Trainer(make_model(), arguments, callbacks=[DendriticCallback(CONFIG)])
        assert layout_of(trainer.model) is not None

    def test_a_model_that_cannot_be_traced_is_refused(self, tmp_path):
        class Deaf(hf.ResNetForImageClassification):
            def forward(self, *args, **kwargs):
                if not self.training:
                    raise RuntimeError("only trained")
                return super().forward(*args, **kwargs)

        config = make_model().config
        with pytest.raises(DendriticError, match="layer_by_layer=True"):
            make_trainer(tmp_path, model=Deaf(config))
        callback = DendriticCallback(CONFIG, layer_by_layer=True)
        assert not layout_of(make_trainer(tmp_path, [callback], model=Deaf(config)).model).groups


def test_random_states_are_put_back_after_an_error_too():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with pytest.raises(KeyError), untouched_random_states():
        random.random(), np.random.rand(), torch.rand(3)
        raise KeyError
    assert random.getstate() == before[0], "the type checker draws from it, too, but not here"
    assert every(np.random.get_state()[1] == before[1]) and torch.equal(torch.get_rng_state(), before[2])
