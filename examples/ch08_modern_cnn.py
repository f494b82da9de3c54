"""Chapter 8: batch normalisation, residual and dense connections."""

import torch
from support import SMALL, epochs, fashion_mnist

from d2lfast import book as d2l

MODELS = {
    "BNLeNet": (lambda: d2l.BNLeNet(lr=0.1), 28),
    "ResNet18": (lambda: d2l.ResNet18(lr=0.01), 96),
    "DenseNet": (lambda: d2l.DenseNet(lr=0.01), 96),
    "GoogleNet": (lambda: d2l.GoogleNet(lr=0.01), 96),
}
for name, (make, size) in MODELS.items():
    if SMALL and name == "GoogleNet":
        continue
    model = make()
    data = fashion_mnist(batch_size=128, resize=(size, size))
    model.apply_init([next(iter(data.get_dataloader(True)))[0]], d2l.init_cnn)
    trainer = d2l.Trainer(max_epochs=epochs(10), num_gpus=1)
    trainer.fit(model, data)
    last = trainer.history[-1]
    print(f"{name}: loss {last.loss:.3f}, accuracy {last.validation_accuracy:.3f}")
print("a residual block:", d2l.Residual(6, use_1x1conv=True, strides=2)(torch.rand(4, 3, 6, 6)).shape)
