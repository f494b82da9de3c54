"""What all classifiers of images share."""

from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """A network that is one chain, `net`: images [N, C, H, W] -> logits [N, classes]."""

    net: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        return self.net(x)
