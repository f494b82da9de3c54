"""Any network of the registry as a `Module` that can be trained."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2lfast.training.module import Module

__all__ = ["NetworkModule"]

Loss = Callable[[Tensor, Tensor], Tensor]


class NetworkModule(Module):
    """A network with its loss and optimizer.

    Args:
        net: called with all items of a batch but the last, which is the target.
        loss: of outputs and target.
        lr: learning rate.
        optimizer: "sgd" or "adam".
        weight_decay: of the weights; biases and normalisation parameters are left alone.
        accuracy: record the share of right classes; for logits [..., classes].
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        lr: float,
        *,
        optimizer: str = "sgd",
        weight_decay: float = 0.0,
        accuracy: bool = False,
    ) -> None:
        super().__init__()
        if optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {optimizer!r}")
        self.save_hyperparameters(ignore=["net", "loss", "accuracy"])
        self.net = net
        self._loss = loss
        self._accuracy = accuracy

    def forward(self, *inputs: Any) -> Any:
        """Return the network's outputs."""
        return self.net(*inputs)

    def loss(self, y_hat: Tensor, y: Tensor) -> Tensor:
        """Return the loss of outputs and target."""
        return self._loss(y_hat, y)

    def training_step(self, batch: Sequence[Any]) -> Tensor:
        """Return the loss of a batch and record what is known of it."""
        return self._recorded(batch, train=True)

    def validation_step(self, batch: Sequence[Any]) -> None:
        """Record loss and accuracy of a batch."""
        self._recorded(batch, train=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        parameters = list(self.net.named_parameters())
        groups = [
            {"params": [p for _, p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for _, p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        kind: Any = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.Adam
        return kind([group for group in groups if group["params"]], lr=self.lr)

    def _recorded(self, batch: Sequence[Any], train: bool) -> Tensor:
        outputs, target = self(*batch[:-1]), batch[-1]
        loss = self.loss(outputs, target)
        self.plot("loss", loss, train)
        if self._accuracy:
            right = outputs.detach().argmax(-1) == target
            self.plot("acc", right.to(torch.float32).mean(), train)
        return loss
