"A network taken to another city: stops, mappings of several classes to one, and what each row is given to learn from."
import numpy as np, pytest, torch

import children
from children import assert_same
from selftrain_nb.all import *

TINY = dict(encoder='test_byobnet', n=8, bs=2, crop=(32, 32), progress=False)


@pytest.fixture(scope='module')
def cities(tmp_path_factory):
    home = tmp_path_factory.mktemp('cities')
    for c in 'AB': scenes(n=8, n_val=2, n_test=0, size=(32, 64), city=c, path=home/c).save(home/f'{c}.csv')
    return home

def table(home, c): return SegTable.load(home/f'{c}.csv')

def move(home, out, **how):
    transfer(table(home, 'A'), table(home, 'B'), CITY_A_TO_B, out, target_labels=4, **{'epochs': (2, 1, 1), **TINY, **how})

def stopped(n, home, out):
    from test_resume import stopping
    stopping(n, move, home, out)

@pytest.mark.filterwarnings('ignore:no real label')
def test_a_stop_at_any_moment(cities, tmp_path):
    children.run(move, cities, tmp_path/'once')
    kills = [children.killed_by_itself(stopped, n, cities, tmp_path/'out') for n in (3, 9, 14, 20, 6)]
    assert sum(kills) >= 4
    children.run(move, cities, tmp_path/'out')
    assert_same(tmp_path/'out', tmp_path/'once')
    t = Transfer(tmp_path/'once')
    r = t.results.set_index('row')
    assert list(r.index) == list(TRANSFER_ROWS) and t.done == list(TRANSFER_ROWS)
    assert (r.n_real.drop(['source', 'all']) == 4).all() and r.n_real['all'] == 8
    assert dict(r.n_pseudo.drop('source')) == dict(scratch=0, finetune=0, centroids=0, joint=8, student=8 + 4, control=8, all=0)  # the source's labels, and pseudo labels
    assert r.steps['all'] == r.steps['finetune'] + r.steps['control'] and r.steps['student'] == r.steps['control']
    assert r.miou_new['source'] == 0
    page = report(t).read_text(encoding='utf-8')
    assert page.count(' new</span>') == 2 and 'fence' in page and all(f'href="{r}/report.html"' in page and (t.path/r/'report.html').exists() for r in ('scratch', 'finetune', 'centroids', 'joint', 'all'))
    assert 'given labels' in (t.path/'joint/report.html').read_text(encoding='utf-8')
    assert t.telling(1).df.group.isin(table(cities, 'B').val.df.group).all()
    for row in TRANSFER_ROWS:
        m = t.metrics(row)['splits']['val']
        assert r.miou[row] == pytest.approx(100 * evaluate(t.predictor(row), table(cities, 'B').val).miou, abs=.01)
        known = [100 * v for k, v in m['iou'].items() if v is not None and k not in ('fence', 'tram')]
        assert r.miou_shared[row] == pytest.approx(np.mean(known), abs=.01)

@pytest.mark.parametrize('where,pseudo', [('target', 4), ('source', 8), ('both', 12)])
def test_where_pseudo_labels_are_made(cities, tmp_path, where, pseudo):
    move(cities, tmp_path/'out', pseudo_on=where, replay=False, rows=('student',), epochs=(1, 1, 1))
    t = Transfer(tmp_path/'out')
    assert t.results.set_index('row').n_pseudo['student'] == pseudo
    run = t.run('student')[0]
    made = SegTable.load(run.path/'selected.csv')
    assert run.path.name == 'finetune'
    folders = {'target': {'B'}, 'source': {'A'}, 'both': {'A', 'B'}}[where]
    assert {c for c in 'AB' if made.df.image.str.contains(f'/{c}/').any()} == folders
    assert (run.table.revealed.train.real.df.image.str.contains('/B/')).all()                # nothing of the source is taken for a truth

