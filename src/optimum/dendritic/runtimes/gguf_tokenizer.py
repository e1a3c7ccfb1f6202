"""A tokenizer in the form that GGUF has for it. Which rules cut a text into words is told by name, so that only
tokenizers whose rules are known can be written."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import invalid

LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = {  # the regular expression that cuts words -> its name in llama.cpp
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + LETTERS % "{1,3}": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + LETTERS % "": "qwen2",
}
NORMAL, UNKNOWN, CONTROL, ADDED, BYTE = 1, 2, 3, 4, 6  # kinds of tokens


def add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase | None, size: int) -> None:
    """Add the vocabulary, filled up to `size`, with merges or scores and the special tokens.

    Raises:
        DendriticError: the tokenizer is of another kind.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    rules = _rules(tokenizer)
    model = rules["model"]
    if rules["type"] == "gpt2":
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(rules["words"])
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_add_space_prefix(rules["space"])
    added = {token["id"]: token for token in rules["added"]}
    words = {index: word for word, index in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    tokens = [words.get(index, f"[PAD{index}]") for index in range(size)]
    writer.add_token_list(tokens)
    writer.add_token_types([_kind(index, words, added, model) for index in range(size)])
    if rules["type"] == "llama":
        writer.add_token_scores(_scores(tokens, model))
    for add, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if isinstance(index, int):
            add(index)
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The model of a fast tokenizer, what was added to it, and the name of its rules for words.

    Raises:
        DendriticError: it is none of those that llama.cpp has by the same rules.
    """
    remedy = "Export without a tokenizer, and tokenize outside of llama.cpp."
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise invalid("tokenizer", type(tokenizer).__name__, "must be a fast one", remedy)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    found = {"model": rules["model"], "added": rules["added_tokens"]}
    if rules["model"]["type"] == "BPE" and rules["model"].get("byte_fallback"):
        text = json.dumps([rules["normalizer"], rules["pre_tokenizer"]], ensure_ascii=False)
        if "▁" in text:
            return found | {"type": "llama", "space": '"Prepend"' in text or '"prepend_scheme": "first"' in text}
    elif rules["model"]["type"] == "BPE" and (rules["normalizer"] or {"type": "NFC"})["type"] == "NFC":
        words = _words(rules["pre_tokenizer"] or {})
        if words is not None:
            return found | {"type": "gpt2", "words": words}
    kind = f"{type(tokenizer).__name__} of {rules['model']['type']}"
    raise invalid("tokenizer", kind, "has rules for words that llama.cpp has no name for", remedy)


def _words(cutter: dict[str, Any]) -> str | None:
    """The name of the rules by which a byte-level tokenizer cuts words; None where they are not known."""
    if cutter.get("type") == "ByteLevel":
        return "gpt-2" if cutter["use_regex"] and not cutter["add_prefix_space"] else None
    steps = cutter.get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"] or steps[1]["use_regex"]:
        return None
    return WORDS.get(steps[0]["pattern"].get("Regex", ""))


def _kind(index: int, words: dict[int, str], added: dict[int, Any], model: dict[str, Any]) -> int:
    word = words.get(index)
    if word is None:
        return CONTROL
    if word == model.get("unk_token"):
        return UNKNOWN
    if index in added:
        return CONTROL if added[index]["special"] else ADDED
    is_byte = bool(model.get("byte_fallback")) and len(word) == 6 and word.startswith("<0x") and word.endswith(">")
    return BYTE if is_byte else NORMAL


def _scores(tokens: list[str], model: dict[str, Any]) -> list[float]:
    """Of two merges that both could be made, llama.cpp makes the one with the greater score: the earlier one."""
    made = ["".join(merge) if isinstance(merge, list) else merge.replace(" ", "") for merge in model["merges"]]
    order = {word: rank for rank, word in reversed(list(enumerate(made)))}
    return [-float(order.get(token, len(made))) for token in tokens]
