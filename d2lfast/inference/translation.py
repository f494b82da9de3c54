"""Translating with a trained encoder-decoder (book, 10.7 and 10.8)."""

from typing import Any

import torch

from d2lfast.data.translation import preprocess
from d2lfast.data.vocab import Vocab, truncate_pad
from d2lfast.models import beam_search, bleu

__all__ = ["BOOK_SENTENCES", "Translator", "bleu"]

# The book's four examples with their right translations.
BOOK_SENTENCES = (
    ("Go .", "va !"),
    ("I lost .", "j'ai perdu ."),
    ("He's calm .", "il est calme ."),
    ("I'm home .", "je suis chez moi ."),
)


class Translator:
    """A network with its vocabularies.

    Args:
        net: a `d2lfast.models.Seq2Seq`.
        src_vocab, tgt_vocab: the words in the order of their numbers.
        num_steps: words per sentence.
    """

    def __init__(self, net: Any, src_vocab: list[str], tgt_vocab: list[str], num_steps: int) -> None:
        self.net = net
        self.src, self.tgt = Vocab.of(src_vocab), Vocab.of(tgt_vocab)
        self.num_steps = num_steps

    def words(self, sentence: str) -> list[str]:
        """The words that the network reads.

        Raises:
            ValueError: there are none.
        """
        words = preprocess(sentence).split()
        if not words:
            raise ValueError("there is nothing to translate")
        return words

    def unknown(self, sentence: str) -> list[str]:
        """The words that the network has never seen."""
        return [word for word in self.words(sentence) if word not in self.src.token_to_idx]

    def translate(self, sentence: str, beam_size: int = 1) -> str:
        """Return the best translation that a beam of `beam_size` finds; 1 takes the best word at every step.

        Raises:
            ValueError: the sentence is empty.
        """
        padded = truncate_pad([*self.words(sentence), "<eos>"], self.num_steps, "<pad>")
        device = next(self.net.parameters()).device
        tokens = torch.tensor([self.src[padded]], device=device)
        length = torch.tensor([sum(word != "<pad>" for word in padded)], device=device)
        training = self.net.training
        self.net.eval()
        try:
            bos, eos = self.tgt["<bos>"], self.tgt["<eos>"]
            found = beam_search(self.net, tokens, self.num_steps, bos, eos, length, beam_size=beam_size)
        finally:
            self.net.train(training)
        return " ".join(self.tgt.to_tokens(found[0][0].tokens))
