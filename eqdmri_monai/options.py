"""Options of a command line: what was typed, and whether a config has such a thing."""

import difflib
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate

import torch
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

# Options that are names of files, or names in a file: never numbers, never code.
TEXT = frozenset(
    "dwi dicom datalist bids section bval bvec mrtrix brain_mask tractogram reference bundle_root dataset_dir "
    "output_dir ckpt_dir weights resume cache statistics_file".split()
)
# What `monai.bundle run` itself takes.
OF_RUN = (
    "args_file", "config_file", "meta_file", "logging_file", "tracking", "run_id", "init_id", "final_id",
    "workflow_name", "workflow_type", "properties_path",
)  # fmt: skip


def is_bundle_run(argv: Sequence[str]) -> bool:
    """Whether this is the command line of `monai.bundle run`."""
    return bool(argv) and Path(argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py") and argv[1:2] == ["run"]


def typed_options(argv: Sequence[str]) -> dict[str, str | None]:
    """Return the options on the command line of `monai.bundle run`, as typed; None for one without a value.

    Raises
    ------
    ValueError
        When an option is given twice, or a name is missing.
    """
    typed: dict[str, str | None] = {}
    words = list(argv[2:])
    while words:
        word = words.pop(0)
        if not is_flag(word):
            continue  # run_id, or lost
        name, has_value, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not has_value:
            value = words.pop(0) if words and not is_flag(words[0]) else None
        if name in typed:
            raise ValueError(f"--{name} is given twice" + "; many scans are a list, --datalist" * (name == "dwi"))
        if name in TEXT and not value:
            raise ValueError(f"--{name} has no value")
        typed[name] = value
    return typed


def is_flag(word: str) -> bool:
    """Whether fire takes a word for the name of an option."""
    return word.startswith("--") or re.match("-[a-zA-Z]", word) is not None


def text_of(typed: Mapping[str, str | None]) -> dict[str, str]:
    """Return those of the typed options that are names, as they were typed."""
    return {name: typed[name] for name in TEXT & typed.keys()}


def literal(text: str) -> str:
    """Return an expression that MONAI's config evaluates to this very text, whatever is in it."""
    code = ascii(text)
    for sign in "#@%":  # they have a meaning for the config even inside a string of an expression
        code = code.replace(sign, f"\\x{ord(sign):02x}")
    return f"${code}"


def help_text(files: Sequence[Path], config: Mapping) -> str:
    """Return the options that configs begin with, up to the first part that is built of others, and their comments."""
    shown = {}
    for file in files:
        for name, value, comment in re.findall(r"^(\w+):(.*?)(#.*)?$", file.read_text(encoding="utf-8"), re.M):
            if name != "imports" and (not value.strip() or value.strip()[0] == "{"):
                break
            shown[name] = f"--{name}{value.rstrip()}  {comment}".rstrip()
    return "\n".join(line for name, line in shown.items() if name != "imports" and name in config)


def checked_options(options: Mapping, config: Mapping, files: Sequence[Path], *, tracking: bool) -> dict[str, object]:
    """Return options whose names exist, with values of the kind that the config has.

    Raises
    ------
    ValueError
        Else, with the nearest name that exists.
    """
    of_tracking = DEFAULT_EXP_MGMT_SETTINGS["mlflow"]["configs"].keys() if tracking else ()
    used = {name for text in texts([config, options]) for name in re.findall(r"@(\w+)", text)}
    checked = {}
    for name, value in options.items():
        if name in of_tracking or (name in used and name not in config):
            checked[name] = value
        else:
            check_name(name, config, files)
            checked[name] = value if name in TEXT else of_kind(name, value, ConfigParser(dict(config)).get(name))
        if name == "device":
            check_device(value)
    return checked


def check_device(value: object) -> None:
    """Refuse a device that is not here.

    Raises
    ------
    ValueError
    """
    if isinstance(value, str) and is_expression(value):
        return
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, TypeError, ValueError) as e:
        why = str(e).splitlines()[0].rstrip(".")
        raise ValueError(f"--device {value}: no such device here ({why}); cpu is always there") from None


