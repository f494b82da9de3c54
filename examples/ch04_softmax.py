"""Chapter 4: softmax regression on Fashion-MNIST, from its formula and from layers."""

from support import epochs, fashion_mnist

from d2lfast import book as d2l

data = fashion_mnist(batch_size=256)
for model in (d2l.SoftmaxRegressionScratch(784, 10, lr=0.1), d2l.SoftmaxRegression(num_outputs=10, lr=0.1)):
    trainer = d2l.Trainer(max_epochs=epochs(10))
    trainer.fit(model, data)
    print(f"{type(model).__name__}: validation accuracy {trainer.history[-1].validation_accuracy:.3f}")
X, y = next(iter(data.val_dataloader()))
print("the first images are", data.text_labels(model(X)[:4].argmax(1)), "in truth", data.text_labels(y[:4]))
