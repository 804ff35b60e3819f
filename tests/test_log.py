"""What a run writes down in its folder, and that no terminal is needed to read it."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings

import pytest

from ppgen.cli.log import LOG, logging_to

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) \S.*")
TRAIN = ["train", "vae", "--hidden", "4", "--latent-dim", "2", "--epochs", "2", "--out"]


def control_characters(text):
    return [c for c in text if not c.isprintable() and c != "\n"]


def test_what_is_said_inside_is_in_the_file_a_line_each(tmp_path, capsys):
    log = logging.getLogger("ppgen.somewhere")
    log.info("before")
    with logging_to(tmp_path):
        log.info("first\nand second \x1b[31mred\x1b[0m\r\x07")
        log.debug("not this")
        log.warning("and %d", 3)
        logging.getLogger("other").warning("of another library")
    log.info("after")
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        r"INFO first and second \x1b[31mred\x1b[0m \x07", "WARNING and 3",
    ]  # fmt: skip
    assert all(LINE.fullmatch(line) for line in lines)


def test_warnings_still_reach_standard_error(tmp_path):
    code = (
        "import logging, pathlib, sys, warnings\n"
        "from ppgen.cli.log import logging_to\n"
        "logging.captureWarnings(True)\n"
        f"with logging_to(pathlib.Path({str(tmp_path)!r})):\n"
        "    logging.getLogger('ppgen.x').warning('seen by both')\n"
        "    logging.getLogger('ppgen.x').info('in the file only')\n"
        "    warnings.warn('one of Python')\n"
        "logging.getLogger('ppgen.x').warning('afterwards')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = (tmp_path / LOG).read_text()
    assert "seen by both" in done.stderr and "one of Python" in done.stderr and "afterwards" in done.stderr
    assert done.stderr.count("seen by both") == 1 and "in the file only" not in done.stderr
    assert [text in said for text in ("seen by both", "in the file only", "one of Python", "afterwards")] == [
        True, True, True, False,
    ]  # fmt: skip


def test_loggers_are_given_back_and_the_error_is_the_last_line(tmp_path):
    loggers = [logging.getLogger(name) for name in ("ppgen", "py.warnings")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    with pytest.raises(FloatingPointError), logging_to(tmp_path):
        raise FloatingPointError("the loss\nis nan")
    with logging_to(tmp_path):
        logging.getLogger("ppgen").info("goes on")
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before
    assert [line.split(" ", 1)[1] for line in (tmp_path / LOG).read_text().splitlines()] == [
        "ERROR FloatingPointError: the loss is nan", "INFO goes on",
    ]  # fmt: skip


def test_a_run_into_files_has_no_control_characters(tmp_path):
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-m", "ppgen", *TRAIN, run], capture_output=True, text=True, check=True)
    assert control_characters(done.stdout + done.stderr) == []
    text = (run / LOG).read_text()
    assert control_characters(text) == [] and all(LINE.fullmatch(line) for line in text.splitlines())
    assert [epoch in text for epoch in ("Epoch 1 of 2", "Epoch 2 of 2")] == [True, True]
    history = json.loads((run / "history.json").read_text())
    assert f"loss {history['loss'][1]:.2f}" in text


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals here")
def test_on_a_terminal_there_is_a_bar_and_the_log_is_the_same(tmp_path):
    import pty

    run, seen = tmp_path / "run", b""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(TERM="xterm", COLUMNS="100")
        os.execv(sys.executable, [sys.executable, "-m", "ppgen", *map(str, [*TRAIN, run])])
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # the end of a terminal, on Linux
            break
        if not chunk:
            break
        seen += chunk
    assert os.waitpid(process, 0)[1] == 0
    assert b"\x1b[" in seen and b"epoch 2/2" in seen
    assert control_characters((run / LOG).read_text()) == []


def test_the_library_says_nothing_by_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = (
            "import logging, ppgen, ppgen.cli; print(logging.getLogger('ppgen').handlers, logging.getLogger().handlers)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []" and done.stderr == ""