def check_name(option: str, config: Mapping, files: Sequence[Path]) -> None:
    """Refuse the name of an option that does not exist: no name in the config, nor an argument of what it builds.

    Raises
    ------
    ValueError
        With the nearest name that exists.
    """
    node, path = config, []
    for part in re.split("::|#", option):
        names = names_in(node)
        if names is None:
            return
        if part not in names:
            nearest = nearest_name(part, names, path, config)
            there = ", ".join(sorted(names - ConfigComponent.non_arg_keys)) or "no parts"
            hint = f"{'#'.join(path)} has {there}" if path else "--help lists those that are there"
            hint = f"did you mean --{nearest}?" if nearest else hint
            raise ValueError(f"--{option}: no such option in {', '.join(map(str, files))}; {hint}")
        path.append(part)
        node = node[int(part)] if isinstance(node, list) else node.get(part)


def names_in(node: object) -> set[str] | None:
    """Return what can be named inside a part of a config; None where that cannot be known."""
    if isinstance(node, list):
        return {str(index) for index in range(len(node))}
    if not isinstance(node, Mapping):
        return set()
    names = set(node)
    if "_target_" not in node:
        return names
    component = locate(ConfigComponent(node, locator=ComponentLocator()).resolve_module_name())
    if not callable(component):
        return None
    parameters = inspect.signature(component).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return None
    return names | {p.name for p in parameters} | ConfigComponent.non_arg_keys


def nearest_name(part: str, names: set[str], path: Sequence[str], config: Mapping) -> str | None:
    """Return the nearest name beside a wrong one; else where in the config the very name is; else None."""
    near = difflib.get_close_matches(part, sorted(names) + ([] if path else list(OF_RUN)), n=1)
    if near:
        return "#".join([*path, *near])
    return None if path else next((name for name in nested_names(config) if name.split("#")[-1] == part), None)


def nested_names(node: object, prefix: str = "") -> Iterator[str]:
    """Yield the names of all parts of a config, with # between them."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield f"{prefix}{key}"
        yield from nested_names(value, f"{prefix}{key}#")


def texts(node: object) -> Iterator[str]:
    """Yield all strings in a part of a config."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping | list | tuple):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from texts(value)


def of_kind(name: str, value: object, default: object) -> object:
    """Return a value of the kind of `default`; one number stands for all where numbers are needed.

    Any value will do in place of text or nothing, and an expression in place of anything.

    Raises
    ------
    ValueError
        When the value is of another kind.
    """
    if isinstance(value, str) and is_expression(value):
        return value
    if isinstance(default, bool):
        value = {"true": True, "false": False}.get(str(value).lower(), value)
        if not isinstance(value, bool):
            raise ValueError(f"--{name} must be True or False, not {value!r}")
    elif is_number(default, like=default) and not is_number(value, like=default):
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"--{name} must be {kind}, such as {default}, not {value!r}")
    elif isinstance(default, list) and default and all(is_number(x, like=x) for x in default):
        like = default[0] if all(isinstance(x, int) for x in default) else 1.0
        value = [value] * len(default) if is_number(value, like=like) else value
        fits = isinstance(value, list | tuple) and len(value) == len(default)
        if not fits or not all(is_number(x, like=like) for x in value):
            example = f"[{','.join(map(str, default))}]"
            kind = "whole numbers" if isinstance(like, int) else "numbers"
            raise ValueError(f"--{name} must be {len(default)} {kind}, such as {example}, not {value!r}")
    elif isinstance(default, Mapping | list) and not isinstance(value, Mapping | list | tuple | None):
        raise ValueError(f"--{name} is a part of the config and cannot be {value!r}; --{name}#… changes what is in it")
    return value


def is_expression(value: str) -> bool:
    """Whether a value is a matter of the config: Python, a reference, or a part of a file."""
    return value[:1] in ("$", "@", "%")


def is_number(value: object, *, like: object) -> bool:
    """Whether a value is a finite number, and a whole one where `like` is."""
    kinds = int if isinstance(like, int) else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
