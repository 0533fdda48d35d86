"""docs/commands.md and the command line agree: commands, arguments, flags, defaults, choices."""

import re

import click
import pytest

from probesweep.commands.main import probesweep
from tests.test_docs import ROOT, code_spans, commands, flags_of, read

PAGE = ROOT / "docs/commands.md"
# Flags of every command, which the page names once.
SHARED = set.intersection(*commands().values())


def normal(flag: str) -> str:
    """A flag as `flags_of` returns it."""
    return flag.replace("-", "_")


def sections(page: str) -> dict[str, str]:
    """The text below every heading of the second level."""
    parts = re.split(r"(?m)^## (.+)$", page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> dict[tuple[str, ...], tuple[str, str]]:
    """Flags in the first cell of a table's rows -> default, meaning."""
    tables = re.findall(r"(?m)^\| (`-.+?) \| (.+?) \| (.+) \|$", section)
    return {tuple(code_spans(flags)): (default, meaning) for flags, default, meaning in tables}


def default_of(option: click.Option) -> str | None:
    """The default as the page must give it; None if the page is free to describe it."""
    if option.required:
        return "required"
    if option.is_flag:
        return "off"
    value = option.get_default(click.Context(click.Command("any")), call=False)
    value = value[0] if isinstance(value, tuple) and value else value
    return str(value) if isinstance(value, (str, int, float)) else None


def check_command(name: str, command: click.Command, section: str) -> list[str]:
    """What a section lacks or gets wrong about its command."""
    arguments = [item for item in command.params if isinstance(item, click.Argument)]
    usage = " ".join(["probesweep", name, *(item.metavar or str(item.name).upper() for item in arguments)])
    wrong = [] if f"`{usage}`" in section else [f"does not say `{usage}`"]
    options = {
        tuple(item.opts): item
        for item in command.params
        if isinstance(item, click.Option) and not SHARED & {*map(normal, item.opts)}
    }
    table = rows(section)
    wrong += [f"lacks {', '.join(flags)}" for flags in options.keys() - table.keys()]
    wrong += [f"has {', '.join(flags)}" for flags in table.keys() - options.keys()]
    for flags in options.keys() & table.keys():
        (default, meaning), expected, kind = table[flags], default_of(options[flags]), options[flags].type
        if expected is None and default in ("off", "required"):
            wrong.append(f"{flags[0]} takes a value and is optional, so {default} is not its default")
        if expected is not None and default.strip("`") != expected:
            wrong.append(f"{flags[0]} is {expected} by default, not {default}")
        if isinstance(kind, click.Choice) and not {*kind.choices} <= {*code_spans(default), *code_spans(meaning)}:
            wrong.append(f"{flags[0]} can be {', '.join(kind.choices)}")
    return wrong


def check_spans(name: str, section: str) -> list[str]:
    """Flags in code spans that the section's command, or the command named in the span, does not take."""
    known, wrong = commands(), []
    for span in code_spans(section):
        words = span.removeprefix("probesweep ").split()
        owner = words.pop(0) if words and words[0] in known else name
        allowed = known.get(owner) or set().union(*known.values())
        for flag in (word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)):
            if normal(flag) not in allowed:
                wrong.append(f"`{span}` names a flag that {owner} does not take")
    return wrong


def check(page: str) -> dict[str, list[str]]:
    """Everything that is wrong with the page, by section."""
    found, known = sections(page), probesweep.commands
    wrong = {name: ["has no section"] for name in known.keys() - found.keys()}
    for name, section in found.items():
        lines = check_spans(name, section) + (check_command(name, known[name], section) if name in known else [])
        if lines:
            wrong[name] = lines
    return wrong


def test_the_page_agrees_with_the_command_line():
    assert check(read(PAGE)) == {}


def test_flags_of_every_command_are_listed_once():
    section = sections(read(PAGE))["Every command"]
    assert {normal(span) for span in code_spans(section) if re.match(r"--?[a-z]", span)} == SHARED
    assert flags_of(probesweep) - SHARED == {"__version"}
    assert "`probesweep --version`" in section


def test_the_contents_name_every_command():
    contents = re.findall(r"\[`(\w+)`\]\(#(\w+)\)", read(PAGE).partition("\n## ")[0])
    assert all(name == anchor for name, anchor in contents)
    assert sorted(name for name, _ in contents) == sorted(probesweep.commands)


@pytest.mark.parametrize(
    ("command", "old", "new", "what"),
    [
        ("verify", "## verify", "## check", "has no section"),
        ("run", "| `--init` | off", "| `--such` | off", "lacks --init"),
        ("run", "| `--init` | off", "| `--such` | off", "has --such"),
        ("train", "`--alphas`, `--alpha_grid` |", "`--alphas` |", "lacks --alphas, --alpha_grid"),
        ("train", "| `--n_folds` | 5 |", "| `--n_folds` | 10 |", "--n_folds is 5 by default, not 10"),
        ("train", "| `--join` | none |", "| `--join` | off |", "takes a value and is optional"),
        ("train", "`mlflow` or `tensorboard`: see", "`mlflow`: see", "--track can be wandb, mlflow, tensorboard"),
        ("pull", "`probesweep pull REPOSITORY PATH`", "`probesweep pull PATH`", "does not say `probesweep pull REPO"),
        ("extract", "keep for `train --groups`", "keep for `--groups`", "`--groups` names a flag that extract does"),
        ("predict", "with `train --k_fold`", "with `train --fold`", "`train --fold` names a flag that train does"),
    ],
)
def test_differences_are_noticed(command, old, new, what):
    page = read(PAGE)
    assert page.count(old) == 1
    assert what in " ".join(check(page.replace(old, new))[command])
