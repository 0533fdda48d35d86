"""The pages do what they say: their commands run, their links lead somewhere, what they name is there."""

import functools
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from benchmarks.shared.measure import Spread
from probesweep.commands.main import probesweep

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
# Their Python continues from the results that the tutorial leaves. README's commands are the tutorial's, and run.sh.
CONTINUING = [README, *(ROOT / "docs" / name for name in ("python.md", "results.md", "directions.md"))]
WITH_COMMANDS = [
    page for page in GUIDES if page not in CONTINUING and re.search(r"(?m)^```(bash|python)$", page.read_text())
]
PAGES = [README, ROOT / "CHANGELOG.md", *GUIDES]
BENCHMARKS = ROOT / "docs/benchmarks.md"
PACKAGES = ("activation_store", "gpu_probes", "probesweep")
ARCHITECTURE = ROOT / "docs/architecture.md"
RUNNERS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
# The commands of the scripts that this package replaces, and of this one.
OLD_COMMANDS = {"extract_activations.py": "extract", "train_probe.py": "train"}
EXPECTED_FAILURE = "# exits 2"

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Block(NamedTuple):
    """A fenced block: its tag, its content, and the line where it begins."""

    tag: str
    content: str
    line: int


@functools.cache
def read(page: Path) -> str:
    return page.read_text()


def blocks(page: Path) -> list[Block]:
    found, opened = [], None
    for number, line in enumerate(read(page).splitlines(), 1):
        if opened is None and line.lstrip().startswith("```"):
            opened = Block(line.strip().removeprefix("```").split(" ")[0], "", number)
        elif opened is not None and line.strip() == "```":
            found.append(opened)
            opened = None
        elif opened is not None:
            opened = opened._replace(content=f"{opened.content}{line}\n")
    assert opened is None, f"{page.name}: the block of line {opened} has no end"
    return found


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"(?ms)^\s*```.*?^\s*```$", "", read(page))


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


