"""Chapter 7: LeNet by the book's Trainer, and by `train_ch6` of earlier editions."""

import torch
from support import epochs, fashion_mnist

from d2lfast import book as d2l

data = fashion_mnist(batch_size=128)
model = d2l.LeNet(lr=0.1)
model.apply_init([next(iter(data.get_dataloader(True)))[0]], d2l.init_cnn)
model.layer_summary((1, 1, 28, 28))
trainer = d2l.Trainer(max_epochs=epochs(10), num_gpus=1)
trainer.fit(model, data)
print(f"validation accuracy {trainer.history[-1].validation_accuracy:.3f}")

net = d2l.LeNet().net
d2l.train_ch6(net, data.get_dataloader(True), data.get_dataloader(False), epochs(10), 0.9, d2l.try_gpu())
X = torch.arange(9.0).reshape(3, 3)
print(
    "cross-correlation",
    d2l.corr2d(X, torch.tensor([[0.0, 1.0], [2.0, 3.0]])),
    "pooling",
    d2l.pool2d(X, (2, 2)),
)
