"""Chapter 9: a character language model, from its formulas and from layers."""

from support import epochs, time_machine

from d2lfast import book as d2l

data = time_machine(batch_size=1024, num_steps=32)
size = len(data.vocab)
for model in (
    d2l.RNNLMScratch(d2l.RNNScratch(num_inputs=size, num_hiddens=32), vocab_size=size, lr=1),
    d2l.RNNLM(d2l.RNN(num_inputs=size, num_hiddens=32), vocab_size=size, lr=1),
):
    trainer = d2l.Trainer(max_epochs=epochs(100), gradient_clip_val=1, num_gpus=1)
    trainer.fit(model, data)
    perplexity = model.board.data["train_ppl"][-1].y
    print(
        f"{type(model).__name__}: perplexity {perplexity:.2f},",
        model.predict("it has", 20, data.vocab, d2l.try_gpu()),
    )
