"""Trains the phantom model: ``python -m serve.phantom.train --out DIR``.

First the vision tower learns where findings are, patch by patch; then, with the tower fixed and its
features kept, the decoder learns to answer. The same seed and thread count give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange
from tqdm.auto import tqdm

from serve.phantom.dialogue import SYSTEMS, random_turn
from serve.phantom.evaluate import evaluate, table
from serve.phantom.model import IGNORED, Conversation, PhantomModel, pack
from serve.phantom.original import load, save
from serve.phantom.samples import LABELS, Sample, pixels, samples
from serve.phantom.tokens import branch, system_lead

TRAINING_SEEDS, TEST_SEEDS = 1_000_000, 9_000_000
BATCH_VISION, BATCH_TEXT, QUESTIONS = 8, 6, 6
UNKNOWN_WORDS = 0.03  # share of question pieces replaced by <unk>
Losses = list[float]


class Order:
    """Draws indices without repetition, epoch after epoch."""

    def __init__(self, count: int, rng: random.Random) -> None:
        self._count, self._rng = count, rng
        self._left: list[int] = []

    def take(self, number: int) -> list[int]:
        """The next ``number`` indices."""
        if len(self._left) < number:
            self._left = self._rng.sample(range(self._count), self._count)
        taken, self._left = self._left[:number], self._left[number:]
        return taken


def optimise(
    name: str,
    parameters: list[nn.Parameter],
    steps: int,
    peak: float,
    loss_of: Callable[[], Tensor],
) -> Losses:
    """AdamW with warm-up and a cosine to zero; returns the loss of every step."""
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    losses: Losses = []
    for step in (bar := trange(steps, desc=name)):
        for group in optimizer.param_groups:
            warm = min(1, (step + 1) / 60)
            group["lr"] = peak * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.4f}")
    return losses


def train_vision(model: PhantomModel, pool: list[Sample], steps: int, rng: random.Random) -> Losses:
    """Patch labels from the projected features, by a head that is thrown away."""
    order = Order(len(pool), rng)
    weight = torch.tensor(4.0)  # a finding covers few patches

    def loss() -> Tensor:
        batch = [pool[index] for index in order.take(BATCH_VISION)]
        found = model.dense(model.features(pixels([sample.image for sample in batch])))
        truth = torch.from_numpy(np.stack([sample.patches.T for sample in batch])).float() / 255
        return functional.binary_cross_entropy_with_logits(found, truth, pos_weight=weight)

    parameters = [
        *model.vision.parameters(), *model.projector.parameters(), *model.dense.parameters()
    ]  # fmt: skip
    return optimise("vision", parameters, steps, 1.5e-3, loss)


def train_text(model: PhantomModel, pool: list[Sample], steps: int, rng: random.Random) -> Losses:
    """Answers from the fixed tower's features."""
    with torch.no_grad():
        features = torch.cat(
            [
                model.features(pixels([sample.image for sample in pool[start : start + 16]]))
                for start in trange(0, len(pool), 16, desc="features")
            ]
        )
    order = Order(len(pool), rng)
    noise = np.random.default_rng(rng.randrange(2**32))

    def loss() -> Tensor:
        indices = order.take(BATCH_TEXT)
        packed = pack(
            model,
            features[indices],
            [_conversation(pool[index], rng) for index in indices],
            (noise.random(BATCH_TEXT * QUESTIONS * 512) >= UNKNOWN_WORDS).astype(np.int64),
        )
        learned = packed.targets != IGNORED
        logits = model.logits(model.hidden(packed)[learned])
        return functional.cross_entropy(logits, packed.targets[learned])

    return optimise("text", list(model.text.parameters()), steps, 2e-3, loss)


def _conversation(sample: Sample, rng: random.Random) -> Conversation:
    system = rng.choice(SYSTEMS)
    turns = [random_turn(sample.phantom, rng) for _ in range(QUESTIONS)]
    return Conversation(system_lead(system), [branch(turn, system) for turn in turns])


def plot(vision: Losses, text: Losses, path: Path) -> None:
    """The loss curves, both phases, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), constrained_layout=True)
    for axis, losses, title in zip(axes, (vision, text), ("vision", "text"), strict=True):
        if not losses:
            continue
        width = max(1, len(losses) // 100)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axis.semilogy(losses, color="0.8", linewidth=0.5)
        axis.semilogy(np.arange(len(smooth)) + width / 2, smooth)
        axis.set(title=f"{title}: training loss", xlabel="step", ylabel="cross-entropy, nats")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Trains, saves in the original layout, evaluates what was saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=4000, help="drawings to train on")
    parser.add_argument("--vision-steps", type=int, default=2500, help="0.2 s each on two cores")
    parser.add_argument("--text-steps", type=int, default=1800, help="0.55 s each")
    parser.add_argument("--resume", type=Path, help="checkpoint whose text phase is to go on")
    parser.add_argument("--test", type=int, default=500, help="unseen drawings to evaluate on")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    seeds = samples(TRAINING_SEEDS, arguments.pool)
    pool = list(tqdm(seeds, "drawing", arguments.pool))
    if arguments.resume is not None:
        model, vision = load(arguments.resume, len(LABELS)).train(), []
    else:
        model = PhantomModel(len(LABELS))
        vision = train_vision(model, pool, arguments.vision_steps, rng)
    text = train_text(model, pool, arguments.text_steps, rng)
    save(model, arguments.out)
    plot(vision, text, arguments.out / "loss_curve.png")
    accuracy = evaluate(load(arguments.out, len(LABELS)), TEST_SEEDS, arguments.test)
    (arguments.out / "accuracy.json").write_text(json.dumps(accuracy, indent=1) + "\n")
    tqdm.write(table(accuracy))


if __name__ == "__main__":
    main()
