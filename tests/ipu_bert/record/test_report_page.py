"""The words of a report, chosen from its numbers: runs that learned or did not, static and dense ones."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from report_case import OUTCOME, RECORDS, with_heldout
from scipy.stats import entropy

from ipu_bert.record.context import Context
from ipu_bert.record.outcome import RunOutcome
from ipu_bert.record.report_numbers import Report, build_report, training_mlm_loss
from ipu_bert.record.report_page import render_page
from ipu_bert.record.verdict import Training, verdict
from ipu_bert.record.words import memory, scaled


def page_of(records: list[dict[str, Any]], outcome: RunOutcome) -> str:
    return render_page(build_report(records, outcome), {})


def said_of(report: Report, context: Context | None) -> str:
    return verdict(report.heldout.mlm_loss, report.training, context)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mlm_loss": 6.0}, "**Yes: the model reads context.**"),
        ({"mlm_loss": 6.0}, "loss is 6.000 nats, and 6.250 with other words around the same places: with its own"),
        ({"mlm_loss": 6.0}, f"{math.exp(0.25):.2f} times the probability"),
        ({"mlm_loss": 6.0}, "Word frequencies alone come to 6.500."),
        ({"mlm_loss": 6.1}, "**Not clearly: that the model reads context cannot be said.**"),
        ({"mlm_loss": 6.1}, "+0.1500 ± 0.0500, too little, or by too few batches (eval.batches)"),
        ({"mlm_loss": 6.5}, "**No: the model has NOT beaten word frequencies.**"),
        ({"mlm_loss": 7.25}, "7.250 nats, is 0.750 above the 6.500"),
        ({"mlm_loss": 7.25}, "came to 7.000, which is not clearly below word frequencies either. Train longer"),
        ({"mlm_loss": 6.5625}, "worth no more than to know which words are frequent. Small models stay near that"),
        ({"mlm_loss": 9.0}, "It is no better than before training. The last training steps came to 7.000, which is"),
        ({"mlm_loss": math.nan}, "**Unknown: there is no finite held-out loss**"),
    ],
)
def test_the_verdict_follows_the_numbers(values: dict[str, float], says: str) -> None:
    report = build_report(RECORDS, with_heldout(**values))
    said = said_of(report, report.outcome.context)
    assert says in said
    assert said in render_page(report, {})
    assert ("Yes" in said) == (values.get("mlm_loss") == 6.0)


@pytest.mark.parametrize(
    ("context", "says"),
    [
        # Below word frequencies by half a nat, and no word around was read: the quickstart was told to read context.
        (Context(6.0001, 0.00002, 6.5, 9700), "**Not yet: nothing shows that the model reads context.**"),
        (
            Context(5.99, 0.02, 6.5, 9700),
            "with other words around the same places: -0.0100 ± 0.0200. To be below word frequencies needs no word ",
        ),
        (Context(6.03, 0.005, 6.5, 9700), "**Hardly: the model gains next to nothing by context.**"),
        (Context(6.03, 0.005, 6.5, 9700), "with other words around the same places: +0.0300 ± 0.0050. Word"),
        # 0.01 and twice 0.03 may well be more than 0.05.
        (Context(6.01, 0.03, 6.5, 9700), "+0.0100 ± 0.0300, by too few batches to rule it out (eval.batches). To be"),
        (
            Context(6.001, 0.001, 6.5, 9700, 0.16),
            "said whether the model reads context: fewer than half of the words around were replaced.** Its held-out "
            "masked-LM loss is 6.000 nats, and 6.001 with other words around the same places: +0.0010 ± 0.0010, where "
            "only 16.0 % of the tokens around are others. Word frequencies alone come to 6.500.",
        ),
        (Context(6.03, 0.01, 6.5, 9700), "**Not clearly: that"),
        (
            Context(6.5, math.nan, 6.5, 9700),
            "judged by fewer than 4 batches, which do not tell how sure that is: eval.batches, and where",
        ),
    ],
)
def test_what_is_not_sure_is_not_claimed(context: Context, says: str) -> None:
    report = build_report(RECORDS, replace(OUTCOME, context=context))
    assert report.heldout.reads_context is False
    assert says in said_of(report, report.outcome.context)
    sure = replace(context, other_words_loss=6.5, other_words_error=0.1)
    assert said_of(build_report(RECORDS, OUTCOME), sure).startswith("**Yes")
    worse = build_report(RECORDS, replace(with_heldout(mlm_loss=6.75), context=context))
    assert "6.750 nats, is 0.250 above the 6.500 that" in said_of(worse, context)


def test_a_text_learned_by_heart_is_not_called_no_more_than_frequencies() -> None:
    """A run at 6.157 held out and 1.75 in training, where frequencies came to 4.770, was told to train longer."""
    said = verdict(6.157, Training(7.3, 1.75, 4.1, 40.0), Context(6.16, 0.01, 4.770, 9700))
    assert said == (
        "**No: the model has NOT beaten word frequencies.** Its held-out masked-LM loss, 6.157 nats, is 1.387 above "
        "the 4.770 that a guess by word frequency reaches. The last training steps came to 1.750: what was gained "
        "there is learned by heart, and does not carry over. More text, fewer steps or a smaller model may help."
    )


SHELF = "What it has learned so far is worth no more than to know which words are frequent. Small models stay near"
LONGER = "train longer, or check the learning rate."
BY_HEART = "what was gained there is learned by heart, and"
READS = "so the model does go by the words around"
OF_MORE = "or too short. More text may help."
UNMOVED = "It is no better than before training."
EITHER = "which is not clearly below word frequencies either."


@pytest.mark.parametrize(
    ("loss", "training", "other", "error", "says"),
    [
        # Frequencies come to 6.5: near is up to 6.7, and what is by heart below 6.3 in training.
        (6.69, Training(9.0, 6.6, 6.6, 3.0), 6.69, 0.001, [SHELF, LONGER]),
        (6.69, Training(9.0, None, 6.6, 3.0), 6.69, 0.001, [SHELF, LONGER]),
        (6.69, Training(9.0, 6.31, 6.6, 3.0), 6.69, 0.001, [SHELF, LONGER]),
        (6.69, Training(9.0, 6.29, 6.6, 3.0), 6.69, 0.001, ["came to 6.290: ", BY_HEART]),
        (6.71, Training(9.0, 6.6, 6.6, 3.0), 6.71, 0.001, ["came to 6.600, ", EITHER, LONGER]),
        (6.71, Training(9.0, 6.29, 6.6, 3.0), 6.71, 0.001, ["came to 6.290: ", BY_HEART]),
        (
            6.71,
            Training(9.0, 6.29, 6.6, 0.5),
            6.71,
            0.001,
            ["came to 6.290: what was gained there does not carry over"],
        ),
        (6.71, Training(None, None, 6.6, 3.0), 6.71, 0.001, []),
        (9.0, Training(9.0, 6.6, 6.6, 3.0), 9.0, 0.001, [UNMOVED, EITHER, LONGER]),
        (9.0, Training(9.0, None, 6.6, 3.0), 9.0, 0.001, [UNMOVED, LONGER]),
        (9.0, Training(9.0, 1.5, 6.6, 3.0), 9.0, 0.001, [UNMOVED, BY_HEART]),
        (6.6, Training(6.6, 6.6, 6.6, 3.0), 6.6, 0.001, [UNMOVED, EITHER, LONGER]),
        # What word frequencies of the training text explain is not by heart; where that is not known it may be.
        (
            6.71,
            Training(9.0, 6.29, 6.48, 3.0),
            6.71,
            0.001,
            ["came to 6.290: how often words are", "6.480 there", OF_MORE],
        ),
        (6.71, Training(9.0, 6.29, 6.48, 0.5), 6.71, 0.001, ["came to 6.290: how often words are", "6.480 there"]),
        (6.71, Training(9.0, 6.29, None, 3.0), 6.71, 0.001, [BY_HEART]),
        (8.0, Training(9.0, 6.29, 6.48, 3.0), 8.3, 0.05, [READS, "how often words are in the training text"]),
        # Other words cost 0.3: at 0.05 a standard error that is six, at 0.1 three.
        (
            6.71,
            Training(9.0, 6.6, 6.6, 3.0),
            7.01,
            0.05,
            ["It is 7.010 with other words around the same places, ", READS],
        ),
        (6.71, Training(9.0, 6.6, 6.6, 3.0), 7.01, 0.1, [EITHER, LONGER]),
        (6.69, Training(9.0, 6.6, 6.6, 3.0), 6.99, 0.1, [SHELF, LONGER]),
        (6.69, Training(9.0, 6.6, 6.6, 3.0), 6.99, math.nan, [SHELF, LONGER]),
        (8.0, Training(9.0, 2.0, 6.6, 3.0), 8.3, 0.05, [READS, "no more probability than a guess does", BY_HEART]),
        (9.5, Training(9.0, 2.0, 6.6, 3.0), 9.8, 0.05, [UNMOVED, READS, BY_HEART]),
    ],
)
def test_what_is_said_above_word_frequencies(
    loss: float, training: Training, other: float, error: float, says: list[str]
) -> None:
    said = verdict(loss, training, Context(other, error, 6.5, 9700))
    assert said.startswith("**No: the model has NOT beaten word frequencies.**")
    for words in (SHELF, BY_HEART, READS, UNMOVED, EITHER, LONGER):
        assert (words in said.replace("Train", "train")) == (words in says), words
    for words in says:
        assert words in said.replace("Train longer", "train longer")


def test_the_loss_of_the_last_training_steps() -> None:
    """A tenth of what is recorded, three at least; what is not finite left out."""
    records = [{"kind": "train", "step": k, "mlm_loss": float(k)} for k in range(1, 51)]
    assert training_mlm_loss(records) == 48.0  # 46 to 50
    assert training_mlm_loss(records[:12]) == 11.0  # 10, 11 and 12
    assert training_mlm_loss([*records[:12], {"kind": "train", "step": 13, "mlm_loss": None}]) == 11.0
    assert training_mlm_loss([*records[:2], {"kind": "eval", "step": 2, "mlm_loss": 9.0}]) == 1.5
    assert training_mlm_loss([]) is None
    assert build_report(RECORDS, OUTCOME).training_mlm_loss == 7.0


def test_without_other_losses_nothing_is_claimed() -> None:
    for context in (None, Context(math.nan, math.nan, math.nan, 0)):
        page = page_of(RECORDS, replace(OUTCOME, context=context))
        assert "it cannot be said whether that is more than counting words" in page
        assert "| masked LM (MLM) | 6.000 | not measured (word frequencies) |" in page


@pytest.mark.parametrize(
    ("loss", "judged", "learned"),
    [
        (0.6, 64, True),
        (0.6, 48, False),
        (0.68, 10**6, False),
        (0.67, 199, True),
        (0.67, 198, False),
        (0.7, 10**6, False),
    ],
)
def test_a_coin_is_not_beaten_by_luck(loss: float, judged: int, learned: bool) -> None:
    """By 8 sequences, 6 of which were alike, a model that knew no more than that was told to have learned it."""
    # (ln 2 - 0.6) x 64 = 5.97 and x 48 = 4.47, where ln 100 = 4.61; (ln 2 - 0.67) x 199 = 4.61
    report = build_report(RECORDS, replace(with_heldout(nsp_loss=loss), judged=judged))
    assert report.heldout.nsp_learned is learned


def test_languages_are_told_where_they_are_worth_something(seed: int) -> None:
    """From 0.05 nats on, the entropy of which one a document is in; rules of none, and none of its documents, are."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 50, draw.integers(1, 6)).tolist()
    for found in (counts, [100, 100], [99, 1], [991, 9], [992, 8], [100], [100, 0], [0], []):
        rules = {f"l{number}": count for number, count in enumerate(found)}
        for pairs in (True, False):
            quality = replace(OUTCOME.quality, rules=rules, pairs=pairs)
            worth = float(entropy(found)) if sum(found) else 0.0
            assert quality.which_language == pytest.approx(worth, abs=1e-12)
            page = page_of(RECORDS, replace(OUTCOME, quality=quality))
            assert ("**Its documents were taken for several languages.**" in page) == (worth > 0.05)
            assert ("many random ones are of another language" in page) == (worth > 0.05 and pairs)
    page = page_of(RECORDS, replace(OUTCOME, context=None, quality=replace(OUTCOME.quality, rules={"en": 1, "zh": 1})))
    assert "several languages" not in page


