"""Commands without standard streams, and with streams that take nothing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from probesweep.terminal.limits import limit_reached
from tests.helpers.commands import PROBESWEEP

CLOSED = ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize("closed", CLOSED)
def test_a_command_without_streams_does_its_work(closed, tmp_path):
    write = "import sys; from probesweep.commands.main import main; "
    write += f"sys.argv[1:] = ['run', '--init', '{tmp_path}/new.toml']; main()"
    done = shell(f'{sys.executable} -c "{write}" {closed}')
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "new.toml").read_text().startswith("#")
    assert shell(f"{PROBESWEEP} verify {tmp_path}/none.zarr {closed}").returncode == 2


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = "import os; from probesweep.terminal.streams import open_streams; open_streams(); "
    code += f"os.write(2, b'a warning'); open('{tmp_path}/a', 'x').close(); os.write(2, b'a warning')"
    done = shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-')
    assert done.returncode == 0
    assert (tmp_path / "a").read_bytes() == b""


@pytest.mark.parametrize("arguments", ["--help", "completion bash"])
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([PROBESWEEP, *arguments.split()], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_no_reader_of_errors_changes_no_exit_code(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([PROBESWEEP, "verify", tmp_path / "none.zarr"], stderr=writer)
    os.close(writer)
    assert done.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
def test_a_full_disk_under_stdout_is_one_line():
    done = shell(f"{PROBESWEEP} completion bash > /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


@pytest.mark.slow
def test_without_home():
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run([PROBESWEEP, "--version"], env=env | {"HOME": "/proc/none"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_limit_of_memory_is_one_line(tmp_path):
    # Too little for torch.
    stores = f"--train_activations {tmp_path} --test_activations {tmp_path} --output_dir {tmp_path}/out"
    done = shell(f"ulimit -v 400000; {PROBESWEEP} train {stores}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: out of memory")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (MemoryError("Unable to allocate 5 GiB"), "out of memory (Unable to allocate 5 GiB)"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "--budget_gib"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "out of memory"),
    ],
)
def test_what_limits_raise_names_them(error, way_out):
    assert way_out in str(limit_reached(error))
    wrapped = ValueError("the file cannot be read")
    wrapped.__cause__ = error
    assert limit_reached(wrapped) == limit_reached(error)
    assert limit_reached(ValueError("another")) is None
