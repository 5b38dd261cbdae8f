"""The examples of docs/ run, and do what they are there to show."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def test_somebody_else_s_transformer_learns_with_a_tenth_of_its_weights(capsys):
    path = EXAMPLES / "sparse_transformer.py"
    found = runpy.run_path(str(path))
    # The rule is exact: what is left of the loss is what has not been learned. Chance is log 64 = 4.16.
    assert found["losses"][-1] < 0.1 < 4 < found["losses"][0]
    sizes = [(layer.values.numel(), layer.in_features * layer.out_features) for layer in found["layers"].values()]
    assert len(sizes) == 14
    assert all(abs(kept - 0.1 * dense) <= 8 for kept, dense in sizes), "to the nearest of blocks of 16"
    assert capsys.readouterr().out.count("blocks moved") == 7
    code = [line for line in path.read_text().splitlines() if line and not line.startswith(("import", "from", '"""'))]
    assert len(code) <= 30
