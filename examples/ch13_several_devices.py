"""Chapter 13.5-13.6: data-parallel training by hand.

For real work: `torchrun --nproc-per-node 2 -m d2lfast train resnet18`.
"""

import torch
from support import SMALL, epochs, fashion_mnist

from d2lfast import book as d2l

tensors = [torch.ones(1, 2), torch.ones(1, 2) * 2]
d2l.allreduce(tensors)
print("after allreduce", [each.tolist() for each in tensors])
parts, _ = d2l.split_batch(torch.arange(20).reshape(4, 5), torch.zeros(4), [d2l.cpu(), d2l.cpu()])
print("parts of a batch", [tuple(part.shape) for part in parts])
data = fashion_mnist(batch_size=256)
for count in (1, 2):
    loaders = (data.get_dataloader(True), data.get_dataloader(False))
    d2l.train(num_gpus=count, batch_size=256, lr=0.2, num_epochs=epochs(10), data=loaders)
if not SMALL:
    print(sum(p.numel() for p in d2l.resnet18(10).parameters()), "parameters of the small ResNet-18")