def test_the_sources_labels_are_mixed_in(cities, tmp_path):
    from selftrain_nb.data import mixed_dls
    move(cities, tmp_path/'out', rows=('joint',), epochs=(1, 1, 1))
    run = Transfer(tmp_path/'out').run('joint')[0]
    given = run.table.train.pseudo
    assert run.config['given'] == 1 and given.df.image.str.contains('/A/').all() and run.table.train.real.df.image.str.contains('/B/').all()
    a = table(cities, 'A').train
    assert all((given.mask(i) == a.mask(i)).all() for i in range(8))                         # the classes of A have the same ids in B
    dls = mixed_dls(run.table.train, ratio=1, n=4, crop=(32, 32), bs=8)
    plan = dls.train.plan(epoch=0)
    assert len(plan) == 8 and (plan < 4).sum() == 4                                           # half of the target, half of the source
    known = dls.one_batch()[-1]
    assert run.config['partial'] and (known[:, 10:].all(1).numpy() == (plan < 4)).all() and known[:, :10].all() and not known[plan >= 4, 10:].any()
    with pytest.raises(ValueError, match='choose one of the two'): move(cities, tmp_path/'x', pseudo_on='both', replay=True)

def test_a_finished_run_as_the_source(cities, tmp_path):
    home = self_train(table(cities, 'A'), tmp_path/'home', rows=('teacher',), epochs=(2, 1), **TINY)
    t = transfer(home, table(cities, 'B'), CITY_A_TO_B, tmp_path/'out', target_labels=4, rows=('source', 'finetune'), epochs=(9, 1, 1), **TINY)
    assert not (t.path/'source').exists() and t.done == ['source', 'finetune']
    first = load_predictor(t.path/'carried.safetensors')
    x = torch.randn(2, 3, 32, 64)
    assert torch.allclose(first.model(x)[:, :10], home.predictor('teacher').model(x), atol=1e-4)
    with pytest.raises(ValueError, match='no finished teacher'): transfer(Run(tmp_path/'nowhere'), table(cities, 'B'), CITY_A_TO_B, tmp_path/'x', **TINY)

@pytest.fixture(scope='module')
def homes(cities):
    "Two finished sources"
    return [self_train(table(cities, 'A'), cities/f'home{s}', rows=('teacher',), epochs=(1, 1), seed=s, **TINY) for s in (0, 1)]

def go(source, cities, out, mapping=CITY_A_TO_B, target=None, **how):
    return transfer(source, table(cities, 'B') if target is None else target, mapping, out, **{'target_labels': 4, 'epochs': (1, 1, 1), 'progress': False, 'n': 8, **how})

def test_a_folder_of_a_run_a_dict_and_its_own_settings(cities, homes, tmp_path):
    t = go(str(homes[0].path), cities, tmp_path/'out', {n: n for n in CITY_A.names}, rows=('source', 'scratch', 'finetune'))
    assert t.config['new'] == ['fence', 'tram'] and t.done == ['source', 'scratch', 'finetune']
    for row in ('scratch', 'finetune'):
        c = t.run(row)[0].config
        assert [c[k] for k in ('encoder', 'bs', 'crop', 'sampler')] == ['test_byobnet', 2, [32, 32], 'random']
    assert (t.run('scratch')[0].config['lr'], t.run('finetune')[0].config['lr']) == (3e-3, 1e-3)
    with pytest.raises(ValueError, match="encoder='resnet10t'.*has to be the same"): go(homes[0], cities, tmp_path/'x', encoder='resnet10t')
    with pytest.raises(ValueError, match='holds other work: origin'): go(homes[1], cities, tmp_path/'out', rows=('source', 'scratch', 'finetune'))
    assert not (tmp_path/'x').exists()

