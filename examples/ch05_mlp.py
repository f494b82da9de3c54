"""Chapter 5: multilayer perceptrons, with and without dropout."""

from support import epochs, fashion_mnist

from d2lfast import book as d2l

data = fashion_mnist(batch_size=256)
for model in (
    d2l.MLPScratch(num_inputs=784, num_outputs=10, num_hiddens=256, lr=0.1),
    d2l.MLP(num_outputs=10, num_hiddens=256, lr=0.1),
    d2l.DropoutMLP(10, num_hiddens_1=256, num_hiddens_2=256, dropout_1=0.5, dropout_2=0.5, lr=0.1),
):
    trainer = d2l.Trainer(max_epochs=epochs(10))
    trainer.fit(model, data)
    last = trainer.history[-1]
    speed = f"{last.examples_per_second:,.0f} examples/s"
    print(f"{type(model).__name__}: accuracy {last.validation_accuracy:.3f}, {speed}")
