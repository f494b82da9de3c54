"""Chapter 3: linear regression from its formula, from layers and in closed form; weight decay."""

import torch
from support import epochs

from d2lfast import book as d2l

w, b = torch.tensor([2, -3.4]), 4.2
data = d2l.SyntheticRegressionData(w, b)
for model in (d2l.LinearRegressionScratch(2, lr=0.03), d2l.LinearRegression(lr=0.03)):
    d2l.Trainer(max_epochs=epochs(3)).fit(model, data)
    found = (model.w, model.b) if hasattr(model, "w") else model.get_w_b()
    errors = (w - found[0].reshape(-1)).tolist(), (b - found[1]).item()
    print(f"{type(model).__name__}: errors of w and b {errors}")
print("closed form:", *(part.flatten().tolist() for part in d2l.closed_form(data.X, data.y)))

few = d2l.Data(num_train=20, num_val=100, num_inputs=200, batch_size=5)
for decay in (0, 3):
    model = d2l.WeightDecay(wd=decay, lr=0.01)
    d2l.Trainer(max_epochs=epochs(10)).fit(model, few)
    print(f"weight decay {decay}: half the squared norm of w {d2l.l2_penalty(model.get_w_b()[0]):.5f}")