def test_the_page_of_masked_lm_alone_speaks_of_no_next_sentence() -> None:
    for pairs in (True, False):
        outcome = replace(OUTCOME, quality=replace(OUTCOME.quality, pairs=pairs))
        page = render_page(build_report(RECORDS, outcome), {"loss_curves": "loss_curves.png"})
        assert ("Below: it has learned more than a coin toss" in page) == pairs


def test_the_page_says_what_a_newcomer_needs() -> None:
    page = render_page(build_report(RECORDS, OUTCOME), {"loss_curves": "loss_curves.png"})
    for words in (
        "A BERT with 2 layers of width 256 was pre-trained for 50 steps on 400 sequences",
        "(51,200 tokens, padding counted) in 20 s.",
        "The corpus: 249 documents, 2,430,000 tokens, a vocabulary of 8,192 word pieces; 0.10 % of the tokens are "
        "[UNK], 1.25 pieces a word, 2.0 % of the documents have one sentence, sequences have room for 75.0 % of the "
        "tokens; sentences by the rules of en (247), de (2). "
        "It was prepared in 7.5 s: reading 1.0 s, vocabulary 2.0 s, "
        "tokenizing 4.0 s with 2 processes (processor time: sentences 3.0 s, pieces 2.5 s), writing 0.5 s; 12.20 MB of "
        "text, 5.10 MB of token files.",
        "block-sparse: 90.0 % of their entries do not exist, and the rest is kept in blocks of 16 x 16",
        "| masked LM (MLM) | 6.000 | 6.500 (word frequencies) | 12.5 % |",
        "| the same, other words around | 6.250 |  |  |",
        "drawn from the held-out text (87.5 % of the tokens around became others), which a model that reads no context",
        "| next sentence (NSP) | 0.600 | 0.693 (coin toss, ln 2) | 75.0 % |",
        "| executed FLOP/s | 64 MFLOP/s | 80 MFLOP/s | 40 MFLOP/s |",
        "| dense-equivalent FLOP/s | 320 MFLOP/s | 400 MFLOP/s | 200 MFLOP/s |",
        "10 MFLOP, 5.0 times as much",
        "with a word's scores at 18.5 of the 20 places for predictions of a sequence.",
        "| tokens per second, padding counted | 4,096 |",
        "makes 400 sequences/s, 12.5 times what training used.",
        "| backward pass | 40.0 % | `############` |",
        "| peak memory of the process | 3.00 GiB |",
        "2 pattern updates removed the weakest blocks (of 60) and put as many elsewhere, 42 moves",
        "over the whole run 16.0 % of a weight's positions were tried at least once, a mean over weights of any size",
        "the next one removed 40.0 % on average",
        "![Loss over training steps](loss_curves.png)",
        "sparsity.block_size = 16",
        "- cpus: 2",
    ):
        assert words in page, words
    assert "pattern_updates.png" not in page  # not drawn, not shown


