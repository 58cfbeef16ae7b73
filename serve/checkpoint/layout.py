"""The JSON files of the target layout: what vLLM's ``LlavaForConditionalGeneration`` reads."""

from __future__ import annotations

from serve.checkpoint.config import ImageNormalisation, Json, SourceConfig, VisionConfig
from serve.checkpoint.heads import HeadWidth
from serve.checkpoint.source import Source
from serve.checkpoint.tokenizer import IMAGE, Vocabulary

# Decoding defaults that a source may bring. Stop strings are never taken over: an empty one ends
# every answer after one word (LLaVA-Med's issue 86).
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty")


def extended_vocabulary(vocabulary: Vocabulary) -> int:
    """Rows of the target's embedding: the vocabulary and ``<image>``.

    No more: every further row would take probability from the others. vLLM pads for its kernels and
    masks what it pads (``ParallelLMHead``).
    """
    return vocabulary.image + 1


def model_config(source: Source, vocabulary: Vocabulary, dtype: str) -> Json:
    """``config.json`` (transformers' ``LlavaConfig``). ``dtype`` is torch's name of a type."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": dtype,
        "image_token_index": vocabulary.image,
        "image_seq_length": source.vision_config.image_tokens,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": source.config.mm_vision_select_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": _text_config(source.config, vocabulary, dtype),
        "vision_config": _vision_config(source.vision_config, dtype),
    }


def _text_config(config: SourceConfig, vocabulary: Vocabulary, dtype: str) -> Json:
    width = HeadWidth.of(config.head_size)
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "dtype": dtype,
        "vocab_size": extended_vocabulary(vocabulary),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": width.target,
        "hidden_act": config.hidden_act,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": width.rope_theta(config.rope_theta),
        },
        "sliding_window": config.sliding_window,
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.unk,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def _vision_config(config: VisionConfig, dtype: str) -> Json:
    return {"model_type": "clip_vision_model", "dtype": dtype} | config.model_dump()


def generation_config(source: Source, vocabulary: Vocabulary) -> Json:
    """``generation_config.json``: as in the source, greedy when that does not say otherwise."""
    sampling = {name: source.generation[name] for name in _SAMPLING if name in source.generation}
    if not sampling.get("do_sample"):
        # vLLM knows greedy decoding as temperature 0, and takes 1 where none is given.
        sampling = {"do_sample": False, "temperature": 0.0}
    return {
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.unk,
    } | sampling


def image_processor(config: VisionConfig, normalisation: ImageNormalisation) -> Json:
    """``preprocessor_config.json``: pad to a square in the mean colour, resize, normalise.

    transformers 5.19 picks its torchvision variant, whatever a file says; it differs from the
    authors' pixels by at most 0.03. An engine that is started with
    ``mm_processor_kwargs={"backend": "pil"}`` uses the PIL variant, which equals them.
    """
    side = config.image_size
    return {
        "image_processor_type": "LlavaImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_pad": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": normalisation.resample,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": normalisation.rescale_factor,
        "do_normalize": True,
        "image_mean": list(normalisation.image_mean),
        "image_std": list(normalisation.image_std),
    }


def processor_config(config: VisionConfig) -> Json:
    """``processor_config.json``. The additional token is CLIP's class token, dropped later."""
    return {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE,
        "patch_size": config.patch_size,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