# Blocks


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_blocks_run_one_after_another(page, tmp_path):
    runnable = [block for block in blocks(page) if block.tag in RUNNERS]
    is_tutorial = page.name == "tutorial.md"
    if is_tutorial:
        for other in CONTINUING:
            # The blocks of a page continue from each other.
            lines = "".join(block.content for block in blocks(other) if block.tag == "python")
            runnable.append(Block("python", lines, 0))
    shutil.copytree(ROOT / "data", tmp_path / "data")
    found_first = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": found_first, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    printed = []
    for block in runnable:
        done = subprocess.run(
            [*RUNNERS[block.tag], block.content], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        expected = 2 if EXPECTED_FAILURE in block.content else 0
        output = f"{page.name}, line {block.line}:\n{block.content}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == expected, output
        printed += done.stdout.splitlines()
    if is_tutorial:
        [shown] = [block for block in blocks(README) if block.tag == "text"]
        check_lines(shown.content.splitlines(), printed)
        check_files(tmp_path / "results/smollm2/probes")


def check_lines(shown: list[str], printed: list[str]) -> None:
    """README shows lines of a summary as they are printed; numbers may differ by what the processor rounds."""
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    for line in shown:
        same = [other for other in printed if re.sub(number, "#", other).split() == re.sub(number, "#", line).split()]
        assert same, f"no command of the tutorial prints {line!r}"
        found = [[float(text) for text in re.findall(number, other)] for other in same]
        wanted = [float(text) for text in re.findall(number, line)]
        assert any(values == pytest.approx(wanted, abs=0.02) for values in found), f"{line!r} is now {same}"


def check_files(folder: Path) -> None:
    """The page on results lists the files that there are."""
    listed = re.findall(r"(?m)^\| `(\w+\.\w+)` \|", read(ROOT / "docs/results.md"))
    assert sorted(listed) == sorted(path.name for path in folder.iterdir())


def test_pages_that_continue_the_tutorial_only_have_python():
    for page in CONTINUING:
        tags = {block.tag for block in blocks(page)} & {*RUNNERS}
        assert tags == ({"bash", "python"} if page == README else {"python"}), page.name


def test_every_block_has_a_tag():
    for page in [README, *GUIDES]:
        assert all(block.tag for block in blocks(page)), page.name


# README


def test_readme_is_short():
    assert len(read(README).split()) <= 900


def test_readme_has_the_job_and_the_tests_as_one_command_each():
    lines = [line.partition("#")[0].strip() for block in blocks(README) for line in block.content.splitlines()]
    for script in ("run.sh", "tests/run.sh"):
        assert f"bash {script}" in lines
        assert (ROOT / script).is_file()


def test_commands_of_readme_are_run_by_the_tutorial():
    commands_of = {
        page: {line.partition("#")[0].strip() for block in blocks(page) for line in block.content.splitlines()}
        for page in (README, ROOT / "docs/tutorial.md")
    }
    shown = {line for line in commands_of[README] if line.startswith("probesweep ")}
    assert shown
    assert shown <= commands_of[ROOT / "docs/tutorial.md"]


# Figures


def saved_results(command: str) -> dict[str, Any]:
    return json.loads(read(ROOT / f"benchmarks/results/{command}-2-cores.json"))


def targets(command: str) -> list[tuple[str, str, bool]]:
    """Of a benchmark's saved results: target and measured figure, as it prints them, and whether the target was met."""
    return [
        (
            f">= {target['at_least']:g}" if "at_least" in target else f"<= {target['at_most']:g}",
            str(Spread(**target["reached"])),
            target["is_met"],
        )
        for target in saved_results(command).get("targets", ())
    ]


def figures(page: Path) -> list[tuple[str, str, str, str]]:
    """Rows of a table of figures: command, what, target, measured."""
    return re.findall(r"(?m)^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", read(page))


def test_figures_of_readme_are_those_that_benchmarks_print():
    rows = figures(README)
    assert len(rows) == 5
    missed = 0
    for command, what, target, measured in rows:
        assert f"python -m benchmarks {command}" in read(BENCHMARKS)
        if command == "faults":
            counts = saved_results(command)["counts"]["byte flipped"]
            assert re.findall(r"[\d,]*\d", what) == [f"{counts['cases']:,}", f"{counts['plain_wrong']:,}"]
            assert (target, measured) == ("0", f"{counts['wrong']:,}")
        else:
            figure, is_met = measured.removesuffix(", **missed**"), not measured.endswith(", **missed**")
            assert (target, figure, is_met) in targets(command), f"{command} does not print {target}, {measured}"
            missed += not is_met
    assert missed, "misses belong among the figures"


def test_every_missed_target_is_listed():
    listed = sorted((command, target, measured) for command, _, target, measured in figures(BENCHMARKS))
    names = [path.name.removesuffix("-2-cores.json") for path in (ROOT / "benchmarks/results").glob("*-2-cores.json")]
    missed = [(name, target, figure) for name in names for target, figure, is_met in targets(name) if not is_met]
    assert listed == sorted(missed)


# Links


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"(?m)^#+ +(.+?)\s*$", prose(page)):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        if count:
            found[f"{name}-{count}"] = 0
    return set(found)


@by_page
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert path.is_relative_to(ROOT), f"{page.name}: {target} leads out of the repository"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}; there are {sorted(anchors(path))}"


# Commands


def flags_of(command: click.Command) -> set[str]:
    named = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {name.replace("-", "_") for name in (*named, "--help", "-h") if name.startswith("-")}


def commands() -> dict[str, set[str]]:
    """Every command and its flags; those of the group itself under an empty name."""
    group = probesweep
    return {"": flags_of(group)} | {name: flags_of(command) for name, command in group.commands.items()}


