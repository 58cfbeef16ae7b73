"""The two tricks of training change nothing that is computed; the saved layout is LLaVA-Med's."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from guardrails.templates import PREAMBLE
from serve.phantom import weights_dir
from serve.phantom.dialogue import Turn, random_turn
from serve.phantom.draw import Phantom
from serve.phantom.evaluate import evaluate
from serve.phantom.model import IGNORED, Conversation, PhantomModel, pack
from serve.phantom.original import load, save
from serve.phantom.samples import LABELS, pixels, sample
from serve.phantom.tokens import VOCABULARY, branch, system_lead, vocabulary


@pytest.fixture(scope="module")
def model() -> PhantomModel:
    torch.manual_seed(0)
    return PhantomModel(len(LABELS)).eval()


def _conversation(*turns: Turn) -> Conversation:
    return Conversation(system_lead(PREAMBLE), [branch(turn, PREAMBLE) for turn in turns])


def _logits(model: PhantomModel, conversation: Conversation) -> list[torch.Tensor]:
    """Logits of what is learned, per branch."""
    torch.manual_seed(1)
    features = torch.randn(1, 576, 128)
    packed = pack(model, features, [conversation], np.ones(10_000, np.int64))
    with torch.no_grad():
        learned = model.logits(model.hidden(packed)[packed.targets != IGNORED])
    sizes = [len(one.ids) - one.prompt for one in conversation.branches]
    return list(learned.split(sizes))


def test_a_question_among_many_is_answered_as_alone(model: PhantomModel) -> None:
    rng = random.Random(5)
    turns = [random_turn(Phantom(effusion="left"), rng) for _ in range(5)]
    turns.append(Turn("Is there a mass?", "No image was given.", image=False))
    turns.append(Turn("Where?", "Left.", earlier=("Describe the image.", "A chest.")))
    together = _logits(model, _conversation(*turns))
    for turn, packed in zip(turns, together, strict=True):
        (alone,) = _logits(model, _conversation(turn))
        torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


def test_the_small_softmax_equals_the_whole_one(model: PhantomModel) -> None:
    hidden = torch.randn(7, 128)
    small = model.logits(hidden).log_softmax(-1)
    head = model.text.lm_head.weight
    whole = head[:1].repeat(VOCABULARY, 1)
    whole[list(vocabulary())] = head
    full = (hidden @ whole.T).log_softmax(-1)
    expected = full[:, list(vocabulary())][:, 1:]
    torch.testing.assert_close(small[:, 1:], expected, atol=1e-4, rtol=1e-4)


def test_it_is_saved_in_the_original_layout_and_read_back(
    model: PhantomModel, tmp_path: Path
) -> None:
    save(model, tmp_path / "phantom")
    tensors = load_file(tmp_path / "phantom" / "model.safetensors")
    config = json.loads((tmp_path / "phantom" / "config.json").read_text())
    assert config["architectures"] == ["LlavaMistralForCausalLM"]
    assert tensors["model.embed_tokens.weight"].shape == (VOCABULARY, 128)
    assert tensors["lm_head.weight"].shape == (VOCABULARY, 128)
    tower = "model.vision_tower.vision_tower.vision_model."
    assert f"{tower}pre_layrnorm.weight" in tensors
    assert sum(key.startswith(f"{tower}encoder.layers.3.") for key in tensors) > 0
    unused = next(i for i in range(VOCABULARY) if i not in vocabulary())
    assert torch.equal(tensors["lm_head.weight"][unused], tensors["lm_head.weight"][0])
    again = load(tmp_path / "phantom", len(LABELS))
    image = pixels([sample(1).image])
    with torch.no_grad():
        torch.testing.assert_close(
            again.features(image), model.features(image), atol=0.05, rtol=0.05
        )


def test_the_shipped_weights_know_unseen_phantoms() -> None:
    shipped = load(weights_dir(), len(LABELS))
    accuracy = evaluate(shipped, first_seed=77_000_000, count=20)
    assert len(accuracy) == 13
    for row, value in accuracy.items():
        assert value["accuracy"] > 0.7, row
