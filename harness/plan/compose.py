"""Compose: from words on a command line, or values in a notebook, to cells.

Presets come from `conf/`, experiments from `experiments/`, methods and corpora from their dataclasses.
Hydra composes once per choice of config groups; swept values are then set on copies, so a thousand
cells are composed in a second or two. All input errors leave here as `SettingsError`.

    composed = compose(["data_frac=0.01,0.1", "method=sft,kd"]); composed.cells, composed.settings
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.cell import Cell, Settings
from harness.config.checks import SettingsError, check_choice, check_fraction, check_no_secret, refuse
from harness.config.cluster import DEFAULTS, Cluster
from harness.config.cluster_file import read_cluster_file
from harness.config.model import Member, Teacher, name_of_members
from harness.data.corpora import corpus_names, load_corpus
from harness.methods import load_method, method_names
from harness.plan.sweep import in_replicates, points_of, swept_keys
from harness.plan.words import CELL_FIELDS, is_free, is_group, read_words
from harness.stand_ins import ensure

CONFIG = "config"
SCALES = ("mini", "paper", "rehearsal")
WANTED = {
    "converted to Integer": "it is a whole number",
    "converted to Float": "it is a number",
    "not a valid bool": "it is true or false",
    "to string": "it is a text",
    "is not a subclass of": "it has settings of its own, set as {key}.NAME=VALUE",
    "is not a ListConfig": "it takes a list, e.g. {key}=[a,b]",
    "is not Optional": "it needs a value",
}
"""What a setting takes, by a part of what OmegaConf says of a value that it does not."""
FRACTION_HINT = "a fraction is a number above 0 and at most 1; try data_frac=0.01"


@dataclass(frozen=True)
class Composed:
    """The cells of a command line, and the settings of the run itself."""

    cells: tuple[Cell, ...]
    """Every point of the grid."""
    settings: Settings
    """The settings of the first point, with those of the run."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the words were read, e.g. that a value was given twice."""
    points: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """The swept values of each cell; empty where cells and points differ, as in a rehearsal."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What the command line sets to one value."""


def presets_folder() -> Path:
    """The folder with `conf/` and `experiments/`: the checkout's, or the installed package's copy.

    Raises SettingsError where neither is there.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here.parent, here / "_presets"):
        if (folder / "conf" / f"{CONFIG}.yaml").is_file():
            return folder
    raise SettingsError("the presets (conf/config.yaml) are missing; install the project with `pip install -e .`")


@functools.cache
def register() -> None:
    """Tell Hydra the schema, and which methods, corpora, experiments and clusters exist; safe to call again.

    Only names are registered. A preset is read, or its module imported, when a config that names it is composed.
    Raises SettingsError where the presets are missing.
    """
    OmegaConf.register_new_resolver("checkout", lambda path: str(presets_folder() / path), replace=True)
    store = ConfigStore.instance()
    # Hydra copies the store again and again; `_Shared` says why and why it need not
    store.repo = _Shared(store.repo)
    store.store(name="settings", node=Settings)
    for name in method_names():
        _offer("method", name, functools.partial(load_method, name))
    for name in corpus_names():
        _offer("corpus", name, functools.partial(load_corpus, name))
    for group in ("experiments", "experiments/paper"):
        for path in sorted((presets_folder() / group).glob("*.yaml")):
            _offer(group, path.stem, functools.partial(OmegaConf.load, path), package="_global_")
    for path in sorted((presets_folder() / "slurm").glob("*.yaml")):
        _offer("slurm", path.stem, functools.partial(_cluster, path))


SECRETS = "leave it out, or name its environment variable where a setting takes one (teacher.api_key_env)"


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Hydra initialised on our presets; inside a Hydra program, that program's own initialisation.

    Raises SettingsError where the presets are missing.
    """
    register()
    # Hydra refuses a second initialisation
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(str(presets_folder() / "conf"), version_base="1.3"):
        yield


