"""The configs in configs/: the paper's settings, and nothing in them that would hold without them."""

from __future__ import annotations

import pytest
import yaml
from config_files import flat

from ipu_bert import assemble
from ipu_bert.config import CONFIG_DIR, load_config
from ipu_bert.config.build import build
from ipu_bert.config.written import Written, read

PATHS = sorted(CONFIG_DIR.glob("*.yaml"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_config_in_the_folder_is_valid_and_fits_together(path):
    config = load_config(path.stem)
    assert (config.gave_way, config.no_effect) == ([], [])


def values(written: Written) -> dict[str, object]:
    errors: list[str] = []
    config = build(written.tree, errors)
    assert errors == []
    return flat(config)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_config_says_only_what_differs_from_its_base_and_the_defaults(path):
    tree = yaml.safe_load(path.read_text())
    base = tree.pop("base", None)
    below = values(read(CONFIG_DIR / f"{base}.yaml") if base else Written({}, {}))
    mine = values(read(path))
    assert [f"{s}.{k}" for s in tree for k in tree[s] if mine[f"{s}.{k}"] == below[f"{s}.{k}"]] == []


@pytest.mark.parametrize(
    ("size", "layers", "hidden", "heads", "dropout"),
    [
        ("tiny", 2, 128, 2, 0),
        ("mini", 4, 256, 4, 0),
        ("small", 4, 512, 8, 0),
        ("medium", 8, 512, 8, 0.1),
        ("base", 12, 768, 12, 0.1),
    ],
)
@pytest.mark.parametrize("method", ["dense", "static", "dynsparse"])
def test_the_family_has_the_papers_settings(size, layers, hidden, heads, dropout, method):
    config = load_config(f"bert_{size}_{method}")
    model, optim = config.model, config.optim
    assert (model.layers, model.hidden_size, model.heads, model.intermediate_size) == (
        layers,
        hidden,
        heads,
        4 * hidden,
    )
    assert model.dropout == model.attention_dropout == dropout
    assert config.sparsity.method == method
    assert (config.train.steps, config.train.batch_size, optim.warmup_steps) == (757000, 512, 10000)
    assert (optim.weight_decay, optim.beta1, optim.beta2, optim.eps) == (0.01, 0.9, 0.999, 1e-6)
    assert config.precision.loss_scale == 512
    if method != "dense":
        assert (config.sparsity.sparsity, config.sparsity.block_size) == (0.9, 16)
    if method == "dynsparse":
        assert (config.sparsity.updates, config.sparsity.pruning_ratio) == (80, 0.5)
        unstructured = load_config(f"bert_{size}_dynsparse_1x1").sparsity
        assert (unstructured.block_size, unstructured.updates, unstructured.pruning_ratio) == (1, 160, 0.5)


@pytest.mark.parametrize("pod", [4, 16, 64])
@pytest.mark.parametrize("name", ["base_dynsparse", "base_dense", "medium_dynsparse", "medium_dense"])
def test_pods_have_the_loss_scale_of_graphcores_bert(name, pod):
    config = load_config(f"bert_{name}_pod{pod}")
    assert (config.precision.compute, config.precision.loss_scale) == ("float16", 16384)
    assert not config.ipu.automatic_loss_scale


def test_auto_learning_rate_is_equation_3():
    """Medium: eta(0) = 2e-4, and exp(1.969 * 0.81 + 0.2905 * 0.9) = 6.4004."""
    assert assemble.learning_rate(load_config("bert_medium_dense")) == 2e-4
    assert assemble.learning_rate(load_config("bert_medium_dynsparse")) == pytest.approx(2e-4 * 6.4004, rel=1e-4)
    given = load_config("bert_medium_dynsparse", ["optim.dense_lr=1e-3"])
    assert assemble.learning_rate(given) == pytest.approx(6.4004e-3, rel=1e-4)
    assert assemble.learning_rate(load_config("bert_medium_dynsparse", ["optim.lr=3e-4"])) == 3e-4
