"""Every private name of another package that is used, every method that is replaced, and what would make it needless.

`tests/test_unofficial.py` reads the sources. It fails for a use that is not listed here, and for an entry that nothing
uses any more.
"""

from dataclasses import dataclass

TRIED = {
    "torch": ("2.13.0",),
    "transformers": ("5.0", "5.23"),
    "accelerate": ("1.15",),
    "deepspeed": ("0.19.8",),
    "peft": ("0.21.2",),
    "python": ("3.11",),
}


@dataclass(frozen=True)
class Use:
    """Why something private of another package is used.

    Attributes:
        owner: The package that it belongs to.
        why: What it is used for.
        until: What would make the use needless: an issue of that package, or an interface that it lacks.
        modules: The modules that use it, as dotted names below this package.
    """

    owner: str
    why: str
    until: str
    modules: tuple[str, ...] = ("unofficial.__init__",)


_REGISTRY = "nn.Module has a public view of its registries that shows None and repeated entries, and can be written to"
_RECURRENT = "a public way to give an nn.RNNBase other parameters, as torch.func.functional_call does for one call"
_UNSHARD = "a public inverse of fully_shard, which PyTorch lacks"
_QUANTIZER = "public names in HfQuantizer, which asks its subclasses to define these"

PRIVATE = {
    "_getframe": Use("python", "callbacks are not handed the Trainer", "huggingface/transformers#38181"),
    "_modules": Use("torch", "a module that is shared is exchanged under all its names", _REGISTRY),
    "_parameters": Use("torch", "tensors are put into the skeleton of a model", _REGISTRY),
    "_buffers": Use("torch", "tensors are put into the skeleton of a model", _REGISTRY),
    "_version": Use(
        "torch", "norms look for living channels anew once a mask has changed", "a public counter of writes"
    ),
    "_unsafe_preserve_version_counter": Use(
        "torch",
        "a model that is made larger and smaller again between a forward pass and its backward pass is what it was",
        "a public context that leaves the counter of writes alone",
    ),
    "_hooks": Use("torch", "handles of hooks refer to the registries, which copies must share", _REGISTRY),
    "_forward_hooks": Use(
        "torch",
        "the hooks of transformers.utils.output_capturing are closures, which no pickle takes to another process",
        "a public way to take them off, or hooks that can be pickled",
        modules=("efficiency.memory",),
    ),
    "_cudnn_rnn": Use(
        "torch",
        "FlopCounterMode does not count recurrent layers, and CUDA runs them as this operation",
        "a formula for it in torch.utils.flop_counter",
        modules=("efficiency.macs",),
    ),
    "_orig_mod": Use("torch", "a compiled model must be refused", "a public type of what torch.compile returns"),
    "_conv_forward": Use(
        "torch", "a smaller convolution pads as the stock one does", "padding modes in torch.nn.functional.conv2d"
    ),
    "_reversed_padding_repeated_twice": Use(
        "torch", "a convolution is refitted on the patches that it reads", "padding modes in torch.nn.functional.unfold"
    ),
    "_flat_weights": Use("torch", "an injected layer shares its parameters with the stock one", _RECURRENT),
    "_flat_weight_refs": Use("torch", "an injected layer shares its parameters with the stock one", _RECURRENT),
    "_init_flat_weights": Use("torch", "a packed layer has smaller parameters", _RECURRENT),
    "__composable_api_state_key": Use("torch", "the state of FSDP2 is taken off a module", _UNSHARD),
    "_is_fsdp_managed_module": Use("torch", "the flags of FSDP2 are taken off a module", _UNSHARD),
    "_fsdp_use_orig_params": Use("torch", "the flags of FSDP2 are taken off a module", _UNSHARD),
    "_WrappedHook": Use("torch", "the hooks of FSDP2 are told from those of the user", _UNSHARD),
    "_model_mapping": Use("transformers", "the Auto class of a model is looked up", "a public view of the mapping"),
    "_keys_to_ignore_on_load_missing": Use(
        "transformers", "a checkpoint without these keys is whole", "a public name for it"
    ),
    "_is_hf_initialized": Use(
        "transformers", "a tensor that no file had would be left at random", "missing keys handed to HfQuantizer"
    ),
    "_commit_hash": Use("transformers", "what lies beside a config is read of the same commit", "a public name for it"),
    "_is_quantized": Use(
        "transformers", "a packed model saves, moves and trains as any other", "an HfQuantizer that can say it is done"
    ),
    "_output_capturing_hooks_installed": Use(
        "transformers", "a model of new submodules needs new hooks for its hidden states", "a public way to set them"
    ),
    "_process_model_before_weight_loading": Use(
        "transformers",
        "packed modules are made before they are filled",
        _QUANTIZER,
        modules=("huggingface.checkpoint.loader",),
    ),
    "_process_model_after_weight_loading": Use(
        "transformers", "what was loaded is checked", _QUANTIZER, modules=("huggingface.checkpoint.loader",)
    ),
    "_load_from_checkpoint": Use(
        "transformers",
        "a checkpoint's checksums are checked before anything is loaded from it",
        "an event of TrainerCallback before a checkpoint is loaded",
        modules=("huggingface.trainer.resume",),
    ),
    "_remove_unused_columns": Use(
        "transformers", "example inputs are made of the columns that a model takes", "a public name for it"
    ),
    "_get_collator_with_removed_columns": Use(
        "transformers", "example inputs are made of the columns that a model takes", "a public name for it"
    ),
    "_original_forward": Use(
        "accelerate",
        "packing is proved in full precision",
        "a way to unwrap that leaves the prepared model as it is; today's changes it (huggingface/accelerate#4255)",
    ),
    "_hf_hook": Use("accelerate", "its tensors are new ones, without the mark", "a public test for dispatched modules"),
    "_check_merge_allowed": Use(
        "peft",
        "an adapter on a layer that gathers is refused in words before anything is merged",
        "a way for a base layer to say that nothing can be merged into it",
    ),
    "_hp_mapping": Use(
        "deepspeed",
        "pruned weights are zeroed in the fp32 weights, too",
        "setters for local parts in ZeRO 1 and 2, as stage 3 has them since deepspeedai/DeepSpeed#4681",
    ),
}

REPLACED = {
    "create_model_card": Use("transformers", "a push goes with our own card", "huggingface/transformers#13245"),
    "push_to_hub": Use("transformers", "a push is tried again", "retries in Trainer.push_to_hub or huggingface_hub"),
    "_load_from_checkpoint": Use(
        "transformers",
        "a checkpoint's checksums are checked before anything is loaded from it",
        "an event of TrainerCallback before a checkpoint is loaded",
    ),
    "training_step": Use(
        "transformers",
        "a model that is a smaller size in a step is whole again where the step fails",
        "an event of TrainerCallback for a step that failed",
    ),
    "step": Use("deepspeed", "accelerate steps the engine before any callback", "huggingface/accelerate#2951"),
    "forward": Use(
        "torch",
        "while a model is traced its layers answer without a product, and while it is proved it runs without autocast",
        "pre-hooks that can answer in the place of a module; for autocast huggingface/accelerate#4255",
    ),
}
