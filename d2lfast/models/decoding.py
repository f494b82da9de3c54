"""Writing translations: greedy search and beam search (book, 10.8), and their score (BLEU; book, 10.7)."""

from collections import Counter
from collections.abc import Sequence
from math import exp
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from d2lfast.models.translation import EncoderDecoder


@torch.no_grad()
def greedy_search(model: EncoderDecoder, src: Tensor, num_steps: int, bos: int, *args: Any) -> Tensor:
    """Take the most probable token at every step.

    Args:
        model: in evaluation mode, as dropout would disturb it.
        src: tokens [N, T].
        num_steps: tokens to write.
        bos: the token that begins a sentence.
        args: handed to the encoder and to `init_state`.

    Returns:
        Tokens [N, num_steps], without `bos`.
    """
    state = model.decoder.init_state(model.encoder(src, *args), *args)
    token = torch.full((len(src), 1), bos, dtype=torch.long, device=src.device)
    written = []
    for _ in range(num_steps):
        logits, state = model.decoder(token, state)
        token = logits.argmax(2)
        written.append(token)
    return torch.cat(written, 1)


class Hypothesis(NamedTuple):
    """A translation: its tokens, without the ends, and its score, log P / length ** alpha."""

    tokens: list[int]
    score: float


@torch.no_grad()
def beam_search(
    model: EncoderDecoder,
    src: Tensor,
    num_steps: int,
    bos: int,
    eos: int,
    *args: Any,
    beam_size: int = 2,
    alpha: float = 0.75,
) -> list[list[Hypothesis]]:
    """Keep the `beam_size` most probable beginnings at every step.

    Args:
        model, src, num_steps, bos, args: as for `greedy_search`.
        eos: the token that ends a sentence.
        beam_size: of each sentence; 1 is greedy search.
        alpha: how much longer sentences are favoured.

    Returns:
        For each sentence its finished or cut off hypotheses, at most `beam_size`, best first. The token `eos`
        counts in P and in the length.

    Raises:
        ValueError: `beam_size` or `num_steps` is less than one.
    """
    if beam_size < 1 or num_steps < 1:
        raise ValueError(f"beam_size and num_steps must be positive, but got {beam_size} and {num_steps}")
    batch = len(src)
    state = model.decoder.init_state(model.encoder(src, *args), *args)
    rows = torch.arange(batch, device=src.device).repeat_interleave(beam_size)
    state = model.decoder.select_state(state, rows)
    first = rows.view(batch, beam_size)[:, :1] * beam_size
    token = torch.full((batch * beam_size, 1), bos, dtype=torch.long, device=src.device)
    # At first all beams of a sentence are the same: only one of them counts.
    scores = torch.full((batch, beam_size), -torch.inf, device=src.device)
    scores[:, 0] = 0.0
    written = token[:, :0]
    finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
    for length in range(1, num_steps + 1):
        logits, state = model.decoder(token, state)
        steps = F.log_softmax(logits[:, -1], 1).view(batch, beam_size, -1)
        vocab_size = steps.shape[2]
        # Twice as many candidates: even if half of them end, enough go on.
        count = min(2 * beam_size, beam_size * vocab_size)
        values, flat = (scores[:, :, None] + steps).flatten(1).topk(count, 1)
        tokens = flat % vocab_size
        origins = first + flat // vocab_size
        ends = tokens == eos
        for sentence, place in torch.nonzero(ends[:, :beam_size] & values[:, :beam_size].isfinite()).tolist():
            row = written[origins[sentence, place]].tolist()
            finished[sentence].append(Hypothesis(row, values[sentence, place].item() / length**alpha))
        scores, chosen = values.masked_fill(ends, -torch.inf).topk(min(beam_size, count), 1)
        origin = origins.gather(1, chosen).flatten()
        token = tokens.gather(1, chosen).view(-1, 1)
        written = torch.cat((written[origin], token), 1)
        state = model.decoder.select_state(state, origin)
    for sentence, (beams, values) in enumerate(zip(written.view(batch, -1, num_steps), scores, strict=True)):
        for beam, value in zip(beams.tolist(), values.tolist(), strict=True):
            if value > -torch.inf:
                finished[sentence].append(Hypothesis(beam, value / num_steps**alpha))
    return [sorted(found, key=lambda h: -h.score)[:beam_size] for found in finished]


def bleu(pred_seq: str | Sequence[Any], label_seq: str | Sequence[Any], k: int) -> float:
    """Score a translation against the right one: 1 if they agree, 0 if they share no word (Papineni, 2002).

    Args:
        pred_seq, label_seq: tokens, or a string of them with spaces between.
        k: longest run of tokens that is compared.

    Returns:
        exp(min(0, 1 - len_label / len_pred)) times the product of p_n ** (1 / 2 ** n), n = 1..k, where p_n is
        the share of the prediction's runs of n tokens that the label has too.
    """
    pred, label = (seq.split(" ") if isinstance(seq, str) else list(seq) for seq in (pred_seq, label_seq))
    if not pred:
        return 0.0
    score = exp(min(0.0, 1 - len(label) / len(pred)))
    for n in range(1, min(k, len(pred)) + 1):
        wanted = _runs(label, n)
        matches = sum((_runs(pred, n) & wanted).values())
        score *= (matches / (len(pred) - n + 1)) ** 0.5**n
    return score


def _runs(tokens: Sequence[Any], n: int) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
