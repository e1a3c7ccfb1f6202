"""Small tokenizers of the kinds that language models have, trained on a few sentences."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from optimum.dendritic.runtimes.gguf_tokenizer import WORDS

TEXT = [
    "It's 2024, and the 3 dogs of 12345 people weren't there: they'd gone home!\n\n",
    "the film was great, a fine film; the other film wasn't.  Twice   as long, though.\n",
    "Über Öl spricht man nicht — 漢字 und emoji 🙂 auch nicht.\r\n\tThe end.",
]
SPECIAL = ["<unk>", "<s>", "</s>"]
SIZE = 320


def byte_level(rules: str) -> PreTrainedTokenizerFast:
    """Of GPT-2's kind, its words cut by the `rules` that llama.cpp knows by this name."""
    tokenizer = Tokenizer(models.BPE())
    if rules == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        pattern = Regex(next(pattern for pattern, name in WORDS.items() if name == rules))
        split = pre_tokenizers.Split(pattern, behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    return _fast(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Of Llama 2's kind: words begin with a space that is written out, unknown characters are bytes."""
    sentences = Tokenizer(models.BPE())
    sentences.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=SPECIAL, limit_alphabet=40)
    sentences.train_from_iterator([f"▁{text}" for text in TEXT], trainer)
    import json

    learnt = json.loads(sentences.to_str())["model"]
    found = [word for word in learnt["vocab"] if word not in SPECIAL]
    words = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *found]
    merges = [tuple(merge) for merge in learnt["merges"]]
    vocabulary = {word: index for index, word in enumerate(words)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _fast(tokenizer)


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
