"""lm-eval's command line, with one more model and more tasks."""

from __future__ import annotations

from argparse import Namespace

from lm_eval._cli import HarnessCLI
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.utils import setup_logging

import ahn.evaluation.lm  # noqa: F401  (registers the model)
from ahn.evaluation.tasks import TASKS

PATHS = "include_path"  # lm-eval's option for folders of tasks


def main() -> None:
    """Run `sys.argv` as `lm_eval` does; this package's tasks need no `--include_path`."""
    setup_logging()
    command = HarnessCLI()
    arguments = command.parse_args()
    if PATHS in arguments:
        setattr(arguments, PATHS, _task_folders(arguments))
    command.execute(arguments)


def _task_folders(arguments: Namespace) -> list[str]:
    """This package's tasks, then those of `--include_path` or of the file that `--config` names."""
    folders, file = getattr(arguments, PATHS), getattr(arguments, "config", None)
    if folders is None and file:
        folders = EvaluatorConfig.load_yaml_config(file).get(PATHS)
    others = [] if folders is None else [folders] if isinstance(folders, str) else list(folders)
    return [str(TASKS), *others]
