"""Chapter 10: LSTM, GRU and several layers; translation from English to French."""

from support import SMALL, epochs, time_machine

from d2lfast import book as d2l

data = time_machine(batch_size=1024, num_steps=32)
size = len(data.vocab)
for rnn, lr in (
    (d2l.LSTM(num_inputs=size, num_hiddens=32), 4),
    (d2l.GRU(num_inputs=size, num_hiddens=32, num_layers=1), 4),
    (d2l.GRU(num_inputs=size, num_hiddens=32, num_layers=2), 2),
):
    model = d2l.RNNLM(rnn, vocab_size=size, lr=lr)
    d2l.Trainer(max_epochs=epochs(50), gradient_clip_val=1, num_gpus=1).fit(model, data)
    print(f"{type(rnn).__name__}: perplexity {model.board.data['train_ppl'][-1].y:.2f}")

if not SMALL:
    pairs = d2l.MTFraEng(batch_size=128)
    encoder = d2l.Seq2SeqEncoder(
        len(pairs.src_vocab), embed_size=256, num_hiddens=256, num_layers=2, dropout=0.2
    )
    decoder = d2l.Seq2SeqDecoder(
        len(pairs.tgt_vocab), embed_size=256, num_hiddens=256, num_layers=2, dropout=0.2
    )
    model = d2l.Seq2Seq(encoder, decoder, tgt_pad=pairs.tgt_vocab["<pad>"], lr=0.005)
    d2l.Trainer(max_epochs=30, gradient_clip_val=1, num_gpus=1).fit(model, pairs)
    english = ["go .", "i lost .", "he's calm .", "i'm home ."]
    french = ["va !", "j'ai perdu .", "il est calme .", "je suis chez moi ."]
    answers, _ = model.predict_step(pairs.build(english, french), d2l.try_gpu(), pairs.num_steps)
    for source, target, row in zip(english, french, answers):
        words = [word for word in pairs.tgt_vocab.to_tokens(row) if word != "<pad>"]
        words = words[: words.index("<eos>")] if "<eos>" in words else words
        print(f"{source} => {' '.join(words)}, BLEU {d2l.bleu(' '.join(words), target, k=2):.3f}")