def named_commands(page: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Command lines in blocks and code spans: the line, the command, its flags."""
    lines = [line for block in blocks(page) for line in block.content.replace("\\\n", " ").splitlines()]
    for line in [*lines, *code_spans(prose(page))]:
        # A path to the program counts, a module or a folder of that name does not.
        for found in re.finditer(r"(?:^|[\s/;&|(])probesweep((?: +[^\s;&|]+)+)", line.split(" #")[0]):
            words = found[1].split()
            if re.fullmatch(r"[A-Z_]+", words[0]) or line.lstrip().startswith(("#", "import ", "from ")):
                continue
            name = "" if words[0].startswith("-") else words[0]
            yield line, name, [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        for script, name in OLD_COMMANDS.items():
            if f"python {script} " in line:
                yield line, name, re.findall(r"(?<=\s)--[\w-]+", line)


@by_page
def test_commands_and_flags_are_known(page):
    known = commands()
    for line, name, flags in named_commands(page):
        assert name in known, f"{page.name}: {line!r} names the command {name!r}; there are {sorted(known)}"
        unknown = [flag for flag in flags if flag.replace("-", "_") not in known[name]]
        assert not unknown, f"{page.name}: {line!r} has {unknown}, which {name} does not take"


@by_page
def test_flags_in_the_text_are_known(page):
    known = set().union(*commands().values())
    sources = [*(ROOT / "benchmarks").rglob("command.py")]
    of_benchmarks = {flag for source in sources for flag in re.findall(r'"(--[a-z_-]+)"', read(source))}
    for span in code_spans(prose(page)):
        if span.startswith("--"):
            flag = re.split(r"[ =]", span)[0]
            assert flag.replace("-", "_") in known or flag in of_benchmarks, (
                f"{page.name}: {flag} is a flag of no command"
            )


def test_flags_that_do_not_exist_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`probesweep train --no_such`\n```bash\nprobesweep extract --model m \\\n  --such\nprobesweep fly\n```\n"
        "```text\n.venv/bin/probesweep train --k-fold && probesweep verify\npython train_probe.py --nothing 1\n```\n"
    )
    known = commands()
    wrong = [
        (name, [flag for flag in flags if flag.replace("-", "_") not in known.get(name, ())])
        for _, name, flags in named_commands(page)
    ]
    assert wrong == [
        *[("extract", ["--such"]), ("fly", []), ("train", []), ("verify", []), ("train", ["--nothing"])],
        ("train", ["--no_such"]),
    ]


# Modules


@by_page
def test_names_in_the_packages_exist(page):
    for span in code_spans(prose(page)):
        name = span.removesuffix("()")
        if re.fullmatch(rf"({'|'.join((*PACKAGES, 'benchmarks'))})(\.[A-Za-z_]\w*)+", name):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError) as error:
                pytest.fail(f"{page.name}: {name} is not there ({error})")


def test_the_architecture_names_files_that_exist_and_every_module():
    """A file or folder is named from the top or from its package; a row of a table stands for all in it."""
    known = set()
    for line in prose(ARCHITECTURE).splitlines():
        for span in code_spans(line):
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", span) or not span.endswith((".py", "/")):
                continue
            there = [place for folder in ("", *PACKAGES) if (place := ROOT / folder / span).exists()]
            assert there, f"{span} is not there"
            if line.startswith("| `"):
                known.add(there[0])
    folders = {ROOT / name for name in PACKAGES}
    modules = {path for folder in folders for path in folder.rglob("*.py") if path.name != "__init__.py"}
    missing = [path for path in modules if not known & {path, *path.parents} - folders]
    assert not missing, f"docs/architecture.md lacks {sorted(str(path.relative_to(ROOT)) for path in missing)}"


def test_the_mathematics_names_files_that_exist():
    there = {path.name for path in (ROOT / "gpu_probes").rglob("*.py")}
    named = {span for span in code_spans(prose(ROOT / "docs/maths.md")) if re.fullmatch(r"\w+\.py", span)}
    assert len(named) > 20
    assert not named - there


def test_the_architecture_knows_all_packages():
    listed = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]["setuptools"]["packages"]["find"]["include"]
    assert listed == [f"{name}*" for name in PACKAGES]
    for name in PACKAGES:
        assert importlib.import_module(name)
        assert f"- `{name}/`" in read(ARCHITECTURE)


# Sources


def test_sources_are_those_that_the_code_names():
    listed = read(ROOT / "docs/maths.md").partition("## Sources")[2]
    sources = re.findall(r"(?m)^- (\w+), .*?\((\d{4})\)", listed)
    assert len(sources) == len(re.findall(r"(?m)^- ", listed)) > 5
    code = " ".join(" ".join(path.read_text().split()) for path in (ROOT / "gpu_probes").rglob("*.py"))
    for name, year in sources:
        assert re.search(rf"{name}[^()]{{0,20}} {year}", code), f"no module of gpu_probes names {name} {year}"
