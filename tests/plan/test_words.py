"""Words of a command line: what each malformed one is answered, and what sweeps expand to."""

import itertools
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.checks import SettingsError
from harness.plan.compose import compose, hydra_ready
from harness.plan.sweep import points_of
from harness.plan.words import axis, exact, read_words

LONG = "x" * 300
SEED = "whole number from 0 to 9223372036854775807"
NAME = "1 to 100 letters"

SETTINGS = {
    # fractions, seeds, counts
    "data_frac=0": ["data_frac=0", "above 0"],
    "data_frac=-0.1": ["data_frac=-0.1", "above 0"],
    "data_frac=1.01": ["data_frac=1.01", "at most 1"],
    "data_frac=100": ["data_frac=100", "at most 1"],
    "data_frac=nan": ["data_frac=nan", "above 0"],
    "data_frac=inf": ["data_frac=inf", "at most 1"],
    "data_frac=-inf": ["data_frac=-inf", "above 0"],
    "data_frac=ten": ["data_frac='ten'", "above 0"],
    "data_frac=10%": ["data_frac='10%'", "above 0"],
    "data_frac=true": ["data_frac=True", "above 0"],
    "data_frac=null": ["data_frac=None"],
    "data_frac=": ["data_frac=''"],
    "data_frac=[0.1]": ["data_frac"],
    "data_frac={a:1}": ["data_frac"],
    "seed=-1": ["seed=-1", SEED],
    "seed=9223372036854775808": ["seed=9223372036854775808", SEED],
    "seed=99999999999999999999999": ["seed=", SEED],
    "seed=1.5": ["seed=1.5"],
    "seed=true": ["seed=True"],
    "seed=first": ["seed='first'"],
    "seed=null": ["seed=None"],
    "seed=nan": ["seed=nan"],
    "data_seed=-7": ["data_seed=-7", SEED],
    "data_seed=18446744073709551616": ["data_seed=", SEED],
    "train_seed=18446744073709551616": ["train_seed=", SEED],
    "train_seed=-1": ["train_seed=-1", SEED],
    "world_seed=-5": ["world_seed=-5", SEED],
    "world_seed=null": ["world_seed=None"],
    "teacher_seed=-2": ["teacher_seed=-2", SEED],
    "teacher_seed=false": ["teacher_seed=False"],
    "student.init_seed=-1": ["student.init_seed=-1", SEED],
    "teacher.init_seed=9223372036854775808": ["teacher.init_seed=", SEED],
    "draws=0": ["draws=0", "at least 1"],
    "draws=-3": ["draws=-3", "at least 1"],
    "draws=1.5": ["draws=1.5"],
    "draws=true": ["draws=True"],
    "most_cells=0": ["most_cells=0", "at least 1"],
    "most_cells=many": ["most_cells='many'"],
    # budget
    "budget.kind=days": ["budget.kind='days'", "epochs, steps"],
    "budget.kind=null": ["budget.kind=None"],
    "budget.amount=0": ["budget.amount=0", "above 0"],
    "budget.amount=-1": ["budget.amount=-1", "above 0"],
    "budget.amount=0.3": ["budget.amount=0.3", "whole numbers", "budget.amount=1"],
    "budget.amount=2.5": ["budget.amount=2.5", "whole numbers", "budget.amount=2"],
    "budget.amount=nan": ["budget.amount=nan", "above 0"],
    "budget.amount=inf": ["budget.amount=inf", "above 0"],
    "budget.amount=true": ["budget.amount=True"],
    "budget.amount=ten": ["budget.amount='ten'"],
    "budget.amuont=3": ["budget.amuont is not a setting", "amount"],
    "budget.batch_size=0": ["budget.batch_size=0", "above 0"],
    "budget.batch_size=-8": ["budget.batch_size=-8", "above 0"],
    "budget.batch_size=2.5": ["budget.batch_size=2.5"],
    "budget.batch_size=true": ["budget.batch_size=True"],
    "budget.learning_rate=0": ["budget.learning_rate=0", "above 0"],
    "budget.learning_rate=fast": ["budget.learning_rate='fast'"],
    "budget.learning_rate=inf": ["budget.learning_rate=inf"],
    "budget.warmup_ratio=1": ["budget.warmup_ratio=1", "below 1"],
    "budget.warmup_ratio=-0.1": ["budget.warmup_ratio=-0.1", "at least 0"],
    "budget.warmup_ratio=nan": ["budget.warmup_ratio=nan"],
    "budget.beta2=1": ["budget.beta2=1", "below 1"],
    "budget.weight_decay=-1": ["budget.weight_decay=-1", "at least 0"],
    "budget.weight_decay=nan": ["budget.weight_decay=nan"],
    "budget.max_grad_norm=0": ["budget.max_grad_norm=0", "above 0"],
    "budget.schedule=step": ["budget.schedule='step'", "cosine"],
    "budget.precision=fp64": ["budget.precision='fp64'", "fp32"],
    "budget.epochs_of=row": ["budget.epochs_of='row'", "cell"],
    "budget.min_steps=0": ["budget.min_steps=0", "at least 1"],
    "budget.min_steps=1.5": ["budget.min_steps=1.5"],
    "budget.least_steps_per_phase=-1": ["budget.least_steps_per_phase=-1"],
    "budget=flops budget.min_steps=3": ["budget.min_steps=3", "floor"],
    "budget=forever": ["budget='forever'", "steps"],
    # student and teacher
    "student=huge": ["student='huge'", "mini"],
    "student.size=huge": ["student.size='huge'", "tiny"],
    "student.kind=gpt": ["student.kind='gpt'", "hf"],
    "student.kind=several": ["student.kind='several'"],
    "student.path=/some/model": ["student.path='/some/model'", "has no path"],
    "student.revision=main": ["student.revision='main'", "has no revision"],
    "student.served_model=x": ["student.served_model='x'", "has no served_model"],
    "student=hf": ["student.path=None", "needs a path"],
    "student=hf student.path=": ["student.path=''", "needs a path"],
    "student.init=frozen": ["student.init='frozen'", "random"],
    "student.init=pruned": ["student.layers=None", "at least 2"],
    "student.layers=two": ["student.layers='two'"],
    "student.family=runes": ["student.family='runes'", "letters"],
    "student.chat_template=tulu": ["student.chat_template='tulu'", "own"],
    "student.chat_template=x": ["student.chat_template='x'"],
    "student.thinking=true": ["student.thinking=True"],
    "student.thinking=maybe": ["student.thinking='maybe'"],
    "student.template_date=today": ["student.template_date='today'"],
    "student.lora_rank=0": ["student.lora_rank=0", "at least 1"],
    "student.lora_rank=2.5": ["student.lora_rank=2.5"],
    "student.lora_alpha=2": ["student.lora_rank=None", "need it"],
    "student.lora_rank=4 student.lora_alpha=0": ["student.lora_alpha=0", "above 0"],
    "student.lora_rank=4 student.lora_dropout=1": ["student.lora_dropout=1", "below 1"],
    "student.lora_rank=4 student.lora_dropout=nan": ["student.lora_dropout=nan"],
    "student.lora_rnak=8": ["student.lora_rnak is not a setting", "lora_rank"],
    "+student.lora_rnak=8": ["student.lora_rnak is not a setting", "lora_rank"],
    "++student.lora_rnak=8": ["student.lora_rnak is not a setting", "lora_rank"],
    "teacher=magic": ["teacher='magic'", "weak", "strong"],
    "teacher.data_frac=2": ["teacher.data_frac=2", "at most 1"],
    "teacher.data_frac=true": ["teacher.data_frac=True"],
    "teacher.combine=max": ["teacher.combine='max'", "mean"],
    "teacher.members=[a]": ["teacher.members"],
    "teacher=several teacher.members=[a]": ["teacher.members[0]='a'", "preset"],
    "teacher=several teacher.members=[{preset:x}]": ["teacher.members[0].preset='x'"],
    "teacher=several teacher.members=[{preset:weak,share:2},{preset:strong}]": ["teacher.members[0].share=2"],
    "teacher=several teacher.members=[{preset:weak,sources:add}]": ["teacher.members[0].sources='add'"],
    "teacher=several teacher.members=[{preset:weak,colour:red}]": ["teacher.members[0].colour='red'"],
    "teacher.quantise=int3": ["teacher.quantise='int3'", "int8"],
    "teacher.rendering=both": ["teacher.rendering='both'"],
    "teacher.label_rows=none": ["teacher.label_rows='none'"],
    "teacher.distillation_allowed=perhaps": ["teacher.distillation_allowed='perhaps'"],
    "teacher.lessons.9.budget.amount=3": ["teacher.lessons[9]"],
    "teacher.lessons=3": ["teacher.lessons=3"],
    "teacher.lessons.0.loss_on=user": ["loss_on='user'"],
    # method, signal, corpus, evaluations
    "method=magic": ["method='magic'", "sft"],
    "method=SFT": ["method='SFT'", "sft"],
    "method=kd method.student_share=2": ["student_share=2", "between 0 and 1"],
    "method=sft method.temperature=2": ["method.temperature is not a setting"],
    "method.warmup=x": ["method.warmup"],
    "signal.kind=dead": ["signal.kind='dead'", "live"],
    "signal.top_k=0": ["signal.top_k=0", "at least 1"],
    "signal.top_k=2.5": ["signal.top_k=2.5"],
    "signal.samples=256": ["signal.samples=256", "255"],
    "signal.samples=0": ["signal.samples=0"],
    "signal.tail=cut": ["signal.tail='cut'", "renormalise"],
    "corpus=magic": ["corpus='magic'", "jsonl"],
    "corpus.max_length=0": ["corpus.max_length=0", "above 0"],
    "corpus.max_length=long": ["corpus.max_length='long'"],
    "corpus.heldout_per_source=-1": ["corpus.heldout_per_source=-1"],
    "evals=all": ["evals='all'", "default"],
    "evals.limit=0": ["evals.limit=0", "at least 1"],
    "evals.limit=-5": ["evals.limit=-5"],
    "evals.limit=true": ["evals.limit=True"],
    "evals.names=null": ["evals.names=None"],
    "evals.overlap=maybe": ["evals.overlap='maybe'", "count"],
    "evals.precision=fp8": ["evals.precision='fp8'"],
    "evals.server=run": ["evals.server='run'", "{port}"],
    "evals.run_code=perhaps": ["evals.run_code='perhaps'"],
    "evals.revisions=main": ["evals.revisions"],
    "measure.formats=[fp4]": ["measure.formats='fp4'", "bf16"],
    "measure.formats=fp4": ["measure.formats='fp4'", "bf16"],
    # the run
    "machine.device=tpu": ["machine.device='tpu'", "cuda"],
    "machine.threads=-1": ["machine.threads=-1"],
    "machine.micro_batch_size=0": ["machine.micro_batch_size=0"],
    "machine.checkpoint_minutes=nan": ["machine.checkpoint_minutes=nan"],
    "machine.checkpoint_minutes=-1": ["machine.checkpoint_minutes=-1"],
    "launch.kind=remote": ["launch.kind='remote'", "local"],
    "launch.workers=-2": ["launch.workers=-2"],
    "launch.workers=two": ["launch.workers='two'"],
    "track=mlflow": ["track='mlflow'", "wandb"],
    "retry=sometimes": ["retry='sometimes'"],
    "wait=soon": ["wait='soon'"],
    "scale=huge": ["scale='huge'", "paper"],
    "scale=paper": ["experiments=None", "data_scaling"],
    "experiments=nothing": ["experiments='nothing'", "data_scaling"],
    "sweep=3": ["sweep"],
    "sweep.product=3": ["sweep.product"],
    "sweep.prodcut={a:1}": ["sweep", "prodcut", "product"],
    "tune=3": ["tune"],
    "claims=3": ["claims"],
    "store=": ["store=''", "path of a folder"],
    "store=' '": ["store=' '", "path of a folder"],
    "store=null": ["store=None"],
    "slurm=nowhere": ["slurm='nowhere'", "dev"],
    "slurm.partition=x": ["slurm", "no cluster is chosen"],
    "slurm=dev slurm.partitoin=x": ["slurm.partitoin='x'", "partition"],
    "slurm=dev +slurm.foo=1": ["slurm.foo=1", "partition"],
}
"""Malformed settings, and parts of the sentence that refuses each."""

