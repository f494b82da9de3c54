"""The course: a classifier of names by language, with packed sequences. Needs a folder of names."""

import sys

import torch
from support import SMALL
from torch.nn import functional as F

from d2lfast.data import Names
from d2lfast.inference.names import confusion_matrix, guess
from d2lfast.models import NameClassifier
from d2lfast.training import NetworkModule, Trainer

folder = next((argument for argument in sys.argv[1:] if not argument.startswith("--")), None)
data = Names(batch_size=256, root=folder)
classes = list(data.languages)
net = NameClassifier(num_classes=len(classes), num_hiddens=8 if SMALL else 100, bidirectional=True)
model = NetworkModule(net, F.cross_entropy, lr=0.001, optimizer="adam", accuracy=True)
trainer = Trainer(max_epochs=1 if SMALL else 20)
trainer.fit(model, data)
counts = confusion_matrix(net, data.val_dataloader(), len(classes))
print(
    f"accuracy {counts.diagonal().sum() / counts.sum():.3f}; {torch.count_nonzero(counts)} kinds of answers"
)
print("Satoshi:", guess(net, "Satoshi", classes))
