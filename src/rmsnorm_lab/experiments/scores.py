"""Scores of translations: sacrebleu's, and exact match."""

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


def _bleu(tokenised: bool) -> BLEU:
    return BLEU(tokenize="none", force=True) if tokenised else BLEU()


def score(hypotheses: Sequence[str], references: Sequence[str], tokenised: bool) -> dict[str, float]:
    """ "bleu" and "chrf" of the whole set (0 to 100) and "exact", the percentage of sentences that are the reference.

    ``tokenised``: both sides have been cut into tokens already, and BLEU cuts no further.
    """
    exact = sum(ours == theirs for ours, theirs in zip(hypotheses, references, strict=True))
    return {
        "exact": 100 * exact / len(references),
        "bleu": _bleu(tokenised).corpus_score(hypotheses, [references]).score,
        "chrf": CHRF().corpus_score(hypotheses, [references]).score,
    }


def signatures(tokenised: bool) -> dict[str, str]:
    """sacrebleu's signatures of BLEU and chrF, so that others can compute them in the same way."""
    found = {}
    for name, metric in (("BLEU", _bleu(tokenised)), ("chrF", CHRF())):
        metric.corpus_score(["a"], [["a"]])  # it knows the number of references from what it has scored
        found[name] = str(metric.get_signature())
    return found