def compose(arguments: Sequence[str], sweep: Mapping[str, Any] | None = None) -> Composed:
    """All cells of the overrides `arguments` (commas and ranges sweep) and of a sweep from a file.

    Raises SettingsError for unknown names and keys, values a setting cannot take or that hold a secret, a swept
    setting of the run, and more cells than `most_cells`.
    """
    for word in arguments:
        name, _, value = word.partition("=")
        check_no_secret(name.lstrip("+~"), value, SECRETS)
    check_no_secret("sweep", str(sweep or ""), SECRETS)
    with hydra_ready(), plain_errors():
        words = read_words(arguments, _most_cells(arguments))
        fixed = _at_scale(words.fixed)
        chosen = [f"{key}={values[0]}" for key, values in words.swept.items() if is_group(key)]
        config = hydra_compose(CONFIG, [*fixed, *chosen])
        # a kind of model may need what is swept, as `student=hf` needs a path
        for key, values in words.swept.items():
            if not is_group(key):
                OmegaConf.update(config, key, values[0], force_add=is_free(key))
        first = _settings(config)
        if first.slurm is not None:
            Cluster.of(first.slurm)
        notes = list(words.notes)
        parts = {**first.sweep, **(sweep or {})}
        # what the command line sets decides over what an experiment's file sweeps, one value as well as several
        single = {key: [value] for key, value in words.values.items() if key in swept_keys(parts)}
        points = points_of({**single, **words.swept}, parts, first.most_cells, notes)
        points = in_replicates(points, first.draws, first.first_draw)
        if len(points) > first.most_cells:
            way_out = f"sweep fewer values, or set most_cells={len(points)}"
            raise refuse("most_cells", first.most_cells, f"the grid has {len(points):,} cells", way_out)
        composer = _Composer(fixed)
        composer.check_presets_beside(points)
        cells = tuple(composer.cell(point) for point in points)
    if not cells:
        raise SettingsError("the grid is empty: `exclude` removed every cell; loosen it")
    if first.scale == "rehearsal":
        return _rehearsal(cells, first, tuple(notes))
    return Composed(cells, first, tuple(notes), tuple(points), words.values)


def sweeping_word(arguments: Sequence[str]) -> str | None:
    """The first word that sweeps, as it was typed; None without any. Raises SettingsError as `compose`."""
    with hydra_ready(), plain_errors():
        return read_words(arguments, _most_cells(arguments)).first_sweep or None


def _most_cells(arguments: Sequence[str]) -> int:
    """The limit of cells that the words ask for, known before any other word is read."""
    given = [word.partition("=")[2] for word in arguments if str(word).lstrip("+").startswith("most_cells=")]
    return int(given[-1]) if given and given[-1].isdigit() else Settings.most_cells


def _rehearsal(cells: Sequence[Cell], settings: Settings, notes: tuple[str, ...]) -> Composed:
    """The cells with stand-ins, which are made in the store's folder where they are not there yet."""
    from harness.plan.rehearsal import rehearsed

    folder = ensure(Path(settings.store) / "rehearsal")
    name = str(settings.experiments).removesuffix("_paper")
    return Composed(rehearsed(cells, folder), replace(settings, experiments=f"{name}_rehearsal"), notes)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise Hydra's and OmegaConf's errors as SettingsError: one sentence with the field and what is allowed."""
    try:
        yield
    # a sentence already, but raised where OmegaConf makes objects
    except SettingsError as error:
        raise SettingsError(str(error)) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # without its causes: the sentence has what they say, and Hydra's frames would bury it in a notebook
        raise SettingsError(_sentence(error)) from None


class _Shared(dict[str, Any]):
    """The nodes of Hydra's ConfigStore, not copied with it.

    Hydra 1.3 deep-copies all of them whenever it composes a config or lists a group: a hundred times for one `--help`.
    Sharing them is safe, because `ConfigStore.load` copies the node that it returns.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


class _Preset(ConfigNode):
    """An option of a config group whose node is made at first use."""

    def __init__(self, group: str, name: str, package: str | None, read: Callable[[], Any]) -> None:
        self.name, self.group, self.package, self.provider = f"{name}.yaml", group, package, None
        self._node = functools.cache(lambda: OmegaConf.structured(read()))

    @functools.cached_property
    def node(self) -> DictConfig:  # type: ignore[override]
        """What Hydra composes; Hydra asks a shallow copy of this object, and all copies share `_node`."""
        return self._node()


def _offer(group: str, name: str, read: Callable[[], Any], package: str | None = None) -> None:
    """Make a preset an option of a config group."""
    options: dict[str, Any] = ConfigStore.instance().repo
    for part in group.split("/"):
        options = options.setdefault(part, {})
    preset = _Preset(group, name, package, read)
    options[preset.name] = preset


