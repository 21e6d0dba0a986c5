"The report of finished, unfinished and moved runs, and what it says of what chose, trained or went missing."
import re, shutil
from dataclasses import replace

import pandas as pd, pytest

from test_selftrain import QUICK, QUIET, folder, halves, train
from selftrain_nb.datasets import seg_folder
from selftrain_nb.doubts import doubts, provenance, round_notes
from selftrain_nb.evidence import choices, leaks, where_measured
from selftrain_nb.files import read_json, write_json
from selftrain_nb.html import class_legend, strip, write_page
from selftrain_nb.inspection import open_pseudo
from selftrain_nb.labels import LabelSpace
from selftrain_nb.mapping import Mapping
from selftrain_nb.report import choices as passed_on, gap_closed, pick_rows, report, verdict
from selftrain_nb.selftrain import Run, self_train
from selftrain_nb.transfer import Transfer, TransferRecipe, transfer

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A finished run with teacher, student and control, and its data"
    home = tmp_path_factory.mktemp('done')
    data = folder(home/'data', test=(1,))
    return data, train(data, home/'run')


@pytest.fixture
def copy(done, tmp_path):
    "The run, to be changed; its data stays"
    shutil.copytree(done[1].path, tmp_path/'run')
    return tmp_path/'run'


def page(run, out, **kwargs):
    "The text of a report"
    return report(run, out/'page.html', n_images=2, **kwargs).read_text(encoding='utf-8')


def words(html): return ' '.join(re.sub('<[^>]+>', ' ', re.sub('<style.*?</style>', '', html, flags=re.S)).split())


# What every page keeps

def test_a_finished_run(done, tmp_path):
    data, run = done
    html = page(run, tmp_path)
    assert html.lower().startswith('<!doctype html>') and not re.findall(r'(?:src|href)="(?!data:|#)[^"]*', html)
    assert '<script' not in html and 'http://' not in html and 'https://' not in html
    for part in ('pictures', 'classes', 'curves', 'pseudo', 'run'):
        assert f'id="{part}"' in html and f'href="#{part}"' in html
    assert 'boundary' in html and 'Percent on the 1 test images' in html and 'chose nothing' in html


def test_the_same_bytes_again(done, tmp_path):
    a, b = (report(done[1], tmp_path/n, n_images=2).read_bytes() for n in ('a.html', 'b.html'))
    assert a == b


def test_no_path_of_this_machine(done, copy, tmp_path):
    data, run = done
    config = read_json(copy/'config.json')
    write_json(copy/'config.json', dict(config, pretrained='/data/somebody/weights.safetensors'))
    html = page(copy, tmp_path)
    assert str(data.parent) not in html and str(tmp_path) not in html and '/data/somebody' not in html
    assert 'weights.safetensors' in html


def test_the_default_place_and_titles(copy):
    assert report(copy, n_images=0) == copy/'report.html'
    html = (copy/'report.html').read_text(encoding='utf-8')
    assert '<title>Run run</title>' in html and 'id="pictures"' not in html and 'href="#pictures"' not in html


def test_names_are_escaped(copy, tmp_path):
    text = (copy/'table.json').read_text()
    (copy/'table.json').write_text(text.replace('"fg"', '"<b>&\\"x\\""'))
    for file in copy.glob('*/metrics.json'): file.write_text(file.read_text().replace('"fg"', '"<b>&\\"x\\""'))
    table = (copy/'table.csv').read_text()
    (copy/'table.csv').write_text(re.sub(r',(train|val|test),[^,]*,', r',\1,<i>&g,', table))
    html = page(copy, tmp_path, title='<u>&"t"')
    assert '<b>&"x"' not in html and '&lt;b&gt;&amp;' in html and '<i>&g' not in html and '&lt;i&gt;&amp;g' in html
    assert '<title>&lt;u&gt;&amp;' in html and '<u>' not in html


def test_a_name_that_is_not_utf8(tmp_path):
    file = write_page(tmp_path/'p.html', 'caf\udce9', [strip('caf\udce9.png', {}), strip('caf\udce8.png', {})])
    text = file.read_bytes().decode('utf-8')
    assert 'caf\\udce9.png' in text and 'caf\\udce8.png' in text


def test_image_names_that_are_not_utf8(copy, done, tmp_path):
    table = (copy/'table.csv').read_bytes()
    assert b'/0.png' in table
    (copy/'table.csv').write_bytes(table.replace(b'/0.png', b'/\xe9.png'))
    html = page(copy, tmp_path)
    assert 'could not be read any more' in html or 'not where it was' in html


def test_a_long_legend_and_long_groups_may_wrap():
    space = LabelSpace([f'a class with a long name {i}' for i in range(40)])
    html = str(class_legend(space)) + str(strip('x.png', {}, group='g' * 300))
    assert html.count('a class with a long name') == 40 and 'g' * 300 in html


# What a run proves

def test_a_run_without_a_control_is_marked(done, tmp_path):
    run = train(done[0], tmp_path/'run', arms=['teacher', 'student'])
    html = page(run, tmp_path)
    assert 'class="warn"' in html and 'proves nothing' in html and 'missing' in html
    assert 'class="warn"' not in page(done[1], tmp_path)


