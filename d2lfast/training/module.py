"""The book's base classes of models (3.2.2, 4.3)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from d2lfast.hyperparameters import HyperParameters
from d2lfast.nn import functional as F
from d2lfast.training.board import ProgressBoard

__all__ = ["Classifier", "Module", "dry_run"]


class Module(nn.Module, HyperParameters):
    """A model that knows its loss, its steps and its optimizer; `Trainer.fit` does the rest.

    Args:
        plot_train_per_epoch: points of a training curve per epoch.
        plot_valid_per_epoch: points of a validation curve per epoch.
    """

    def __init__(self, plot_train_per_epoch: int = 2, plot_valid_per_epoch: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.board = ProgressBoard()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model is not in training: the trainer holds the data, the optimizer, open files.
        return {name: value for name, value in self.__dict__.items() if name != "trainer"}

    def loss(self, y_hat: Tensor, y: Tensor) -> Tensor:
        """Return the loss of predictions; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")

    def forward(self, X: Any, *args: Any) -> Any:
        """Return `self.net` of the inputs."""
        if not hasattr(self, "net"):
            raise NotImplementedError(f"{type(self).__name__} must define net or forward")
        return self.net(X, *args)

    def plot(self, key: str, value: Tensor, train: bool) -> None:
        """Add a point to the curve `train_<key>` or `val_<key>`, and to the means of the epoch.

        Outside training it does nothing.
        """
        trainer = self.__dict__.get("trainer")
        if trainer is None:
            return
        value = value.detach() if isinstance(value, Tensor) else value
        trainer.record(key, value, train)
        self.board.xlabel = "epoch"
        if train:
            x = trainer.train_batch_idx / trainer.num_train_batches
            n = trainer.num_train_batches / self.plot_train_per_epoch
        else:
            x = trainer.epoch + 1
            n = trainer.num_val_batches / self.plot_valid_per_epoch
        self.board.draw(x, value, ("train_" if train else "val_") + key, every_n=max(1, int(n)))

    def training_step(self, batch: Sequence[Any]) -> Tensor:
        """Return the loss of a batch, whose last item is the target."""
        loss = self.loss(self(*batch[:-1]), batch[-1])
        self.plot("loss", loss, train=True)
        return loss

    def validation_step(self, batch: Sequence[Any]) -> None:
        """Plot the loss of a batch."""
        self.plot("loss", self.loss(self(*batch[:-1]), batch[-1]), train=False)

    def configure_optimizers(self) -> Any:
        """Return SGD at the learning rate `self.lr`."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def apply_init(self, inputs: Sequence[Any], init: Callable[[nn.Module], None] | None = None) -> None:
        """Let lazy layers take their sizes from `inputs`, then initialise all layers by `init`.

        Nothing else changes: running statistics and the training mode stay.
        """
        dry_run(self, inputs)
        if init is not None:
            self.net.apply(init)


def dry_run(model: nn.Module, inputs: Sequence[Any]) -> None:
    """Run `model` once without training it, so that lazy layers take their sizes."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for module, training in modes:
            module.training = training


class Classifier(Module):
    """A model that gives the logits of classes, trained by cross-entropy."""

    def training_step(self, batch: Sequence[Any]) -> Tensor:
        """Return the loss of a batch; the accuracy enters the means of the epoch."""
        Y_hat = self(*batch[:-1])
        loss = self.loss(Y_hat, batch[-1])
        self.plot("loss", loss, train=True)
        trainer = self.__dict__.get("trainer")
        if trainer is not None:
            trainer.record("acc", self.accuracy(Y_hat.detach(), batch[-1]), train=True)
        return loss

    def validation_step(self, batch: Sequence[Any]) -> None:
        """Plot loss and accuracy of a batch."""
        Y_hat = self(*batch[:-1])
        self.plot("loss", self.loss(Y_hat, batch[-1]), train=False)
        self.plot("acc", self.accuracy(Y_hat, batch[-1]), train=False)

    def accuracy(self, Y_hat: Tensor, Y: Tensor, averaged: bool = True) -> Tensor:
        """Return the share of right predictions, or 0 and 1 for each.

        Shapes: Y_hat [..., classes], Y [...] -> scalar, or a vector.
        """
        predictions = Y_hat.reshape(-1, Y_hat.shape[-1]).argmax(1)
        right = (predictions == Y.reshape(-1)).to(torch.float32)
        return right.mean() if averaged else right

    def loss(self, Y_hat: Tensor, Y: Tensor, averaged: bool = True) -> Tensor:
        """Return the cross-entropy; leading axes are taken as one.

        Shapes: Y_hat [..., classes], Y [...] integers -> scalar, or a vector.
        """
        reduction = "mean" if averaged else "none"
        if Y_hat.dim() < 3 or Y_hat.shape[:-1] != Y.shape:
            Y_hat, Y = Y_hat.reshape(-1, Y_hat.shape[-1]), Y.reshape(-1)
        loss = F.cross_entropy(Y_hat.movedim(-1, 1), Y, reduction=reduction)
        return loss if averaged else loss.reshape(-1)

    def layer_summary(self, X_shape: Sequence[int]) -> None:
        """Print the class and the output shape of every layer of `self.net` for an input of `X_shape`."""
        X = torch.randn(*X_shape)
        mode = self.training
        self.eval()
        with torch.no_grad():
            for layer in self.net:
                X = layer(X)
                print(type(layer).__name__, "output shape:\t", X.shape)
        self.train(mode)
