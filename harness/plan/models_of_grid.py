"""The models of a grid: folders whose files are whole, and one model under each name.

check_models(cells)    # SettingsError: student.name='tiny' ... two models have this name
"""

from collections.abc import Iterable, Iterator

from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.config.model import Model
from harness.models.files import local_folder
from harness.models.folder_checks import check_folder
from harness.models.kinds import HubModel, model_of

WHICH = ("kind", "path", "revision", "served_model")
"""Settings that say whose weights they are. Models of one name that differ in others are told apart by the labels of
arms: `mini[size=large]`."""


def check_models(cells: Iterable[Cell]) -> None:
    """Raise SettingsError for a folder that certainly holds no model, and for two models with one name."""
    seen: dict[str, None] = {}
    named: dict[tuple[str, str], Model] = {}
    for model in _models(cells):
        if repr(model) in seen:
            continue
        seen[repr(model)] = None
        _check_files(model)
        other = named.setdefault((model.setting, model.name), model)
        for field in WHICH:
            one, two = getattr(other, field, None), getattr(model, field, None)
            if one != two:
                reason = f"two models have this name ({field}={one}, {field}={two}), and no table could tell them apart"
                way_out = f"give each its own {model.setting}.name, paired in a file's `sweep.zip`"
                raise refuse(f"{model.setting}.name", model.name, reason, way_out)


def _models(cells: Iterable[Cell]) -> Iterator[Model]:
    for cell in cells:
        yield cell.student
        # a teacher that no arm uses may be anything
        if any(phase.uses_teacher and phase.teacher == "given" for phase in cell.method.phases()):
            yield from (one.teacher for one in cell.with_each_teacher())


def _check_files(settings: Model) -> None:
    model = model_of(settings)
    if isinstance(model, HubModel) and (folder := local_folder(model.path)) is not None:
        check_folder(settings.setting, model, folder)