def test_a_slow_stream_a_stuck_nsp_and_overfitting_are_said() -> None:
    outcome = replace(with_heldout(mlm_loss=6.4, nsp_loss=0.69), seconds={**OUTCOME.seconds, "data": 10.0})
    page = page_of(RECORDS, outcome)  # 40 sequences/s are made, 32 used
    assert "makes 40 sequences/s, 1.2 times what training used. **That is close: training may be waiting" in page
    assert "NOT moved clearly below a coin toss" in page
    assert "The held-out loss has risen since the best evaluation, 6.250 at step 30" in page


def test_a_best_checkpoint_that_is_not_of_the_lowest_loss_is_said() -> None:
    told = "`best/` is the checkpoint of step 50, not of the lowest loss, 6.250 at step 30."
    for kept in (None, 30, 50):
        report = build_report(RECORDS, replace(OUTCOME, best_checkpoint=kept))
        assert report.heldout.best_checkpoint == kept
        assert (told in render_page(report, {})) == (kept == 50)


def test_dense_and_static_runs() -> None:
    records = [r for r in RECORDS if r["kind"] != "update"]
    assert "no update changed it" in page_of(records, OUTCOME)
    dense = replace(
        OUTCOME,
        parameters=replace(OUTCOME.parameters, sparse=0, sparse_as_dense=0, encoder_dense=1100, sparse_blocks=0),
        flops=replace(OUTCOME.flops, sparse=0.0, sparse_as_dense=0.0, dense=9e6),
    )
    report = build_report(records, dense)
    assert report.pattern.density is None
    page = render_page(report, {})
    assert "All its weights are dense." in page
    assert "There is no pattern: this run is dense." in page
    assert "Every product is dense here, so both counts are 10 MFLOP per sequence." in page