WORDS = {
    "": ["an empty word"],
    " ": ["an empty word"],
    "method": ["method cannot be run", "name=value"],
    "student.size": ["student.size cannot be run", "name=value"],
    "=kd": ["'' is not a setting"],
    "=": ["'' is not a setting"],
    "method==sft": ["method='=sft'", "sft"],
    "+foo=1": ["foo is not a setting", "student"],
    "++foo=1": ["foo is not a setting", "student"],
    "foo=1": ["foo is not a setting", "student"],
    "foo.bar=1": ["foo is not a setting"],
    "bugdet.amount=3": ["bugdet is not a setting", "budget"],
    "Method=kd": ["Method is not a setting"],
    "data-frac=0.1": ["'data-frac' is not a setting"],
    "a:b=c": ["'a:b' is not a setting"],
    "1=2": ["'1' is not a setting"],
    ".=2": ["'.' is not a setting"],
    "метод=kd": ["is not a setting"],
    "student@x=mini": ["'student@x' is not a setting"],
    "student@=mini": ["'student@' is not a setting"],
    "~method": ["~method cannot be run", "taken away"],
    "~seed": ["~seed cannot be run", "taken away"],
    "~seed=0": ["~seed=0 cannot be run", "taken away"],
    "~": ["~ cannot be run", "taken away"],
    "hydra.verbose=true": ["hydra.verbose=true", "Hydra"],
    "hydra/launcher=joblib": ["hydra/launcher=joblib", "Hydra"],
    "method=": ["method=''", "sft"],
    "method=null": ["method=None", "sft"],
    "teacher=null": ["teacher=None", "teacher=none"],
    "student=null": ["student=None"],
    "student=???": ["student='???'"],
    "student=/path/to/model": ["student='/path/to/model'", "student=hf student.path=/path/to/model"],
    "student=~/model": ["student=", "student=hf"],
    "student=org/model": ["student='org/model'", "student=hf student.path=org/model"],
    "method=[sft,kd]": ["method=['sft', 'kd']", "method=sft,kd"],
    "method={sft:1}": ["method={'sft': 1}", "one preset"],
    "method=1": ["method=1", "sft"],
    "method=true": ["method=True", "sft"],
    "method=sft,magic": ["method='magic'", "sft"],
    "method=sft,null": ["method=None"],
    "method=[sft": ["method='[sft'", "brackets []"],
    "method=sft]": ["method='sft]'", "brackets []"],
    "budget.amount=(3": ["budget.amount='(3'", "brackets ()"],
    "evals.names=[a,b": ["evals.names='[a,b'", "brackets []"],
    "sweep={product:{seed:[0,1]}": ["sweep=", "brackets {}"],
    "student.name='x": ['student.name="\'x"', "quote"],
    'student.name="x': ["student.name='\"x'", "quote"],
    "data_frac=0.1,,": ["data_frac='0.1,,'", "comma"],
    "data_frac=,0.1": ["data_frac=',0.1'", "comma"],
    "data_frac=,": ["data_frac=','", "comma"],
    "method=choice()": ["method='choice()'", "no value"],
    "method=choice(sft": ["method='choice(sft'", "brackets ()"],
    "method=pick(sft,kd)": ["method='pick(sft,kd)'", "pick()"],
    "seed=range()": ["seed='range()'"],
    "seed=range(a,b)": ["seed='range(a,b)'"],
    "seed=range(0,0)": ["seed=[]", "no value"],
    "seed=range(5,1)": ["seed=[]", "no value"],
    "seed=range(0,5,0)": ["seed='range(0,5,0)'", "step"],
    "seed=range(0,5,-1)": ["seed=[]", "no value"],
    "seed=interval(0,1)": ["seed='interval(0,1)'", "range"],
    "data_frac=glob(*)": ["data_frac='glob(*)'", "presets"],
    "student.size=glob(t*)": ["student.size='glob(t*)'", "presets"],
    "method=glob(zz*)": ["method='glob(zz*)'", "matches none"],
    "seed=range(0,100000)": ["seed='range(0,100000)'", "100,000 values", "most_cells"],
    "seed=range(0,1000000000000)": ["seed=", "1,000,000,000,000 values"],
    "seed=range(0,20001)": ["seed=", "20,001 values"],
    "data_frac=range(0.0001,1,0.0001) seed=range(0,100)": ["most_cells=20000", "999,900 cells", "9,999 of data_frac"],
    "seed=range(0,200) draws=200": ["most_cells=20000", "40,000 cells"],
    "seed=0,1 seed=2,3": ["seed='2,3'", "swept twice"],
    "method=sft,kd method=sft,logit_kd": ["method='sft,logit_kd'", "swept twice"],
    "store=a,b": ["store='a,b'", "cannot be swept"],
    "grid=a,b": ["grid='a,b'", "cannot be swept"],
    "retry=true,false": ["retry='true,false'", "cannot be swept"],
    "track=none,wandb": ["track='none,wandb'", "cannot be swept"],
    "launch.kind=local,inline": ["launch.kind='local,inline'", "cannot be swept"],
    "launch.workers=1,2": ["launch.workers='1,2'", "cannot be swept"],
    "machine.threads=1,2": ["machine.threads='1,2'", "cannot be swept"],
    "slurm=dev,example_a100": ["slurm='dev,example_a100'", "cannot be swept"],
    "wait=true,false": ["wait='true,false'", "cannot be swept"],
    "draws=1,2": ["draws='1,2'", "cannot be swept"],
    "experiments=data_scaling,domain": ["experiments='data_scaling,domain'", "cannot be swept"],
    "scale=mini,paper": ["scale='mini,paper'", "cannot be swept"],
    "primary_metric=a,b": ["primary_metric='a,b'", "one primary metric"],
    "most_cells=1,2": ["most_cells='1,2'", "cannot be swept"],
    "tune.rounds=1,2": ["tune.rounds='1,2'", "cannot be swept"],
    "evals.names=heldout,verified": ["evals.names='heldout,verified'", "evals.names=[heldout,verified]"],
    "budget=steps,epochs budget.kind=steps,flops": ["budget.kind=", "crossed with budget=steps,epochs"],
    "budget=steps,epochs budget.amount=2,4": ["budget.amount=", "presets that differ in it"],
    "data_frac=0.1,ten": ["data_frac='ten'", "above 0"],
    "seed=0,-1": ["seed=-1", SEED],
    "student.size=small,huge": ["student.size='huge'", "tiny"],
    "student.lora_rnak=4,8": ["student.lora_rnak is not a setting", "lora_rank"],
    "foo=1,2": ["foo is not a setting"],
    "student.name=${nope}": ["student.name", "nope"],
    "student.name=???": ["student.name", "missing"],
    "budget.amount=1\n2": ["budget.amount=", "control character '\\n'"],
    "store=a\tb": ["store=", "control character '\\t'"],
    "store=a\0b": ["store=", "control character '\\x00'"],
    # names
    "grid=../evil": ["grid='../evil'", NAME],
    "grid=/evil": ["grid='/evil'", NAME],
    "grid=..": ["grid='..'", NAME],
    "grid=.": ["grid='.'", NAME],
    "grid=": ["grid=''", NAME],
    "grid=a/b": ["grid='a/b'", NAME],
    "grid=a\\b": ["grid='a\\\\b'", NAME],
    "grid=.hidden": ["grid='.hidden'", NAME],
    "grid=--yes": ["grid='--yes'", NAME],
    "grid=-x": ["grid='-x'", NAME],
    "grid=a b": ["grid='a b'", NAME],
    "grid=a;b": ["grid='a;b'", NAME],
    "grid=a\nb": ["grid=", "control character"],
    "grid=a\0b": ["grid=", "control character"],
    "grid=<img onerror>": ["grid='<img onerror>'", NAME],
    f"grid={LONG}": ["grid='xxx", NAME],
    "grid=~/x": ["grid=", NAME],
    "grid=$HOME": ["grid='$HOME'", NAME],
    "grid='a|b'": ["grid='a|b'", NAME],
    "grid='%2e%2e'": ["grid='%2e%2e'", NAME],
    "student.name=../x": ["student.name='../x'", NAME],
    "student.name=": ["student.name=''", NAME],
    "student.name='a/b'": ["student.name='a/b'", NAME],
    "student.name='<b>'": ["student.name='<b>'", NAME],
    f"student.name={LONG}": ["student.name='xxx", NAME],
    "teacher.name=../x": ["teacher.name='../x'", NAME],
    "teacher.name=-x": ["teacher.name='-x'", NAME],
    "student.name=a,../b": ["student.name='../b'", NAME],
}
"""Malformed words, sweeps and names, and parts of the sentence that refuses each."""