def _cluster(path: Path) -> Any:
    """A cluster's file over the defaults, so that the command line may set what the file leaves out."""
    return OmegaConf.merge({"name": path.stem} | DEFAULTS, read_cluster_file(path))


def _sentence(error: BaseException) -> str:
    """The refusal behind an error of Hydra or OmegaConf, its causes looked through."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    # a refusal may lie several causes deep; it says more than the error that OmegaConf made of it
    for cause in causes:
        if isinstance(cause, SettingsError):
            return str(cause)
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, name = cause.missing_cfg_file.rpartition("/")
            options = ", ".join(sorted(cause.options or [])) or "none"
            return str(refuse(group or "config", name, f"allowed are {options}"))
    for cause in causes:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return _refused_key(cause)
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith("See http"))


def _refused_key(error: OmegaConfBaseException) -> str:
    """An unknown key with its siblings, or a value the field's type cannot take."""
    if isinstance(error, AttributeError | KeyError) and is_dataclass(error.object_type):
        known = ", ".join(field.name for field in fields(error.object_type))
        return f"{error.full_key} is not a setting; {error.object_type.__name__.lower()} has {known or 'none'}."
    # OmegaConf names the type alone, and a fraction has bounds too
    if error.full_key == "data_frac":
        return str(refuse("data_frac", error.value, FRACTION_HINT))
    key, said = str(error.full_key), str(error).splitlines()[0]
    if "is not in struct" in said:
        return f"{key} is not a setting."
    why = next((words.format(key=key) for part, words in WANTED.items() if part in said), said)
    return str(refuse(key, error.value, why))


class _Composer:
    """Composes cells: Hydra once per choice of groups and nested values, plain copies for the rest."""

    def __init__(self, fixed: list[str]) -> None:
        self.fixed = fixed
        self.configs: dict[str, DictConfig] = {}
        self.cells: dict[str, dict[str, Any]] = {}
        self.typed: dict[str, Any] = {}
        self.plain: DictConfig | None = None
        """One config on which plain values are typed, one after the other."""

    def cell(self, point: Mapping[str, Any]) -> Cell:
        # a group changes what is composed, and a nested value is set on a copy of the config; a plain field of Cell
        # needs neither, so a sweep over seeds composes once
        groups = {key: value for key, value in point.items() if is_group(key)}
        nested = {key: value for key, value in point.items() if key not in groups and key not in CELL_FIELDS}
        values = {
            key: self.value(key, value) for key, value in point.items() if key not in groups and key not in nested
        }
        return Cell(**{**self.fields(groups, nested), **values})

    def fields(self, groups: Mapping[str, Any], nested: Mapping[str, Any]) -> dict[str, Any]:
        """The cell's fields for one choice of groups and one set of nested values."""
        # repr, because values may be lists, which cannot be keys of a dict
        name = repr((groups, nested))
        if name not in self.cells:
            config = self.config(groups)
            for key, value in nested.items():
                # not added where it is absent: an unknown key is refused with its siblings
                OmegaConf.update(config, key, value, force_add=is_free(key))
            settings = _settings(config)
            self.cells[name] = {field: getattr(settings, field) for field in CELL_FIELDS}
        return self.cells[name]

    def check_presets_beside(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Raise SettingsError where presets are crossed with a setting in which they differ: `teacher=weak,strong` with
        `teacher.size=small,large` would have a strong teacher of the weak one's size."""
        swept: dict[str, dict[str, None]] = {}
        for point in points:
            for key, value in point.items():
                swept.setdefault(key, {})[repr(value)] = None
        for key in [key for key, values in swept.items() if len(values) > 1 and not is_group(key)]:
            group = key.partition(".")[0]
            # a method's and a corpus's own settings tell its arms apart, whatever their defaults are
            if group in ("method", "corpus") or not is_group(group) or len(swept.get(group, ())) < 2:
                continue
            pairs = {(repr(point[key]), repr(point[group])) for point in points if {group, key} <= point.keys()}
            values, presets_of = (Counter(pair[place] for pair in pairs) for place in (0, 1))
            crossed = max(values.values(), default=0) > 1 < max(presets_of.values(), default=0)
            presets = dict.fromkeys(point[group] for point in points if group in point)
            preset_values = {repr(OmegaConf.select(self.config({group: preset}), key)) for preset in presets}
            if crossed and len(preset_values) > 1:
                why = f"it is crossed with {group}={','.join(map(str, presets))}, presets that differ in it"
                way_out = "sweep one of the two, or pair them in a file's sweep.zip"
                raise refuse(key, [point[key] for point in points if key in point][:4], why, way_out)

    def config(self, groups: Mapping[str, Any]) -> DictConfig:
        """A composed config of one choice of groups, to be changed freely."""
        name = repr(groups)
        if name not in self.configs:
            overrides = self.fixed + [f"{key}={value}" for key, value in groups.items()]
            self.configs[name] = hydra_compose(CONFIG, overrides)
        return self.configs[name].copy()

    def value(self, key: str, value: Any) -> Any:
        """The value as the schema types it (`1` is the fraction 1.0)."""
        name = repr((key, value))
        if name not in self.typed:
            if self.plain is None:
                self.plain = self.config({})
            OmegaConf.update(self.plain, key, value, force_add=False)
            self.typed[name] = self.plain[key]
        return self.typed[name]


def _settings(config: DictConfig) -> Settings:
    if OmegaConf.is_missing(config, "method"):
        raise refuse("method", None, f"allowed are {', '.join(method_names())}")
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, Settings)
    if settings.teacher.several:
        settings.teacher = _with_members(settings.teacher)
    return settings