def test_updates_that_moved_nothing_are_not_said_to_have_removed_blocks() -> None:
    records = [{**record, "moved": 0} if record["kind"] == "update" else record for record in RECORDS]
    page = page_of(records, OUTCOME)
    assert "2 pattern updates moved no block; the number of blocks never changes" in page


@pytest.mark.parametrize(
    ("tokens", "last", "frequencies", "because"),
    [
        (63_200, 6.04, 6.25, ", as it does when a model learns its training text by heart."),
        (63_300, 6.04, 6.25, "."),  # not gone over once
        (63_200, 6.04, 6.23, "."),  # what frequencies explain
        (63_200, 6.06, 9.0, ", and training losses are not clearly below that: check the learning rate."),
        (63_200, 6.79, 9.0, ", and training losses are not clearly below that: check the learning rate."),
        (63_300, 9.0, 9.0, ", and training losses are not clearly below that: check the learning rate."),
        (63_200, None, 9.0, "."),
    ],
)
def test_why_a_held_out_loss_has_risen(tokens: int, last: float | None, frequencies: float, because: str) -> None:
    """From 6.25 to 7.0: of text learned by heart, or of a run that diverged, which was told that it was the former.

    50 steps of 8 sequences of 128 tokens, 0.9266 of them the text's: 47,442 of the three quarters of the text that
    there is room for; so it was gone over once where it has up to 47,442 / 0.75 = 63,256.
    """
    records = [{**record, "mlm_loss": last} if record["kind"] == "train" else record for record in RECORDS]
    splits = {**OUTCOME.splits, "train": {"documents": 235, "tokens": tokens}}
    outcome = replace(with_heldout(mlm_loss=7.0), training_frequencies_loss=frequencies, splits=splits)
    told = f"The held-out loss has risen since the best evaluation, 6.250 at step 30{because}\n"
    assert told in page_of(records, outcome)