@pytest.fixture(scope="module", autouse=True)
def one_hydra():
    """Hydra once for all inputs of this file."""
    with hydra_ready():
        yield


def words_of(line):
    return [line] if " " in line and "=" not in line.partition(" ")[2] else line.split(" ") if line.strip() else [line]


def check_sentence(line, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as refused:
        compose(words_of(line))
    text = str(refused.value)
    assert "\n" not in text and "Traceback" not in text and "hydra.cc" not in text and text.endswith(".")
    assert all(part in text for part in parts), text
    assert refused.value.__cause__ is None
    assert not os.listdir(tmp_path), "nothing is written"


@pytest.mark.parametrize("line", SETTINGS)
def test_a_malformed_setting_is_one_sentence_that_names_it(line, tmp_path, monkeypatch):
    check_sentence(line, SETTINGS[line], tmp_path, monkeypatch)


@pytest.mark.parametrize("line", WORDS)
def test_a_malformed_word_sweep_or_name_is_one_sentence_that_names_it(line, tmp_path, monkeypatch):
    check_sentence(line, WORDS[line], tmp_path, monkeypatch)


def test_the_suites_of_malformed_input_are_large():
    assert len(SETTINGS) >= 137 and len(WORDS) >= 86


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("evals.names=heldout", lambda cell: cell.evals.names == ["heldout"]),
        ("evals.names=[heldout,heldout]", lambda cell: cell.evals.names == ["heldout"]),
        ("measure.formats=fp32", lambda cell: cell.measure.formats == ["fp32"]),
        ("student.name=модель", lambda cell: cell.student.name == "модель"),
        ("+student.name=模型", lambda cell: cell.student.name == "模型"),
        ("evals.revisions.gsm8k=main", lambda cell: cell.evals.revisions == {"gsm8k": "main"}),
        ("+evals.revisions.gsm8k=main", lambda cell: cell.evals.revisions == {"gsm8k": "main"}),
        ("++evals.revisions.gsm8k=main", lambda cell: cell.evals.revisions == {"gsm8k": "main"}),
        ("corpus=jsonl corpus.path=a=b.jsonl", lambda cell: cell.corpus.path == "a=b.jsonl"),
        ("corpus=jsonl corpus.path=~/b.jsonl", lambda cell: cell.corpus.path == os.path.expanduser("~/b.jsonl")),
        ("corpus=jsonl corpus.path=дата.jsonl", lambda cell: cell.corpus.path == "дата.jsonl"),
        ("seed=9223372036854775807", lambda cell: cell.seed == 2**63 - 1),
        ("data_frac=0.30000000000000004", lambda cell: cell.data_frac == 0.3),
        ("data_frac=0.3333333333333333", lambda cell: cell.data_frac == 1 / 3),
        ("budget=epochs budget.amount=0.3", lambda cell: cell.budget.amount == 0.3),
        ("teacher=none", lambda cell: cell.teacher.kind == "none"),
        ("seed=3 seed=4", lambda cell: cell.seed == 4),
    ],
)
def test_a_word_that_can_be_meant_is_taken(line, value):
    (cell,) = compose(line.split(" ")).cells
    assert value(cell)


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("seed=3 seed=4", "seed is given twice: the last one counts"),
        ("method=sft,kd method=kd", "method is given twice: the last one counts"),
        ("method=kd,kd", "method repeats a value in its sweep; each counts once"),
        ("seed=0,1,0,1", "seed repeats 2 values in its sweep; each counts once"),
        ("data_frac=0.3,0.30000000000000004", "data_frac repeats a value in its sweep; each counts once"),
        ("measure.formats=[fp32,fp32]", "measure.formats names fp32 more than once; it counts once"),
        ("evals.names=[heldout,verified,heldout]", "evals.names names heldout more than once; it counts once"),
        (
            "experiments=data_scaling seed=7",
            "the cells of sweep.include keep their own seed; the command line sets all others",
        ),
    ],
)
def test_what_is_left_out_is_noted(line, note):
    assert compose(line.split(" ")).notes == (note,)


