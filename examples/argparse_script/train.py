"""A training script as it was before smkit: argparse and SageMaker's variables. `smkit.launch` runs it as it is."""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--train", default=os.environ.get("SM_CHANNEL_TRAIN"))
    parser.add_argument("--model-dir", default=os.environ.get("SM_MODEL_DIR", "model"))
    parser.add_argument("--output-data-dir", default=os.environ.get("SM_OUTPUT_DATA_DIR", "output"))
    args = parser.parse_args()

    arrays = np.load(Path(args.train) / "digits.npz")
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate, momentum=0.9)
    for epoch in range(args.epochs):
        for chosen in torch.randperm(len(labels)).split(args.batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)

    torch.save(model.state_dict(), Path(args.model_dir) / "model.pt")
    (Path(args.output_data_dir) / "settings.txt").write_text(str(vars(args)))


if __name__ == "__main__":
    main()