def test_blocks_at_places_just_emptied_are_not_said_to_be_elsewhere() -> None:
    allowed = deepcopy(OUTCOME)
    allowed.config.sparsity.allow_removed = True
    returned = iter((5, 4))
    records = [{**r, "returned": next(returned)} if r["kind"] == "update" else r for r in RECORDS]
    told = "put as many at places that were free or just emptied, 42 moves in all"
    assert f"{told}, 9 of them to places just emptied; the number" in page_of(records, allowed)
    assert f"{told}; the number" in page_of(RECORDS, allowed)  # an older version's records
    assert "put as many elsewhere, 42 moves in all; the number" in page_of(RECORDS, OUTCOME)


def test_where_a_pattern_that_no_update_changed_is_from() -> None:
    """A run from `model.init`, and one whose records begin after its last update, were said to be drawn at random."""
    records = [r for r in RECORDS if r["kind"] != "update"]
    part = [{"kind": "resume", "step": 40}, *(r for r in records if r["step"] > 40)]
    static, begun = deepcopy(OUTCOME), deepcopy(OUTCOME)
    static.config.sparsity.method = "static"
    begun.config.model.init = "bert-base-uncased"
    drawn = "The pattern was drawn at random at the start and no update changed it."
    given = "The pattern is the one that `model.init` and `sparsity.init_pattern` gave it at the start, and no update"
    unknown = "No update after step 40 changed the pattern; those before it are not known."
    for found, outcome, told, explored in (
        (records, OUTCOME, drawn, 0.1),
        (records, begun, given, 0.1),
        (part, OUTCOME, unknown, None),
        (part, begun, unknown, None),
        (part, static, drawn, 0.1),
    ):
        report = build_report(found, outcome)
        page = render_page(report, {})
        assert [words for words in (drawn, given, unknown) if words in page] == [told]
        assert report.pattern.explored_dof == explored