def test_a_setting_that_takes_any_names_is_given_whole_or_name_by_name():
    axes = {"budget.learning_rate": [0.001, 0.002]}
    for word in ("tune={axes: {budget.learning_rate: [1e-3, 2e-3]}}", "tune.axes={budget.learning_rate: [1e-3, 2e-3]}"):
        for plus in ("", "+"):
            assert compose([plus + word]).settings.tune == {"axes": axes}
    assert compose(["evals.revisions={gsm8k: main}"]).settings.evals.revisions == {"gsm8k": "main"}
    with pytest.raises(SettingsError, match=r"^method\.foo is not a setting"):
        compose(["+method.foo=1"])


def test_what_the_command_line_sets_decides_over_an_experiments_sweep():
    file = {"product": {"seed": [0, 1, 2]}, "zip": [{"data_frac": [0.1, 1.0], "train_seed": [3, 4]}]}
    cells = compose(["seed=5", "train_seed=7"], file).cells
    assert [(cell.seed, cell.data_frac, cell.train_seed) for cell in cells] == [(5, 0.1, 7), (5, 1.0, 7)]


def test_a_range_of_fractions_has_the_values_that_are_meant():
    found = [cell.data_frac for cell in compose(["data_frac=range(0.1,1.0,0.1)"]).cells]
    assert found == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_presets_are_matched_by_a_pattern():
    with hydra_ready():
        assert read_words(["method=glob(*_sft)"]).swept == {"method": ["kd_then_sft"]}


