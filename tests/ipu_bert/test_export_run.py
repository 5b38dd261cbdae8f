"""A run's model in Hugging Face's format, through the command a user types."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertForPreTraining

from ipu_bert import assemble, export_run
from ipu_bert.trained import load_model
from ipu_bert.trainer import Trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_transformers_loads_an_exported_run_and_agrees(tiny, tmp_path):
    config = tiny("train.stop_at=4")
    run = Trainer(config).run()
    assert export_run.main([str(run), str(tmp_path / "exported")]) == 0

    data = assemble.open_data(config, progress=False)
    batch = assemble.make_stream(config, data, "heldout").batch(0)
    theirs = BertForPreTraining.from_pretrained(tmp_path / "exported").eval()
    model = load_model(run).model
    with torch.no_grad():
        expected = theirs(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        found, nsp = model.eval()(batch.input_ids, batch.token_type_ids, batch.attention_mask, batch.masked_positions)
    rows = torch.arange(len(batch.input_ids))[:, None]
    torch.testing.assert_close(found, expected.prediction_logits[rows, batch.masked_positions], rtol=0, atol=1e-5)
    torch.testing.assert_close(nsp, expected.seq_relationship_logits, rtol=0, atol=1e-5)
    assert Tokenizer.from_file(str(tmp_path / "exported" / "tokenizer.json")).get_vocab_size() == data.vocab_size


def test_a_run_that_is_not_there_ends_in_one_line(tmp_path: Path, capsys):
    assert export_run.main([str(tmp_path / "no"), str(tmp_path / "exported")]) == 2
    assert "found none" in capsys.readouterr().err