def test_no_points_of_zero_are_above():
    told = verdict(dict(teacher=50., student=50.01, control=49.99))
    assert 'level with its teacher' in told[0] and 'level with the control' in told[1]
    assert not any('0.0 points' in s for s in told)
    assert 'No difference found' in verdict(dict(teacher=50, student=51, control=50.5))[2]
    assert 'next to nothing' in ' '.join(verdict(dict(teacher=50, student=51, control=50, full=50.2)))
    assert gap_closed(50, 55, 60) == .5 and pick_rows('ab', 1) == [0] and passed_on is choices


def test_steps_that_differ_are_told(copy):
    file = copy/'control'/'metrics.json'
    write_json(file, dict(read_json(file), steps=1234))
    assert any('did not train alike' in s for s in doubts(Run(copy)))


# Unfinished and moved

def test_an_unfinished_run(copy, tmp_path):
    for arm in ('student', 'control'): (copy/arm/'metrics.json').unlink()
    assert 'There is no student yet' in page(copy, tmp_path)
    (copy/'teacher'/'metrics.json').unlink()
    html = words(page(copy, tmp_path))
    assert 'Nothing has been measured' in html and 'No arm is finished yet' in html


def test_a_run_that_has_only_begun(copy, tmp_path):
    for name in ('teacher', 'student', 'control', 'pseudo'): shutil.rmtree(copy/name)
    (copy/'log.csv').unlink()
    html = words(page(copy, tmp_path))
    for told in ('Nothing has been measured', 'No epoch is finished', 'no pseudo labels', 'No stage is finished'):
        assert told in html


def test_labelling_that_is_not_finished(copy, tmp_path):
    (copy/'pseudo'/'stats.npz').unlink()
    for arm in ('student', 'control'): shutil.rmtree(copy/arm)
    assert 'Labelling is not finished: 3 of 3 images' in words(page(copy, tmp_path))


def test_a_stop_before_the_data_was_written(copy, tmp_path):
    (copy/'table.csv').unlink()
    with pytest.raises(FileNotFoundError, match='table.csv is missing'): report(copy)
    with pytest.raises(FileNotFoundError, match=r'no run here .*did you mean .*run\?'): report(tmp_path)


def test_a_moved_run_and_missing_images(done, copy, tmp_path):
    before = page(copy, tmp_path)
    copy.rename(tmp_path/'elsewhere')
    assert words(page(tmp_path/'elsewhere', tmp_path, title='Run run')) == words(before)
    table = tmp_path/'elsewhere'/'table.csv'
    table.write_text(table.read_text().replace(str(done[0]), '/nowhere/at/all'))
    pseudo = tmp_path/'elsewhere'/'pseudo'/'table.csv'
    pseudo.write_text(pseudo.read_text().replace(str(done[0]), '/nowhere/at/all'))
    html = page(tmp_path/'elsewhere', tmp_path)
    assert 'No image could be read: the data is not where it was' in html and '/nowhere' not in html
    assert 'Are the classes in proportion?' in html and 'These images could not be read any more' in html


def test_one_missing_image_is_counted(tmp_path):
    data = folder(tmp_path/'data', n=9, labelled=6, val=(0, 1, 2))
    run = train(data, tmp_path/'run')
    (data/'images/1.png').unlink()
    assert '1 images could not be read any more and are left out' in page(run, tmp_path)


def test_files_that_were_left_out_are_named(copy, tmp_path):
    write_json(copy/'unusable.json', ['images/bad <1>.png'])
    html = page(copy, tmp_path)
    assert '1 images could not be used' in html and 'bad &lt;1&gt;.png' in html


def test_images_that_could_not_be_labelled(tmp_path):
    data = folder(tmp_path/'data')
    run = train(data, tmp_path/'run', arms=['teacher'])
    (data/'images/5.png').write_bytes(b'no image')
    from selftrain_nb.pseudo import LabelJob, pseudo_label
    pseudo_label(run.predictor('teacher'), run.table.train.unlabelled, run.path/'pseudo', job=LabelJob(progress=False))
    assert open_pseudo(run).total == 3 and '1 image could not be read' in page(run, tmp_path)


# What trained and what chose

def test_hidden_truth_measures_the_pseudo_labels(tmp_path):
    data = folder(tmp_path/'data', n=7, labelled=7)
    run = self_train(seg_folder(data).keep_labels(2, by='image'), tmp_path/'run', QUICK, options=QUIET)
    html = page(run, tmp_path)
    assert 'right % of kept' in html and 'this run: 0.0' in html and 'hidden truth' in html
    assert 'There is no truth to compare with' not in html


def test_without_a_truth_the_page_says_so(done, tmp_path):
    assert 'There is no truth to compare with' in page(done[1], tmp_path)


def test_rounds_are_told(tmp_path):
    data = folder(tmp_path/'data')
    run = train(data, tmp_path/'run', replace(QUICK, rounds=2))
    assert any('number of rounds' in s for s in choices(run)) and len(round_notes(run)) == 1
    html = words(page(run, tmp_path))
    assert 'What they chose scores too well' in html and round_notes(run)[0] in html
    if len(run.rounds) > 1: assert 'Run run, round 2' in page(run.rounds[1], tmp_path)


