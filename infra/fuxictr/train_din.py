"""The peer of `make bench-train`: FuxiCTR's own DIN and data loader, one epoch. Runs in .venv-fuxictr.

    python infra/fuxictr/train_din.py FOLDER WORKERS SEED

FOLDER holds what `vista.train.bench` wrote: train, valid and test rows, the users' histories, the items, and
feature_map.json. Prints one line of JSON. Everything that learns or loads is FuxiCTR's; ours is the learning
rate's linear decay, which FuxiCTR lacks and both sides need for their best AUC, and the clock.
"""

import json
import sys
import time
from pathlib import Path

import fuxictr
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.torch_utils import seed_everything
from model_zoo.LongCTR.DIN import DIN
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader


def main(folder: Path, workers: int, seed: int) -> dict[str, float | str]:
    """Train on train.parquet, score test.parquet: rows per second of training, and what was learned."""
    recipe = json.loads((folder / "recipe.json").read_text())
    torch.set_num_threads(1)
    seed_everything(seed)
    features = FeatureMap(folder.name, str(folder))
    features.load(str(folder / "feature_map.json"), {"embedding_dim": recipe["embedding_dim"]})

    def rows(name: str, shuffle: bool) -> LongCTRDataLoader:
        return LongCTRDataLoader(
            features,
            str(folder / name),
            str(folder / "users.parquet"),
            str(folder / "items.parquet"),
            batch_size=recipe["batch_size"],
            shuffle=shuffle,
            num_workers=workers,
            max_len=recipe["max_len"],
        )

    model = DIN(
        features,
        loss="binary_crossentropy",
        metrics=["AUC", "logloss"],
        optimizer="adam",
        verbose=0,
        model_root=str(folder),
        learning_rate=recipe["learning_rate"],
        embedding_dim=recipe["embedding_dim"],
        dnn_hidden_units=recipe["mlp"],
    )
    train, valid = rows("train.parquet", True), rows("valid.parquet", False)
    steps = len(train)
    decay = torch.optim.lr_scheduler.LinearLR(
        model.optimizer, 1.0, recipe["final_learning_rate_fraction"], total_iters=steps
    )
    stepped_at: list[float] = []

    def stepped(*_: object) -> None:
        stepped_at.append(time.monotonic())
        decay.step()

    model.optimizer.register_step_post_hook(stepped)
    Path(model.model_dir).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    model.fit(train, epochs=1, validation_data=valid)
    train_s = stepped_at[-1] - started  # `fit` goes on with the validation rows
    assert len(stepped_at) == steps, f"{len(stepped_at)} steps of {steps}"
    figures = model.evaluate(rows("test.parquet", False))
    return {
        "workers": workers,
        "train_s": round(train_s, 2),
        "rows_per_s": round(train.num_samples / train_s, 1),
        "auc": figures["AUC"],
        "log_loss": figures["logloss"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fuxictr": fuxictr.__version__,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