def test_a_model_of_which_some_weights_are_sparse_is_not_called_sparse() -> None:
    """With `sparsity.layers`: 75 % of "its encoder weights" were of one weight in four."""
    page = page_of(RECORDS, replace(OUTCOME, flops=replace(OUTCOME.flops, sparse_as_dense=2e6, dense=6e6)))
    assert "Of its encoder weights 25.0 %, by entries, are block-sparse: 90.0 % of their entries do not exist" in page
    assert "Its encoder weights" not in page
    assert "Its encoder weights are block-sparse: 90.0 %" in page_of(RECORDS, OUTCOME)


def test_an_update_took_its_search_too_where_growth_goes_by_the_gradient() -> None:
    assert "An update took 500 ms." in page_of(RECORDS, OUTCOME)  # 0.25 and 0.75 s
    searched = deepcopy(RECORDS)
    found = ", finding the dense gradient's largest blocks included."
    first, second = (record for record in searched if record["kind"] == "update")
    second["searched"] = 0.5  # the first record is of an older version, which left it out
    assert f"An update took 750 ms{found}" in page_of(searched, OUTCOME)
    first["searched"] = 0.125
    assert f"An update took 500 ms{found}" in page_of(searched, OUTCOME)


def test_what_an_update_moved_is_said_where_weights_live_elsewhere() -> None:
    transfers = {"bytes_down": 2000, "bytes_up": 3000, "compilations": 1}
    records = [{**r, "transfers": transfers} if r["kind"] == "update" else r for r in RECORDS]
    page = page_of(records, OUTCOME)
    assert "moved 2,000 bytes from the device and 3,000 bytes to it" in page
    assert "compiled once" in page
    assert "from the device" not in page_of(RECORDS, OUTCOME)


def test_units() -> None:
    assert [scaled(v, "B/s") for v in (None, 0.5, 999.6, 1234.0, 3.35e10, 9.999e11, 2e15)] == [
        "not measured",
        "0.5 B/s",
        "1,000 B/s",
        "1.23 kB/s",
        "33.5 GB/s",
        "1,000 GB/s",
        "2 PB/s",
    ]
    assert [memory(v) for v in (812 * 2**20, 2**30)] == ["812 MiB", "1.00 GiB"]