def test_a_second_round_is_compared(copy):
    "A second round, made by hand so that it does not depend on luck"
    config = dict(read_json(copy/'config.json'), rounds=2)
    write_json(copy/'config.json', config)
    shutil.copytree(copy, copy/'round2')
    write_json(copy/'round2'/'config.json', dict(config, round=2))
    file = copy/'round2'/'teacher'/'metrics.json'
    write_json(file, dict(read_json(file), origin=dict(arm='student', recipe='default', seed=0, n_real=2)))
    assert len(Run(copy).rounds) == 2 and '0.0 against the student before' in round_notes(Run(copy))[0]
    html = words(page(copy, copy.parent))
    assert 'student, round 2' in html and 'taken over' in html
    assert 'the student of the round before' in words(page(copy/'round2', copy.parent))


def test_thresholds_by_precision_are_told(tmp_path):
    run = train(folder(tmp_path/'data'), tmp_path/'run', replace(QUICK, precision=.5))
    html = words(page(run, tmp_path))
    assert 'thresholds of 50% precision' in html and 'threshold for each class' in html
    (run.path/'student'/'metrics.json').unlink()
    assert any('thresholds of 50% precision' in s for s in choices(run))    # known from calibration.json alone


def test_callbacks_of_the_users_own_are_told(copy):
    write_json(copy/'config.json', dict(read_json(copy/'config.json'), callbacks=['SaveModelCallback']))
    assert 'Whether SaveModelCallback chose anything' in where_measured(Run(copy), 'val')


def test_a_taken_over_teacher_shows_its_provenance(done, tmp_path):
    data, run = done
    again = train(data, tmp_path/'again', replace(QUICK, seed=7), teacher=run)
    told = provenance(again)
    assert 'taken over from another run' in told[0] and 'seed 0' in told[0] and 'seed 7 here' in told[1]
    html = words(page(again, tmp_path))
    assert told[0] in html.replace('&#x27;', "'") and 'taken over' in html and provenance(run) == []
    assert 'did not train it' not in told[1]
    seen = again.path/'teacher'/'images.csv'
    rows = pd.read_csv(seen)
    rows.drop(index=rows[rows.stream == 'real'].index[0]).to_csv(seen, index=False)
    assert '1 of them did not train it' in provenance(again)[1]
    rows.assign(image='moved/' + rows.image).to_csv(seen, index=False)
    assert provenance(again) == told  # where the images were moved, nobody knows


def test_images_that_measure_and_trained_are_told(copy):
    "A teacher from elsewhere that has seen an image of the test split"
    run, file = Run(copy), copy/'teacher'/'images.csv'
    assert leaks(run, 'test') == {}
    file.write_text(file.read_text() + f'real,{run.table.test.df.image.iloc[0]},3\n')
    assert leaks(run, 'test') == dict(teacher=1)
    assert 'trained a network: teacher (1 images)' in where_measured(run, 'test')


def test_images_that_were_never_drawn_did_not_train(copy, tmp_path):
    file = copy/'student'/'images.csv'
    lines = file.read_text().splitlines()
    file.write_text('\n'.join([*lines[:-1], lines[-1].rpartition(',')[0] + ',0']) + '\n')
    assert '<td>2 of 3</td>' in page(copy, tmp_path)


# A transfer

@pytest.fixture(scope='module')
def moved(tmp_path_factory):
    "A transfer with a new class"
    home = tmp_path_factory.mktemp('moved')
    def thirds(i):
        a = halves()
        a[:8] = 2
        return a
    source = seg_folder(folder(home/'source', n=5, labelled=5))
    target = seg_folder(folder(home/'target', codes='bg\nfg\ntram\n', mask=thirds, test=(1,)))
    own = {f: getattr(QUICK, f) for f in ('encoder', 'pretrained', 'crop', 'bs', 'n', 'epochs')}
    mapping = Mapping(source.space, target.space, dict(bg='bg', fg='fg'), new=['tram'])
    return transfer(source, target, mapping, home/'out', TransferRecipe(**own, source_epochs=1), options=QUIET)


def test_a_transfer(moved, tmp_path):
    html = page(moved.path, tmp_path)
    told = words(html)
    assert 'From 2 classes to 3, new: tram' in told and 'student against control' in told and 'one seed' in told
    assert 'What each class was in the source' in told and 'tram none' in told
    assert 'The source model learned from' in told and 'id="pseudo"' in html and 'boundary' in told
    assert page(moved, tmp_path) == html and str(moved.path.parent) not in html


def test_an_unfinished_transfer(moved, tmp_path):
    shutil.copytree(moved.path, tmp_path/'t')
    (tmp_path/'t'/'control'/'metrics.json').unlink()
    assert 'class="warn"' in page(tmp_path/'t', tmp_path)
    for file in (tmp_path/'t').glob('*/metrics.json'): file.unlink()
    assert Transfer(tmp_path/'t').done == [] and 'Nothing has been measured' in page(tmp_path/'t', tmp_path)
