"""The encoder-decoder, the two searches, and BLEU."""

import itertools
from math import exp, log

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import d2lfast
from d2lfast import models
from d2lfast.models.tasks import PADDING, masked_cross_entropy

BOS, EOS = 0, 1
LAYERS = pytest.mark.parametrize("layers", [d2lfast.nn, nn], ids=["d2lfast", "torch"])


def small(vocab_size=5, scale=3.0, **kw):
    """A model with pronounced opinions."""
    torch.manual_seed(7)
    model = models.Seq2Seq(6, vocab_size, 8, 10, 2, 0.0, **kw).eval()
    with torch.no_grad():
        model.decoder.dense.weight.mul_(scale)
    return model


@LAYERS
def test_the_books_own_checks_of_shapes(layers):
    encoder = models.Seq2SeqEncoder(10, 8, 16, 2, layers=layers)
    decoder = models.Seq2SeqDecoder(10, 8, 16, 2, layers=layers)
    X = torch.zeros(4, 9)
    outputs, state = encoder(X)
    assert outputs.shape == (9, 4, 16)
    assert state.shape == (2, 4, 16)
    logits, (context, hidden) = decoder(X, decoder.init_state((outputs, state)))
    assert logits.shape == (4, 9, 10)
    assert context.shape == (4, 16)
    assert hidden.shape == (2, 4, 16)
    model = models.EncoderDecoder(encoder, decoder)
    torch.testing.assert_close(model(X, X, None), logits)


def test_teacher_forcing_is_step_by_step():
    model = small()
    src, tgt = torch.randint(6, (3, 4)), torch.randint(5, (3, 5))
    whole = model(src, tgt)
    state = model.decoder.init_state(model.encoder(src))
    for step in range(5):
        logits, state = model.decoder(tgt[:, step : step + 1], state)
        torch.testing.assert_close(logits[:, 0], whole[:, step])


def test_the_decoder_sees_the_encoders_last_output_at_every_step():
    model = small()
    src, tgt = torch.randint(6, (2, 4)), torch.randint(5, (2, 3))
    outputs, state = model.encoder(src)
    embedded = model.decoder.embedding(tgt.T)
    inputs = torch.cat((embedded, outputs[-1].repeat(3, 1, 1)), -1)
    expected = model.decoder.dense(model.decoder.rnn(inputs, state)[0]).swapaxes(0, 1)
    torch.testing.assert_close(model(src, tgt), expected)


def test_padding_does_not_count_in_the_loss():
    logits, target = torch.randn(2, 4, 7), torch.randint(3, 7, (2, 4))
    target[0, 2:] = PADDING
    kept = torch.cat((logits[0, :2], logits[1]))
    expected = F.cross_entropy(kept, torch.cat((target[0, :2], target[1])))
    torch.testing.assert_close(masked_cross_entropy(logits, target), expected)


def test_greedy_search_is_the_argmax_fed_back():
    model = small()
    src = torch.randint(6, (4, 3))
    tokens = models.greedy_search(model, src, 6, BOS)
    assert tokens.shape == (4, 6)
    fed = torch.cat((torch.full((4, 1), BOS), tokens[:, :-1]), 1)
    assert torch.equal(model(src, fed).argmax(2), tokens)


def log_probability(model, src, tokens):
    fed = torch.tensor([[BOS, *tokens[:-1]]])
    steps = F.log_softmax(model(src, fed), 2)[0]
    return sum(steps[i, token].item() for i, token in enumerate(tokens))


def all_sentences(vocab_size, num_steps):
    """Every sentence that ends with EOS or is cut off."""
    for length in range(1, num_steps + 1):
        for words in itertools.product(range(vocab_size), repeat=length):
            if EOS not in words[:-1] and (words[-1] == EOS or length == num_steps):
                yield list(words)


@pytest.mark.parametrize("alpha", [0.0, 0.75, 2.0])
def test_a_wide_beam_finds_the_best_of_all_sentences(alpha):
    model, num_steps, vocab_size = small(4), 3, 4
    src = torch.randint(6, (3, 4))
    found = models.beam_search(model, src, num_steps, BOS, EOS, beam_size=vocab_size**num_steps, alpha=alpha)
    for sentence, hypotheses in zip(src, found, strict=True):
        scored = sorted(
            (
                (log_probability(model, sentence[None], words) / len(words) ** alpha, words)
                for words in all_sentences(vocab_size, num_steps)
            ),
            reverse=True,
        )
        for hypothesis, (score, words) in zip(hypotheses[:10], scored[:10], strict=True):
            assert hypothesis.tokens == [word for word in words if word != EOS]
            assert hypothesis.score == pytest.approx(score, abs=1e-4)


def test_a_beam_of_one_is_greedy():
    model = small(scale=8.0)
    src = torch.randint(6, (5, 4))
    greedy = models.greedy_search(model, src, 7, BOS).tolist()
    found = models.beam_search(model, src, 7, BOS, EOS, beam_size=1)
    for sentence, tokens, hypotheses in zip(src, greedy, found, strict=True):
        best = next(iter(hypotheses))
        until_end = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        assert best.tokens == until_end
        words = [*until_end, EOS] if EOS in tokens else tokens
        score = log_probability(model, sentence[None], words) / len(words) ** 0.75
        assert best.score == pytest.approx(score, abs=1e-4)


def test_beams_do_not_depend_on_their_batch():
    model = small()
    src = torch.randint(6, (4, 3))
    together = models.beam_search(model, src, 5, BOS, EOS, beam_size=3)
    for sentence, expected in zip(src, together, strict=True):
        (alone,) = models.beam_search(model, sentence[None], 5, BOS, EOS, beam_size=3)
        assert [h.tokens for h in alone] == [h.tokens for h in expected]
        assert len(alone) <= 3
        assert [h.score for h in alone] == sorted((h.score for h in alone), reverse=True)


@pytest.mark.parametrize(("beam_size", "num_steps"), [(0, 3), (2, 0)])
def test_beams_and_steps_are_positive(beam_size, num_steps):
    with pytest.raises(ValueError, match="must be positive"):
        models.beam_search(small(), torch.zeros(1, 2), num_steps, BOS, EOS, beam_size=beam_size)


class TestBleu:
    def test_the_books_example(self):
        # p1..p4 = 4/5, 3/4, 1/3, 0 for "A B B C D" against "A B C D E F".
        def score(k):
            return models.bleu("A B B C D", "A B C D E F", k)

        short = exp(1 - 6 / 5)
        assert score(1) == pytest.approx(short * (4 / 5) ** 0.5)
        assert score(2) == pytest.approx(score(1) * (3 / 4) ** 0.25)
        assert score(3) == pytest.approx(score(2) * (1 / 3) ** 0.125)
        assert score(4) == 0

    def test_ends(self):
        assert models.bleu("va !", "va !", 2) == 1
        assert models.bleu("va !", "je suis", 2) == 0
        assert models.bleu([], ["a"], 2) == 0
        # A longer prediction is not punished for its length, only by its runs.
        assert models.bleu("a b c", "a b", 1) == pytest.approx((2 / 3) ** 0.5)
        assert models.bleu("a", "a b c", 3) == pytest.approx(exp(1 - 3))
        # A word counts as often as the label has it.
        assert models.bleu("a a", "a b", 1) == pytest.approx(0.5**0.5)

    def test_tokens_and_strings_are_the_same(self):
        assert models.bleu([1, 2, 3], [1, 2, 4], 2) == models.bleu("1 2 3", "1 2 4", 2)
        assert log(models.bleu("a b", "a b c d", 1)) == pytest.approx(1 - 2)
