"""A run's tokenizer as transformers' AutoTokenizer opens it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, processors

from ipu_bert.data.kept_text import KeptText
from ipu_bert.data.tokenizer import SPECIAL_TOKENS
from sparse_ops import files

_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")  # of SPECIAL_TOKENS, in this order


def save_tokenizer(text: KeptText, max_length: int, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt.

    max_length: tokens of the longest sequences that the model was trained on; longer input is truncated to it where
    truncation is asked for. tokenizer.json is the run's, byte for byte, unless it puts no [CLS] and [SEP].
    """
    tokenizer, ids = text.tokenizer(), text.special_ids()
    data = text.tokenizer_json
    if tokenizer.post_processor is None:  # of a tokenizer.json that somebody else wrote
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        data = tokenizer.to_str(pretty=True).encode()
    special = dict(zip(_ROLES, SPECIAL_TOKENS))
    config = {
        **special,
        # tokenizer.json as it stands: BertTokenizer makes rules for case and accents of its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": True,
        **_normalization(tokenizer),
    }
    files.write(folder / "tokenizer.json", data)
    files.write(folder / "tokenizer_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    files.write(folder / "special_tokens_map.json", json.dumps(special, indent=2, sort_keys=True) + "\n")
    files.write(folder / "vocab.txt", "".join(f"{piece}\n" for piece in text.vocabulary()))


def _normalization(tokenizer: Tokenizer) -> dict[str, bool | None]:
    """What whoever makes a tokenizer from vocab.txt must know; empty where it is not BERT's."""
    found = json.loads(tokenizer.to_str())["normalizer"] or {}
    if found.get("type") != "BertNormalizer":
        return {}
    return {
        "do_lower_case": found["lowercase"],
        "strip_accents": found["strip_accents"],
        "tokenize_chinese_chars": found["handle_chinese_chars"],
    }
