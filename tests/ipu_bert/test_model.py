"""The model against transformers' BertForPreTraining, and the sparse model against the dense one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from compiler import HAS_KERNELS
from small_models import dense_model, family_shape, make_peer, make_shape, make_weights, sparse_model
from torch import Tensor, nn
from transformers import BertForPreTraining as Peer

from ipu_bert.model import (
    BertForPreTraining,
    dense_linear,
    pretraining_losses,
    sparse_layers,
    sparse_linear,
    truncated_normal_,
)
from ipu_bert.sizes.shape import FAMILY, BertShape
from sparse_ops.dense import DenseLinear
from sparse_ops.pattern import named_generator

SHAPE = make_shape(layers=3, hidden_size=48, heads=3, intermediate_size=128, vocab_size=211, max_positions=40)
BATCH, LENGTH, MASKED = 5, 32, 6


def random_batch(seed: int, shape: BertShape = SHAPE) -> tuple[Tensor, ...]:
    """ids, types, mask, masked positions, labels (some -100), next-sentence labels; random padding at the end."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(MASKED, LENGTH + 1, (BATCH,), generator=g)
    lengths[0] = LENGTH
    mask = torch.arange(LENGTH)[None] < lengths[:, None]
    ids = torch.randint(shape.vocab_size, (BATCH, LENGTH), generator=g) * mask
    types = (torch.arange(LENGTH)[None] > lengths[:, None] // 2).long()
    positions = torch.stack([torch.randperm(int(n), generator=g)[:MASKED].sort().values for n in lengths])
    labels = torch.randint(shape.vocab_size, (BATCH, MASKED), generator=g)
    labels[1, MASKED // 2 :] = -100
    labels[2, -1] = -100
    positions = positions.masked_fill(labels == -100, 0)
    return ids, types, mask, positions, labels, torch.randint(2, (BATCH,), generator=g)


def randomise(model: nn.Module, seed: int) -> None:
    """Values everywhere, biases and LayerNorm too, large enough that every path matters."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.1 + (1.0 if name.endswith("LayerNorm.weight") else 0.0))


def mean_loss(model: BertForPreTraining, batch: tuple[Tensor, ...]) -> Tensor:
    ids, types, mask, positions, labels, following = batch
    losses = pretraining_losses(*model(ids, types, mask, positions), labels, following)
    return losses.mlm_sum / losses.mlm_count + losses.nsp_sum / len(following)


def peer_loss(peer: Peer, batch: tuple[Tensor, ...]) -> Tensor:
    ids, types, mask, positions, labels, following = batch
    everywhere = torch.full_like(ids, -100)
    for row, (where, label) in enumerate(zip(positions, labels)):
        everywhere[row, where[label != -100]] = label[label != -100]
    return peer(
        input_ids=ids,
        token_type_ids=types,
        attention_mask=mask.long(),
        labels=everywhere,
        next_sentence_label=following,
    ).loss


def copy_by_hand(model: BertForPreTraining, peer: Peer) -> None:
    """The name map written out once here, apart from export.py."""
    theirs = dict(peer.named_parameters())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".qkv." in name:
                parts = [theirs[name.replace("qkv", part)] for part in ("query", "key", "value")]
                p.copy_(torch.cat(parts))
            else:
                p.copy_(theirs[name])


# Rounding: forward and back a gradient passes about 12 products a layer, each off by about one eps of its
# largest term and in a random direction: sqrt(12 * 3 layers) = 6 eps of the largest gradient (5.4 seen over
# 25 seeds). A mistake in the mathematics shows at 1e-3 or above, so 100 eps is allowed.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_every_gradient_equal_transformers(dtype: torch.dtype, seed: int) -> None:
    peer = make_peer(SHAPE).to(dtype).eval()
    randomise(peer, seed)
    model = dense_model(SHAPE).to(dtype).eval()
    copy_by_hand(model, peer)
    batch = random_batch(seed)
    loss, expected = mean_loss(model, batch), peer_loss(peer, batch)
    eps = torch.finfo(dtype).eps
    assert loss.item() == pytest.approx(expected.item(), rel=20 * eps)
    loss.backward()
    expected.backward()
    theirs = {name: p.grad for name, p in peer.named_parameters()}
    seen = set()
    for name, p in model.named_parameters():
        parts = [name.replace("qkv", part) for part in ("query", "key", "value")] if "qkv" in name else [name]
        seen.update(parts)
        want = torch.cat([theirs[part] for part in parts])
        # The key bias has no gradient but rounding (softmax is invariant to it): the scale is that of the whole weight.
        torch.testing.assert_close(p.grad, want, rtol=0, atol=100 * eps * want.abs().max().item(), msg=name)
        assert want.abs().max() > 1e-4, name
    assert seen == set(theirs)


def test_logits_at_masked_positions_equal_transformers(seed: int) -> None:
    peer = make_peer(SHAPE).double().eval()
    randomise(peer, seed)
    model = dense_model(SHAPE).double().eval()
    copy_by_hand(model, peer)
    ids, types, mask, positions, _, _ = random_batch(seed)
    mlm, nsp = model(ids, types, mask, positions)
    theirs = peer(input_ids=ids, token_type_ids=types, attention_mask=mask.long())
    want = torch.stack([logits[where] for logits, where in zip(theirs.prediction_logits, positions)])
    assert mlm.shape == (BATCH, MASKED, SHAPE.vocab_size)
    torch.testing.assert_close(mlm, want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(nsp, theirs.seq_relationship_logits, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("block", [1, 4, 16])
def test_sparse_model_equals_dense_model_with_masked_weights(block: int, seed: int) -> None:
    which = ["*.attention.*", "*.?.output.dense", "*.[02].intermediate.dense"]  # one feed-forward weight stays dense
    sparse = sparse_model(SHAPE, 0.7, block, seed, which).double()
    randomise(sparse, seed)
    dense = dense_model(SHAPE).double()
    layers = dict(sparse_layers(sparse))
    names = {weight.name for weight in make_weights(SHAPE, 0.7, block)}
    assert set(layers) == names - {"bert.encoder.layer.1.intermediate.dense"}
    state = {n: p.detach() for n, p in sparse.named_parameters() if not n.endswith(".values")}
    state.update({f"{name}.weight": layer.to_dense() for name, layer in layers.items()})
    dense.load_state_dict(state)
    batch = random_batch(seed)
    loss, expected = mean_loss(sparse, batch), mean_loss(dense, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-13)
    loss.backward()
    expected.backward()
    want = {n: p.grad for n, p in dense.named_parameters()}
    for name, p in sparse.named_parameters():
        if name.endswith(".values"):
            layer = layers[name[: -len(".values")]]
            grid = want[name.replace(".values", ".weight")].reshape(
                layer.out_features // block, block, layer.in_features // block, block
            )
            picked = torch.stack([grid[r, :, c] for r, c in zip(layer.rows.tolist(), layer.cols.tolist())])
            torch.testing.assert_close(p.grad, picked, rtol=1e-9, atol=1e-13, msg=name)
        else:
            torch.testing.assert_close(p.grad, want[name], rtol=1e-9, atol=1e-13, msg=name)


def test_decoder_is_the_word_embedding() -> None:
    model = dense_model(SHAPE)
    names = [name for name, _ in model.named_parameters()]
    assert not any("decoder" in name for name in names)
    assert "cls.predictions.bias" in names
    ids, types, mask, positions, labels, _ = random_batch(0)
    mlm, _ = model(ids, types, mask, positions)
    torch.nn.functional.cross_entropy(mlm.flatten(0, 1), labels.flatten()).backward()
    gradient = model.bert.embeddings.word_embeddings.weight.grad
    unseen = sorted(set(range(SHAPE.vocab_size)) - set(ids.flatten().tolist()))
    assert bool((gradient[unseen].abs().sum(1) > 0).all()), "the decoder's gradient must reach every word"


def test_patterns_and_weights_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    one = sparse_model(SHAPE, 0.5, 4, seed=7)
    torch.manual_seed(2)
    two = sparse_model(SHAPE, 0.5, 4, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    # A shorter model shares its first layers, so nothing depends on the order of construction.
    short = sparse_model(replace(SHAPE, layers=1), 0.5, 4, seed=7).state_dict()
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in short.items())
    other = sparse_model(SHAPE, 0.5, 4, seed=8)
    checksums = [layer.pattern.checksum() for _, layer in sparse_layers(one)]
    assert all(a != layer.pattern.checksum() for a, (_, layer) in zip(checksums, sparse_layers(other)))
    # Layers of one shape do not share a pattern.
    assert len(set(checksums)) == len(checksums)
    # sha256 of "7/x" begins 0x..: the seed is a plain function that anyone can recompute.
    assert named_generator(7, "x").initial_seed() == named_generator(7, "x").initial_seed() < 2**32


def test_qkv_has_the_same_block_count_in_each_segment() -> None:
    _, layer = sparse_layers(sparse_model(SHAPE, 0.9, 4, seed=3))[0]
    assert (layer.out_features, layer.in_features, layer.segments) == (144, 48, 3)
    # 12 x 12 positions a segment, a tenth of them: 14.4 blocks.
    assert torch.bincount(layer.rows.long() // 12).tolist() == [14, 14, 14]


def test_initial_values_are_a_truncated_normal_and_biases_zero() -> None:
    sizes = {"layers": 2, "hidden_size": 128, "intermediate_size": 512, "vocab_size": 1000, "max_positions": 64}
    model = sparse_model(make_shape(**sizes), 0.9, 16, seed=5)
    # Standard deviation of a standard normal cut at +-2: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)) = 0.8796.
    cut = math.sqrt(1 - 4 * math.exp(-2.0) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2.0)))
    assert cut == pytest.approx(0.8796, abs=1e-4)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif "LayerNorm" in name:
            assert bool((p == 1).all()), name
        else:
            assert p.abs().max() <= 0.04, name
            # The sample's standard deviation is off by about std / sqrt(2 n); 5 of them are allowed.
            assert p.std().item() == pytest.approx(0.02 * cut, rel=5 / math.sqrt(2 * p.numel())), name
            assert abs(p.mean().item()) < 5 * 0.02 / math.sqrt(p.numel()), name


def test_truncated_normal_has_the_right_shape() -> None:
    draw = truncated_normal_(torch.empty(200_000), 1.0, named_generator(0, "shape"))
    phi = lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))  # noqa: E731
    for x in (-1.5, -0.5, 0.0, 1.0, 1.9):
        expected = (phi(x) - phi(-2)) / (phi(2) - phi(-2))
        assert (draw < x).float().mean().item() == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("size", sorted(FAMILY))
def test_parameter_counts_of_the_family_equal_transformers(size: str) -> None:
    shape = family_shape(FAMILY[size])
    with torch.device("meta"):
        peer = make_peer(shape)
        encoder = [dense_linear(w.name, w.shape[1], w.shape[0], w.segments) for w in make_weights(shape, 0.0)]
    ours = sum(p.numel() for m in encoder for p in m.parameters())
    theirs = {n: p.numel() for n, p in peer.named_parameters()}
    fc = sum(count for n, count in theirs.items() if "encoder" in n and "LayerNorm" not in n)
    assert ours == fc
    if size in ("tiny", "mini"):
        assert sum(p.numel() for p in dense_model(shape).parameters()) == sum(theirs.values())


def test_dropout_acts_in_training_only(seed: int) -> None:
    model = dense_model(replace(SHAPE, dropout=0.1, attention_dropout=0.1))
    batch = random_batch(seed)
    assert mean_loss(model, batch) != mean_loss(model, batch)
    model.eval()
    assert mean_loss(model, batch) == mean_loss(model, batch)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_attention_of_our_own_changes_nothing_but_rounding(sparsity: float, seed: int) -> None:
    """Against the same model with torch's, which gives the bounds above a second time."""
    found = []
    for kernel in ("native", "torch"):
        model = sparse_model(SHAPE, sparsity, 16) if sparsity else dense_model(SHAPE)
        randomise(model, seed)
        for layer in model.bert.encoder.layer:
            layer.attention.self.kernel = kernel
        batch = random_batch(seed)
        logits = model(*batch[:4])
        mean_loss(model, batch).backward()
        found.append((logits, [p.grad for p in model.parameters()]))
    ((ours, our_gradients), (theirs, their_gradients)) = found
    eps = torch.finfo(torch.float32).eps
    for a, b in zip([*ours, *our_gradients], [*theirs, *their_gradients]):
        torch.testing.assert_close(a, b, rtol=0, atol=100 * eps * b.abs().max().item())
    if HAS_KERNELS:
        assert any(not torch.equal(a, b) for a, b in zip(our_gradients, their_gradients))  # two ways to compute it


def test_dropout_of_attention_follows_from_torch_s_generator(seed: int) -> None:
    model = dense_model(replace(SHAPE, attention_dropout=0.3))
    losses = []
    for start in (seed, seed, seed + 1):
        torch.manual_seed(start)
        losses.append(mean_loss(model, random_batch(0)))
    assert losses[0] == losses[1] != losses[2]


def test_each_id_learns_from_being_looked_up_but_where_it_is_padding() -> None:
    """Also the first one, which is [PAD] in BERT's vocabulary and a word in others."""
    model = dense_model(SHAPE)
    ids, types, mask, positions, _, following = random_batch(0)
    ids, padding = ids.clamp(max=SHAPE.vocab_size - 2), SHAPE.vocab_size - 1
    ids[:, 1] = 0
    _, nsp = model(ids.where(mask, torch.tensor(padding)), types, mask, positions)
    torch.nn.functional.cross_entropy(nsp, following).backward()  # no decoder in it
    learns = model.bert.embeddings.word_embeddings.weight.grad.any(1)
    assert sorted(set(ids[mask].tolist())) == learns.nonzero().flatten().tolist()


def test_padding_changes_nothing(seed: int) -> None:
    model = dense_model(SHAPE).double()
    ids, types, mask, positions, _, _ = random_batch(seed)
    other = torch.where(mask, ids, (ids + 17) % SHAPE.vocab_size)
    for a, b in zip(model(ids, types, mask, positions), model(other, types, mask, positions)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_micro_batches_add_up_to_the_step(seed: int) -> None:
    model = dense_model(SHAPE).double()
    batch = random_batch(seed)
    whole = pretraining_losses(*model(*batch[:4]), *batch[4:])
    parts = []
    for piece in zip(*(torch.split(tensor, 2) for tensor in batch)):
        parts.append([loss.item() for loss in pretraining_losses(*model(*piece[:4]), *piece[4:])])
    for k in range(3):
        assert sum(part[k] for part in parts) == pytest.approx(whole[k].item(), rel=1e-13)
    assert whole.mlm_count == BATCH * MASKED - MASKED // 2 - 1


def test_losses_by_hand() -> None:
    mlm = torch.tensor([[[0.0, math.log(3.0)], [5.0, 1.0]]])
    nsp = torch.tensor([[math.log(4.0), 0.0]], dtype=torch.bfloat16)
    losses = pretraining_losses(mlm, nsp, torch.tensor([[1, -100]]), torch.tensor([0]))
    assert losses.mlm_sum.item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert losses.mlm_count.item() == 1
    assert losses.nsp_sum.dtype == torch.float32
    assert losses.nsp_sum.item() == pytest.approx(math.log(5 / 4), rel=1e-2)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"layers must be at least 1, found 0; hidden_size must be a multiple"):
        make_shape(layers=0, hidden_size=50, heads=3)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), found 1.0"):
        make_shape(dropout=1.0)
    name = "bert.encoder.layer.0.attention.self.qkv"
    with pytest.raises(ValueError, match=f"{name}: .*expected rows in a multiple of 3"):
        make_weights(make_shape(hidden_size=40), 0.9)
    with pytest.raises(ValueError, match=f"{name}: sparsity 0.99 leaves no 16x16 block"):
        make_weights(SHAPE, 0.99)
    ids = torch.ones(1, 41, dtype=torch.int64)
    with pytest.raises(ValueError, match="at most the model's 40 positions, found 41"):
        dense_model(SHAPE)(ids, ids, ids, ids[:, :1])


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_every_large_dense_product_goes_by_the_kernel_that_is_set(kernel):
    """The four weights of a layer, and the head's two."""
    weights = make_weights(SHAPE, sparsity=0.0)
    model = BertForPreTraining(SHAPE, sparse_linear(weights, 0, kernel), seed=0, kernel=kernel)
    found = {name: module.kernel for name, module in model.named_modules() if isinstance(module, DenseLinear)}
    assert set(found.values()) == {kernel}
    assert len(found) == 4 * SHAPE.layers + 1
    assert model.cls.predictions.kernel == kernel
