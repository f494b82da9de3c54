"""Learn the edge detector [1, -1] from one image by gradient descent (book, 7.2.4)."""

import torch

import d2lfast
from d2lfast import nn


def learn(steps: int = 10, learning_rate: float = 0.03, seed: int = 0) -> tuple[list[float], torch.Tensor]:
    """Return the loss before every step, and the kernel, [1, 2]."""
    torch.manual_seed(seed)
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    edges = d2lfast.corr2d(image, torch.tensor([[1.0, -1.0]]))

    X, Y = image.view(1, 1, 6, 8), edges.view(1, 1, 6, 7)
    conv = nn.Conv2d(1, 1, kernel_size=(1, 2), bias=False)
    losses = []
    for _ in range(steps):
        loss = ((conv(X) - Y) ** 2).sum()
        conv.zero_grad()
        loss.backward()
        with torch.no_grad():
            conv.weight -= learning_rate * conv.weight.grad
        losses.append(loss.item())
    return losses, conv.weight.detach().view(1, 2)


if __name__ == "__main__":
    history, kernel = learn()
    for step, loss in enumerate(history, 1):
        print(f"step {step:2d}, loss {loss:.3f}")
    print("learned kernel", [round(weight, 3) for weight in kernel.flatten().tolist()], "of [1, -1]")