@pytest.mark.parametrize('how,says', [
    (dict(pseudo_on='unlabelled'), "'target', 'source' or 'both'"), (dict(target_labels=0), 'cannot keep 0'), (dict(target_labels=None, rows=['student']), 'no unlabelled image'), (dict(by='groups'), "not 'groups'"), (dict(target_labels=None, rows=['all']), 'there are none'),
    (dict(epochs=(1, 1)), 'epochs are those of the source'), (dict(rows=['joint'], replay=False), 'replay is off'), (dict(mapping=CITY_B_TO_A), 'the mapping is to'), (dict(rows=['best']), 'no rows'), (dict(mapping={'road': 'road'}), 'without a place')])
def test_errors_come_before_the_work(cities, tmp_path, how, says):
    with pytest.raises(ValueError, match=says): go(table(cities, 'A'), cities, tmp_path/'out', **{**TINY, **how})
    assert not (tmp_path/'out').exists()

def test_a_report_of_what_there_is(cities, homes, tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing is trained here yet'): report(Transfer(tmp_path))
    t = go(homes[0], cities, tmp_path/'out', rows=['source'])
    page = report(t.path).read_text(encoding='utf-8')
    assert 'source' in page and 'href="' not in page.replace('href="#', '') and repr(t).endswith('source)')
    t = go(homes[0], cities, tmp_path/'out', rows=['source', 'finetune'])
    assert 'href="out/finetune/report.html"' in report(t, tmp_path/'pages.html').read_text(encoding='utf-8')
    t.show(); assert repr(Transfer(tmp_path/'nowhere')).endswith('nothing yet)')

def test_images_that_are_gone(cities, homes, tmp_path):
    b = scenes(n=8, n_val=2, n_test=0, size=(32, 64), city='B', path=tmp_path/'B')
    t = go(homes[0], cities, tmp_path/'out', target=b, rows=['finetune'])
    (tmp_path/'B').rename(tmp_path/'C')
    assert 'not where they were' in report(t).read_text(encoding='utf-8')

def test_what_cannot_be_measured_or_counts_twice(cities, homes, tmp_path, monkeypatch):
    b = table(cities, 'B')
    with pytest.raises(ValueError, match='no labelled training image'): go(homes[0], cities, tmp_path/'out', target=SegTable(b.df.assign(kind=np.where(b.df.split == 'train', 'none', b.df.kind), label=b.df.label.where(b.df.split != 'train', '')), b.space, b.remaps), target_labels=None)
    with pytest.raises(ValueError, match='nothing could be measured'): go(homes[0], cities, tmp_path/'out', target=b[b.df.split == 'train'])
    own = Mapping(CITY_A, CITY_A, {n: n for n in CITY_A.names})
    with pytest.raises(ValueError, match='4 images have no label in the target and one in the source'): go(homes[0], cities, tmp_path/'out', own, table(cities, 'A'))
    (tmp_path/'link').symlink_to(cities)
    a = table(cities, 'A')
    linked = SegTable(a.df.assign(image=a.df.image.str.replace(str(cities), str(tmp_path/'link'))), a.space, a.remaps)
    with pytest.raises(ValueError, match='4 images have no label in the target and one in the source'): go(homes[0], cities, tmp_path/'out', own, linked)
    assert go(homes[0], cities, tmp_path/'out', own, a, replay=False, rows=['student']).done == ['finetune', 'student']

def test_without_hidden_labels_there_is_no_upper_bound(cities, homes, tmp_path):
    b = table(cities, 'B').keep_labels(4, seed=0)
    b = SegTable(b.df.assign(truth=''), b.space, b.remaps)
    t = go(homes[0], cities, tmp_path/'out', target=b, target_labels=None, replay=False)
    assert t.done == ['source', 'scratch', 'finetune', 'centroids', 'student', 'control']

def test_all_labels_and_no_rows_given(cities, homes, tmp_path):
    "There is nothing to make pseudo labels for, and nothing hidden"
    t = go(homes[0], cities, tmp_path/'out', target_labels=None, crop=32)
    assert t.done == ['source', 'scratch', 'finetune', 'centroids', 'joint']

def test_the_plain_baselines_draw_at_random(cities, homes, tmp_path):
    "And all rows get as many steps as the few labels ask for, row `all` as many as two of them"
    t = go(homes[0], cities, tmp_path/'out', replay=False, sampler='centroid', n=None)
    assert t.taught == 'centroids' and t.run('student')[0].path.name == 'centroids'
    assert {r: t.run(r)[0].config['sampler'] for r in t.done[1:]} == dict(scratch='random', finetune='random', centroids='centroid', student='centroid', control='centroid', all='centroid')
    r = t.results.set_index('row')
    assert (r.steps[['scratch', 'finetune', 'centroids', 'student', 'control']] == 25).all() and r.steps['all'] == 50
    assert r.labels.to_dict() == dict(source=0, scratch=4, finetune=4, centroids=4, student=4, control=4, all=8)

def test_groups_as_large_as_the_table_are_said(cities):
    b = table(cities, 'B')
    one = SegTable(b.df.assign(group='one'), b.space, b.remaps)
    with pytest.warns(UserWarning, match='asked for 2 labels, kept 8 of 8.*by="image"'): one.keep_labels(2)
    assert len(one.keep_labels(2, by='image').train.real) == 2

def test_a_head_of_several_layers(tmp_path):
    "As that of DPT: the last layer alone has the classes"
    from types import SimpleNamespace
    import selftrain_nb.transfer as module
    class Deep(torch.nn.Module):
        def __init__(self, n): super().__init__(); self.segmentation_head = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 1), torch.nn.ReLU(), torch.nn.Conv2d(10, n, 1))
    old, saved = Deep(10), {}
    with pytest.MonkeyPatch.context() as m:
        m.setattr(module, 'seg_model', lambda n, *args: Deep(n)); m.setattr(module, 'save_weights', lambda model, path, **kw: saved.update(model.state_dict()))
        carry_head(SimpleNamespace(model=old, encoder='', arch='', dls=SimpleNamespace(size=None)), CITY_A_TO_B, tmp_path/'w')
    state = old.state_dict()
    assert torch.equal(saved['segmentation_head.0.weight'], state['segmentation_head.0.weight']) and saved['segmentation_head.2.weight'].shape == (12, 10, 1, 1)
    assert torch.equal(saved['segmentation_head.2.weight'][:10], state['segmentation_head.2.weight'])

