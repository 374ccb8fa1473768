"""sae-lens's training of a top-k dictionary; runs in sae-lens's own environment.

``python sae_lens_side.py FOLDER`` reads ``problem.json`` (d_in, d_dict, k, learning_rate),
``weights.safetensors`` and ``batches.safetensors`` from the folder, answers one line of JSON with one
line of JSON until its input ends, and times only its own trainer's step: ``{"do": "steps", "sparse": false, "n": 5}`` → ``{"seconds": …, "losses": […]}``.

Source: https://github.com/decoderesearch/SAELens.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file


class Side:
    """sae-lens's trainers, its sparse activations off (its default) and on."""

    def __init__(self, folder: Path) -> None:
        self.problem = json.loads((folder / "problem.json").read_text("utf-8"))
        self.batches = load_file(folder / "batches.safetensors")["batches"]
        self.weights = load_file(folder / "weights.safetensors")
        self.trainers = {sparse: self._trainer(sparse) for sparse in (False, True)}

    def _trainer(self, sparse: bool) -> Any:
        p, batch = self.problem, self.batches.shape[1]
        config = TopKTrainingSAEConfig(
            d_in=p["d_in"], d_sae=p["d_dict"], k=p["k"], use_sparse_activations=sparse,
            rescale_acts_by_decoder_norm=not sparse,
        )  # fmt: skip
        settings = SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
            total_training_samples=10**9, device="cpu", autocast=False, lr=p["learning_rate"],
            lr_end=p["learning_rate"], lr_scheduler_name="constant", lr_warm_up_steps=0,
            adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1,
            train_batch_size_samples=batch, dead_feature_window=10**9,
            feature_sampling_window=10**9, logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        made = TopKTrainingSAE(config)
        made.load_state_dict(self.weights)
        return SAETrainer(settings, made, iter(()))

    def steps(self, sparse: bool, n: int) -> dict[str, Any]:
        """Seconds a step, and the loss of each."""
        trainer, losses = self.trainers[sparse], []
        started = time.perf_counter()
        for i in range(n):
            losses.append(trainer.step(self.batches[i % len(self.batches)]).loss)
            trainer.n_training_steps += 1
        seconds = (time.perf_counter() - started) / n
        return {"seconds": seconds, "losses": [float(loss) for loss in losses]}


def main() -> None:
    torch.set_num_threads(1)
    side = Side(Path(sys.argv[1]))
    answer = functools.partial(print, flush=True)
    answer(json.dumps({"ready": True}))
    for line in sys.stdin:
        asked = json.loads(line)
        answer(json.dumps(getattr(side, asked.pop("do"))(**asked)))


if __name__ == "__main__":
    main()