def _with_members(teacher: Teacher) -> Teacher:
    """A teacher of several with its entries as members, named after them unless it was given a name."""
    members = [_member(f"teacher.members[{place}]", entry) for place, entry in enumerate(teacher.members)]
    named = teacher.name if teacher.name != "several" or not members else name_of_members(members, teacher.combine)
    return replace(teacher, name=named, members=members)


def _member(where: str, entry: Any) -> Member:
    """The member that an entry describes: a preset, its overrides, and a share or sources."""
    if not isinstance(entry, Mapping):
        raise refuse(where, entry, "an entry names a preset", "write e.g. {preset: weak, share: 0.5}")
    own, preset = dict(entry), entry.get("preset")
    presets = tuple(
        path.stem
        for path in sorted((presets_folder() / "conf" / "teacher").glob("*.yaml"))
        if path.stem not in ("none", "several")
    )
    check_choice(f"{where}.preset", preset, presets)
    given = {name: own.pop(name, None) for name in ("preset", "share", "sources")}
    allowed = [one.name for one in fields(Teacher) if one.name not in ("members", "combine")]
    for name in own:
        if name not in allowed:
            raise refuse(f"{where}.{name}", own[name], f"allowed are preset, share, sources, {', '.join(allowed)}")
    check_fraction(f"{where}.share", 1 if given["share"] is None else given["share"])
    sources = given["sources"]
    if sources is not None and not (isinstance(sources, list) and sources and all(isinstance(s, str) for s in sources)):
        raise refuse(f"{where}.sources", sources, "it is a list of the corpus's sources", "write e.g. sources: [add]")
    config = _teacher_preset(str(preset)).copy()
    for name, value in own.items():
        OmegaConf.update(config, f"teacher.{name}", value, force_add=False)
    found = OmegaConf.to_object(config.teacher)
    assert isinstance(found, Teacher)
    return Member(found, given["share"], sources)


@functools.cache
def _teacher_preset(name: str) -> DictConfig:
    """A composed config with one preset of conf/teacher; presets do not change while a program runs."""
    return hydra_compose(CONFIG, [f"teacher={name}"])


def _at_scale(fixed: Mapping[str, str]) -> list[str]:
    """The overrides; with `scale=paper` or `rehearsal`, the experiment's file for real models in place of the
    miniature's."""
    scale, slug = (fixed[key].partition("=")[2] if key in fixed else None for key in ("scale", "experiments"))
    check_choice("scale", scale or "mini", SCALES)
    if scale in (None, "mini"):
        return list(fixed.values())
    there = sorted(path.stem for path in (presets_folder() / "experiments" / "paper").glob("*.yaml"))
    if slug not in there:
        raise refuse("experiments", slug, f"scale={scale} needs one of {', '.join(there)}")
    return [f"experiments=paper/{slug}" if key == "experiments" else word for key, word in fixed.items()]