VALUES = st.lists(st.integers(0, 50), min_size=1, max_size=6)


@given(st.dictionaries(st.sampled_from(["seed", "data_seed", "train_seed", "world_seed"]), VALUES, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_sweep_is_the_product_of_its_distinct_values_in_their_order(axes):
    with hydra_ready():
        words = read_words(f"{key}={','.join(map(str, values))}" for key, values in axes.items())
    single = {key: [value] for key, value in words.values.items()}
    points = points_of({key: {**single, **words.swept}[key] for key in axes}, {}, 10_000)
    distinct = {key: list(dict.fromkeys(values)) for key, values in axes.items()}
    assert points == [dict(zip(axes, values, strict=True)) for values in itertools.product(*distinct.values())]
    assert len({tuple(point.items()) for point in points}) == len(points)
    repeated = {key for key, values in axes.items() if len(set(values)) < len(values)}
    assert {note.split()[0] for note in words.notes} == repeated


@given(st.integers(1, 999), st.integers(1, 6), st.integers(-4, 0))
@settings(max_examples=200, deadline=None)
def test_a_sum_of_decimals_is_the_decimal(step, count, power):
    unit = step * 10.0**power
    total = 0.0
    for _ in range(count):
        total += unit
    meant = float(f"{step * count}e{power}")
    assert exact(total) == meant or not math.isclose(total, meant, rel_tol=1e-15)


@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
@settings(max_examples=200, deadline=None)
def test_a_number_moves_by_a_few_units_in_its_last_place_or_not_at_all(value):
    assert abs(exact(value) - value) <= 4 * math.ulp(value)
    assert exact(exact(value)) == exact(value)


@given(st.lists(st.one_of(st.integers(-5, 5), st.booleans(), st.sampled_from(["a", "b"])), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_an_axis_keeps_the_first_of_equal_values_and_true_is_not_one(values):
    notes = []
    with hydra_ready():
        found = axis("seed", values, notes)
    kinds = dict.fromkeys((type(value) is bool, str(value)) for value in values)
    assert [(type(value) is bool, str(value)) for value in found] == list(kinds)
    assert bool(notes) == (len(found) < len(values))
