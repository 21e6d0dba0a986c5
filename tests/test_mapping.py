"Mappings between label spaces: against tables that were written down once more, and by hand on random masks."

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image

import known
from selftrain_nb.labels import VOID, LabelSpace, Remap
from selftrain_nb.losses import soft_targets
from selftrain_nb.mapping import *
from selftrain_nb.public import CITYSCAPES
from selftrain_nb.reading import Item, ReadConfidence
from selftrain_nb.table import SegTable

def test_both_classes_of_a_soft_label_are_mapped(tmp_path):
    "The second class, and where mapping makes the two classes one or sends the second to void"
    Image.new('RGB', (4, 4)).save(tmp_path/'im.png')
    Image.new('L', (4, 4), 0).save(tmp_path/'l.png')  # a
    Image.new('RGB', (4, 4), (180, 1, 40)).save(tmp_path/'c.png')  # b is second
    source, target = LabelSpace('ab'), LabelSpace(['b', 'c', 'a'])
    pseudo = SegTable.make([tmp_path/'im.png'], [tmp_path/'l.png'], source, kind='pseudo', conf=[tmp_path/'c.png'])
    for to, want in (({'a': 'a', 'b': 'b'}, (40, 35, 180)), ({'a': 'a', 'b': 'a'}, (17.5, 17.5, 220)),
                     ({'a': 'a', 'b': None}, (0, 75, 180))):
        new = [k for k in target.names if k not in to.values()]
        table = Mapping(source, target, to, new)(pseudo)
        soft = np.asarray(ReadConfidence('soft')(Item(table, 0, 0, 'soft')))
        mask, soft = torch.tensor(table.mask(0))[None], torch.tensor(soft).permute(2, 0, 1)[None]
        found = 255 * soft_targets(mask.long(), soft, 3)[0, :, 0, 0]
        assert found.sum() == pytest.approx(255, abs=.1), to
        assert found.tolist() == pytest.approx(want, abs=.1), to


SHIPPED = dict(CITYSCAPES_TO_CAMVID=CITYSCAPES_TO_CAMVID, CAMVID_TO_CITYSCAPES=CAMVID_TO_CITYSCAPES,
               CAMVID_TO_IDD_LITE=CAMVID_TO_IDD_LITE, IDD_LITE_TO_CAMVID=IDD_LITE_TO_CAMVID, CITY_A_TO_B=CITY_A_TO_B,
               CITY_B_TO_A=CITY_B_TO_A)

@pytest.mark.parametrize('name', SHIPPED)
def test_there_and_back(name):
    m = SHIPPED[name]
    reached = [b for b in m.to.values() if b]
    if len(set(reached)) < len(reached):
        with pytest.raises(ValueError, match='no inverse'): m.inverse()
        return
    assert m.inverse().inverse() == m
    assert all(m.inverse().lut[b] == a for a, b in enumerate(m.lut) if b != VOID)

@pytest.mark.parametrize('name', [n for n in SHIPPED if 'CITY_' not in n])
def test_what_becomes_of_each_class(name): assert SHIPPED[name].to == getattr(known, name)

def test_vistas_in_the_classes_of_cityscapes():
    one = LabelSpace([n for n in known.VISTAS_66 if n != 'void--unlabeled'], name='mapillary')
    m = mapillary_to_cityscapes(one)
    assert m.to == known.VISTAS_TO_CITYSCAPES and m.new == ()
    assert CITYSCAPES.names[m.lut[one.index('construction--flat--road')]] == 'road'
    with pytest.raises(ValueError, match=r"which mapillary\(path, '1.2'\) reads"):
        mapillary_to_cityscapes(LabelSpace(known.VISTAS_124))

@st.composite
def mappings(draw):
    a, b = (LabelSpace([f'{x}{i}' for i in range(draw(st.integers(1, 8)))]) for x in 'ab')
    pairs = {n: draw(st.sampled_from([None, *b.names])) for n in a.names}
    return Mapping(a, b, pairs, [n for n in b.names if n not in pairs.values()])

@settings(max_examples=100, deadline=None)
@given(mappings(), st.integers(0, 1000))
def test_mapped_masks_by_hand(m, seed):
    ids = np.random.default_rng(seed).choice([*range(len(m.source)), VOID], (5, 6))
    def by_hand(i):
        b = None if i == VOID else m.to[m.source.names[i]]
        return VOID if b is None else m.target.index(b)
    assert (m.lut[ids] == [[by_hand(i) for i in row] for row in ids]).all()
    assert m.then(Mapping(m.target, m.target, {n: n for n in m.target.names})) == m
    assert len(m.table()) == len(m.source) + len(m.new)

@settings(max_examples=60, deadline=None)
@given(mappings(), st.data())
def test_a_hole_is_named(m, data):
    lost = data.draw(st.sampled_from(m.source.names))
    with pytest.raises(ValueError, match=f'without a place.*{lost}|that nothing becomes'):
        Mapping(m.source, m.target, {k: v for k, v in m.to.items() if k != lost}, m.new)

def test_mappings_that_do_not_meet():
    with pytest.raises(ValueError, match='cannot be followed by one from'): CITY_A_TO_B.then(CAMVID_TO_IDD_LITE)
    assert CITY_A_TO_B != CITY_B_TO_A and CITY_A_TO_B.then(CITY_B_TO_A).new == ()

def test_mapped_tables_of_pseudo_labels(tmp_path):
    "Thresholds by class go along; of several classes that become one, the strictest counts"
    Image.new('RGB', (8, 4)).save(tmp_path/'a.png')
    for name, i in (('l', 1), ('c', 128)): Image.fromarray(np.full((4, 8), i, np.uint8)).save(tmp_path/f'{name}.png')
    t = SegTable.make([tmp_path/'a.png'], [tmp_path/'l.png'], LabelSpace(['x', 'y', 'z']),
                      Remap.identity(3, min_conf=[0., .4, .6]), kind='pseudo', conf=str(tmp_path/'c.png'))
    m = Mapping(t.space, LabelSpace(['u', 'v']), dict(x='u', y='v', z='v'))
    assert t.mask(0).max() == 1 and m(t).mask(0).max() == VOID
    assert m(t).remaps['ids'].min_conf == [0., .6]
    with pytest.raises(ValueError, match='the table is in'): CITY_A_TO_B(t)

def test_colour_masks_and_ids_above_255_are_mapped(tmp_path):
    Image.new('RGB', (2, 1)).save(tmp_path/'a.png')
    Image.fromarray(np.uint8([[[9, 9, 9], [1, 2, 3]]])).save(tmp_path/'l.png')
    remap = Remap({0: 0, 1000: 1}, {(9, 9, 9): 0, (1, 2, 3): 1})
    t = SegTable.make([tmp_path/'a.png'], [tmp_path/'l.png'], LabelSpace(['x', 'y']), remap)
    m = Mapping(t.space, LabelSpace(['u']), dict(x=None, y='u'))
    assert m(t).mask(0).tolist() == [[VOID, 0]] and m(t).remaps['ids'].ids == {0: VOID, 1000: 0}