@pytest.mark.parametrize('mapping', [CITYSCAPES_TO_CAMVID, CAMVID_TO_IDD_LITE, IDD_LITE_TO_CAMVID, CITY_B_TO_A], ids=str)
def test_heads_by_hand(tmp_path, mapping):
    torch.manual_seed(0)
    from types import SimpleNamespace
    known = SimpleNamespace(model=seg_model(len(mapping.source), 'test_byobnet').eval(), encoder='test_byobnet', arch='fpn', dls=SimpleNamespace(space=mapping.source, size=None))
    for b in known.model.net.segmentation_head[0].bias.data: b.uniform_(-1, 1)
    carry_head(known, mapping, tmp_path/'w.safetensors')
    again = load_predictor(tmp_path/'w.safetensors')
    old, new = (k.model.net.segmentation_head[0] for k in (known, again))
    for c, name in enumerate(mapping.target.names):
        of = [k for k, n in enumerate(mapping.source.names) if mapping.to[n] == name]
        assert torch.allclose(new.bias[c], old.bias[of].mean() if of else old.bias.mean())
        if of: assert torch.allclose(new.weight[c], old.weight[of].mean(0))
    x = torch.randn(1, 3, 32, 64)
    p, q = known.model(x).softmax(1), led(known, mapping).model(x).exp()
    for c, name in enumerate(mapping.target.names):
        of = [k for k, n in enumerate(mapping.source.names) if mapping.to[n] == name]
        assert torch.allclose(q[:, c], p[:, of].sum(1), atol=1e-5)
