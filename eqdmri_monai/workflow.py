"""MONAI's bundle command, with options that mean what was typed.

    python -m monai.bundle run --args_file bundle/inference.yaml --dwi scan.nii.gz

By itself that command ignores an option that no config names, makes numbers and tuples of file names that look like
them, and runs names that begin with ``$`` as code. `Workflow`, which the args file names, takes file names as they were
typed, refuses options that do not exist and values of another kind than the config has, and says each error in one
sentence. Without it, `guard_command_line` in a config's ``initialize`` refuses what it cannot set right.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import ensure_tuple

from eqdmri_monai.errors import one_line_errors
from eqdmri_monai.options import (
    OF_RUN,
    TEXT,
    checked_options,
    help_text,
    is_bundle_run,
    literal,
    text_of,
    typed_options,
)


class Workflow(ConfigWorkflow):
    """MONAI's `ConfigWorkflow` for the command line; see the top of this file.

    Parameters
    ----------
    config_file : path or sequence of path
        Later ones are laid over earlier ones. Where an args file names them, they are relative to that file.
    meta_file, logging_file, init_id, run_id, final_id, tracking, workflow_type, properties_path
        As in `ConfigWorkflow`.
    override
        Options: names in the config, ``a::b`` or ``a#b`` inside of others. ``bundle_root`` is the folder above that of
        the first config where it is not given.

    Raises
    ------
    FileNotFoundError
        When there is no such config.
    ValueError
        When an option does not exist, is given twice or without a value, or its value is of another kind than that in
        the config.
    """

    def __init__(
        self,
        config_file: str | Sequence[str] | None = None,
        meta_file: str | Sequence[str] | None = None,
        logging_file: str | bool | None = None,
        init_id: str = "initialize",
        run_id: str = "run",
        final_id: str = "finalize",
        tracking: str | dict | None = None,
        workflow_type: str | None = "train",
        properties_path: str | None = None,
        **override: object,
    ):
        typed = {}
        if is_bundle_run(sys.argv):
            one_line_errors()
            for name in ("scripts", "workflows"):  # they log every option, names of scans among them
                logging.getLogger(f"monai.bundle.{name}").setLevel(logging.WARNING)
            typed = typed_options(sys.argv)
        files = config_files(config_file, typed)
        config = read_configs(files)
        if "help" in typed:
            print(help_text(files, config))
            sys.exit()
        if run_id not in config:
            names = ", ".join(map(str, files))
            raise ValueError(
                f"{names}: nothing to run; lay it over another config"
                if run_id == "run"
                else f"{run_id!r} belongs to no option; put a value that has blanks in quotes"
            )
        if isinstance(meta_file, str) and not Path(meta_file).is_file():  # MONAI goes on without
            raise FileNotFoundError(f"{meta_file}: no such file")
        if typed:
            # fire makes a=False of --noa, and MONAI drops None; what is named here and not typed is of the args file
            from_file = {k: v for k, v in override.items() if k not in typed and f"no{k}" not in typed}
            override = from_file | {k: override.get(k) for k in typed if k not in OF_RUN} | text_of(typed)
        options = checked_options(override, config, files, tracking=tracking is not None)
        for name in TEXT & (typed or options).keys():
            if options[name] is not None:
                options[name] = literal(os.fspath(options[name]))
        if files[0].parent.name == "configs":
            options.setdefault("bundle_root", literal(str(files[0].parent.parent)))
        super().__init__(
            config_file=[str(file) for file in files],
            meta_file=meta_file,
            logging_file=logging_file,
            init_id=init_id,
            run_id=run_id,
            final_id=final_id,
            tracking=tracking,
            workflow_type=workflow_type,
            properties_path=properties_path,
            **options,
        )


def guard_command_line() -> None:
    """Refuse on a plain `monai.bundle run`, without `Workflow`, what that command would ignore or take for code.

    For a config's ``initialize``. Errors are said in one sentence from here on. Elsewhere than on that command line it
    does nothing.

    Raises
    ------
    ValueError
        When an option does not exist, is given twice or without a value, its value is of another kind than that in the
        config, or is a file name that the command would change or run.
    """
    if not is_bundle_run(sys.argv):
        return
    one_line_errors()
    typed = typed_options(sys.argv)
    if "config_file" not in typed or "workflow_name" in typed or "args_file" in typed:
        return
    given = {name: True if word is None else DefaultParseValue(word) for name, word in typed.items()}
    files = config_files(given["config_file"], typed)
    options = {name: value for name, value in given.items() if name not in OF_RUN}
    checked = checked_options(options | text_of(typed), read_configs(files), files, tracking="tracking" in typed)
    for name, value in checked.items():
        if name in TEXT and (given[name] != value or value[0] in "$@%" or "#" in value):
            raise ValueError(
                f"--{name} {value!r}: MONAI takes this name for something else; add --workflow_name "
                "eqdmri_monai.workflow.Workflow, or choose another name"
            )
        if given[name] != value:
            raise ValueError(f"--{name} {typed[name]}: write {value!r}")


def config_files(config_file: object, typed: Mapping[str, str | None]) -> list[Path]:
    """Return the files that `config_file` names: one, several, or several with commas between them.

    Raises
    ------
    FileNotFoundError
        When one does not exist.
    ValueError
        When none is named.
    """
    if not config_file:
        raise ValueError("no config is named; --config_file bundle/configs/inference.yaml names one")
    if isinstance(config_file, str) and not Path(config_file).is_file():
        config_file = config_file.split(",")
    of_args_file = "args_file" in typed and "config_file" not in typed
    folder = Path(str(typed["args_file"])).parent if of_args_file else Path()
    files = [folder / str(file) for file in ensure_tuple(config_file)]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such config")
    return files


def read_configs(files: Sequence[Path]) -> dict:
    """Read configs, later ones laid over earlier ones.

    Raises
    ------
    ValueError
        When one is no YAML or JSON file with names in it.
    """
    for file in files:
        try:
            content = ConfigParser.load_config_file(file)
        except (yaml.YAMLError, ValueError, OSError) as e:
            raise ValueError(f"{file}: not a config ({' '.join(str(e).split())})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{file}: not a config; it has no names")
    return ConfigParser.load_config_files([str(file) for file in files])
